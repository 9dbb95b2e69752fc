"""A worker process of `collect`: plays the episodes it is given and writes them to the dataset.

Run as `python -m envs.collection.worker`. It reads JSON lines from standard input, first the settings, then
`{"episode": i}` for each episode, and answers in JSON lines on standard output:

    {"ready": true}                                    the environment and the policy are made
    {"rendered": n}                                    n more frames are rendered; also says that it is alive
    {"done": i, "frames": n}                           episode i is on disk
    {"failed": i or null, "error": ..., "errno": ...}  then it ends; null where it failed before being ready
"""

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TextIO

import numpy as np
from gymnasium import spaces

from envs.collection.named_policies import make_policy
from envs.collection.policies import Policy, PolicyContext
from envs.collection.settings import CollectSettings, dataset_meta, make_collection_env
from envs.dmc.environment import DmcEnv
from envs.frame_observation import FrameObservation
from perceiver_obs.actions import ActionEncoding
from perceiver_obs.data.episode import Episode, EpisodeExists
from perceiver_obs.data.rollouts import RolloutWriter

_REPORT_SECONDS = 0.5


def make_players(settings: CollectSettings) -> tuple[DmcEnv | FrameObservation, Policy]:
    """The environment and the policy that play the episodes of a dataset."""
    env = make_collection_env(settings)
    context = PolicyContext(
        action_space=env.action_space,
        frame_size=settings.size,
        step_seconds=1 / env.metadata["render_fps"],
        state_names=env.state_names,
    )
    return env, make_policy(settings.policy, context)


def play_episode(
    env: DmcEnv | FrameObservation,
    policy: Policy,
    settings: CollectSettings,
    index: int,
    on_frames: Callable[[int], None] = lambda count: None,
) -> Episode:
    """Play episode number `index` to its end or to `settings.max_steps`.

    All that is random in it comes from `settings.seed` and `index`, so it is the same whoever plays it.

    Args:
        on_frames: called every half second with the number of frames rendered since.
    """
    episode = None
    for count, whole in play_in_parts(env, policy, settings, index):
        on_frames(count)
        episode = whole
    assert episode is not None
    return episode


def play_in_parts(
    env: DmcEnv | FrameObservation, policy: Policy, settings: CollectSettings, index: int
) -> Iterator[tuple[int, Episode | None]]:
    """`play_episode` that yields the frames rendered since, every half second, and in the end with the episode."""
    reset_seed, policy_seed = np.random.SeedSequence([settings.seed, index]).generate_state(2)
    tag = policy.begin(np.random.default_rng(policy_seed))
    frame, info = env.reset(seed=int(reset_seed), options={"random_init": settings.random_init})
    frames, states = [frame], [_state(info)]
    space, encoding = env.action_space, ActionEncoding.from_space(env.action_space)
    actions, rewards = [], []
    terminated = truncated = False
    reported, reported_at = 0, time.monotonic()
    while not (terminated or truncated):
        # Copies both ways: a policy may work in place on what it sees, and use its action's array again.
        action = np.array(policy.act(frame.copy(), states[-1].copy()))
        if isinstance(space, spaces.Box):
            action = action.astype(space.dtype)
        actions.append(encoding.encode(action)[0])
        action = action.astype(space.dtype)[()]  # of a single choice a number, as `Discrete.sample` gives it
        frame, reward, terminated, truncated, info = env.step(action)
        frames.append(frame)
        states.append(_state(info))
        rewards.append(float(reward))
        truncated = truncated or (not terminated and len(actions) == settings.max_steps)
        if time.monotonic() - reported_at > _REPORT_SECONDS:
            yield len(frames) - reported, None
            reported, reported_at = len(frames), time.monotonic()
    episode = Episode(
        pixels=np.stack(frames),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        terminated=bool(terminated),
        truncated=bool(truncated),
        seed=int(reset_seed),
        policy=tag,
        states=np.stack(states) if settings.states and env.state_names else None,
    )
    yield len(frames) - reported, episode


def _state(info: dict[str, Any]) -> np.ndarray:
    return info.get("state", np.zeros(0, np.float32))


def main() -> None:
    replies = _take_stdout()
    commands = _read_commands()
    index = None
    try:
        settings = CollectSettings(**commands.get())
        env, policy = make_players(settings)
        writer = RolloutWriter(settings.out, dataset_meta(settings, env), compress=settings.compress)
        _reply(replies, ready=True)
        while True:
            index = commands.get()["episode"]
            episode = play_episode(env, policy, settings, index, lambda count: _reply(replies, rendered=count))
            with suppress(EpisodeExists):  # another collection of the same dataset was faster
                writer.write_episode(index, **vars(episode))
            _reply(replies, done=index, frames=len(episode.pixels))
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        _reply(replies, failed=index, error=reason, errno=getattr(error, "errno", None))
        os._exit(1)  # an orderly exit would wait for the thread that reads standard input


def _take_stdout() -> TextIO:
    """Standard output for the replies alone: whatever else this process prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


def _reply(replies: TextIO, **message: Any) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _read_commands() -> "queue.SimpleQueue[dict[str, Any]]":
    """Read commands on a thread that ends this process at once when `collect` has gone away, however it went."""
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            commands.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return commands


if __name__ == "__main__":
    main()

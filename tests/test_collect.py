"""Collecting with real workers: what is collected, and what happens when something dies."""

import logging
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack

from envs import CollectionError, CollectSettings, RolloutDataset, RolloutError, collect, make_dmc
from envs.collection.named_policies import make_policy
from envs.collection.policies import CorrelatedNoise, PolicyContext
from envs.collection.pool import Worker, WorkerPool
from envs.collection.sb3_policy import algorithm_class
from envs.collection.settings import make_collection_env
from envs.collection.worker import play_episode
from envs.dmc.environment import DmcEnv


def settings(out, **changes):
    small = {"task": "cartpole-swingup", "episodes": 3, "max_steps": 20, "size": 16, "render_quality": "fast"}
    return CollectSettings(**{**small, "workers": 1, "out": str(out), **changes})


def files(out):
    """Name → contents of all that an episode leaves."""
    return {path.name: path.read_bytes() for path in sorted((Path(out) / "episodes").iterdir())}


def context(env):
    return PolicyContext(env.action_space, 16, 1 / env.metadata["render_fps"], env.state_names)


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> RolloutDataset:
    """Four episodes by the usual settings, to look at and to copy."""
    return collect(settings(tmp_path_factory.mktemp("collected") / "data", episodes=4), progress=False)


class InstantWorker(Worker):
    """Plays an episode in 10 ms."""

    def __init__(self, number, messages):
        super().__init__(f"worker {number}")
        self.messages = messages
        messages.put((self, {"ready": True}))

    def play(self, episode):
        time.sleep(0.01)
        self.messages.put((self, {"done": episode, "frames": 1}))

    def stop(self):
        self.stopped = True
        self.messages.put((self, None))

    def kill(self):
        pass

    def failure_message(self):
        return ""


# What is collected


def test_episodes_are_the_same_with_one_worker_and_with_two(tmp_path):
    one = collect(settings(tmp_path / "one", policy="mixed", random_init=True, episodes=4), progress=False)
    two = collect(settings(tmp_path / "two", policy="mixed", random_init=True, episodes=4, workers=2), progress=False)
    assert files(one.path) == files(two.path)
    assert one.fingerprint == two.fingerprint
    assert len({episode.pixels.tobytes() for episode in one}) == 4
    assert {episode.policy.partition("(")[0] for episode in one} == {"random", "correlated"}


def test_an_episode_can_be_replayed_from_its_seed_and_actions(tmp_path):
    data = collect(settings(tmp_path / "data", episodes=1, action_repeat=4), progress=False)
    episode = data[0]
    kwargs = data.meta["env"]["kwargs"]
    env = make_dmc("cartpole-swingup", **kwargs, state_in_info=True)
    frame, info = env.reset(seed=episode.seed)
    assert np.array_equal(frame, episode.pixels[0])
    for t, action in enumerate(episode.actions):
        frame, reward, *_, info = env.step(action)
        assert np.array_equal(frame, episode.pixels[t + 1])
        assert np.array_equal(info["state"], episode.states[t + 1])
        assert episode.rewards[t] == np.float32(reward)
    assert (episode.terminated, episode.truncated, len(episode)) == (False, True, 20)
    assert data.meta["state_names"] == list(env.unwrapped.state_names)
    assert data.meta["frame_contract"] == env.unwrapped.frame_contract


def test_it_works_from_standard_input_with_a_bar_and_without_a_main_guard(tmp_path):
    script = (
        "from envs import CollectSettings, collect\n"
        f"data = collect(CollectSettings(out={str(tmp_path / 'data')!r}, task='pendulum-swingup', size=16,"
        " render_quality='fast', episodes=2, max_steps=10, states=False, compress=True))\n"
        "print(len(data), data.num_frames, data[0].states, data.meta['state_names'])\n"
        "import sys; print('torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable], input=script, capture_output=True, text=True, timeout=120)
    assert result.stdout.split("\n")[:2] == ["2 22 None None", "False"]
    assert "collect pendulum-swingup: 100%" in result.stderr
    assert "22/22" in result.stderr
    assert "frame/s" in result.stderr


# Going on


def test_only_what_is_missing_is_collected(collected, tmp_path):
    path = tmp_path / "data"
    shutil.copytree(collected.path, path)
    kept = path / "episodes" / "000000.pixels.npy"
    written = kept.stat().st_mtime_ns
    (path / "episodes" / "000001.npz").unlink()
    (path / "episodes" / ".000001.npz.123.tmp").write_bytes(b"half")
    for file in (path / "episodes").glob("000003.*"):
        file.unlink()
    data = collect(settings(path, episodes=4, workers=2), progress=False)
    assert data.indices == [0, 1, 2, 3]
    assert files(path) == files(collected.path)
    assert not list((path / "episodes").glob(".*"))
    assert kept.stat().st_mtime_ns == written


def test_no_episode_is_begun_when_time_is_up():
    done = []
    pool = WorkerPool(InstantWorker, 2, stall_seconds=60)
    assert pool.play(range(1000), lambda frames: None, lambda index, _: done.append(index), max_minutes=0.1 / 60) == {}
    assert 1 <= len(done) < 30
    assert sorted(done) == list(range(len(done)))


def test_two_collections_of_one_dataset_make_it_together(collected, tmp_path):
    command = [
        *(sys.executable, "-m", "agents.cli", "collect", "--task", "cartpole-swingup", "--episodes", "4"),
        *("--max-steps", "20", "--size", "16", "--render-quality", "fast", "--workers", "1"),
        *("--out", str(tmp_path / "shared")),
    ]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert RolloutDataset(tmp_path / "shared").fingerprint == collected.fingerprint
    assert files(tmp_path / "shared") == files(collected.path)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"max_steps": 21}, {"policy": "random"}, {"size": 17}, {"states": False}]
)
def test_other_settings_do_not_go_into_the_same_dataset(collected, change):
    with pytest.raises(RolloutError, match="other settings"):
        collect(settings(collected.path, episodes=5, **change), progress=False)
    assert len(RolloutDataset(collected.path)) == 4


def test_a_killed_run_loses_only_episodes_in_flight(tmp_path):
    whole = collect(settings(tmp_path / "whole", episodes=6, max_steps=50), progress=False)
    script = (
        "from envs import CollectSettings, collect\n"
        f"collect(CollectSettings(task='cartpole-swingup', out={str(tmp_path / 'cut')!r}, size=16, workers=2,"
        " render_quality='fast', episodes=6, max_steps=50), progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cut" / "episodes").glob("*.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    psutil.wait_procs(workers, timeout=10)  # they notice and end, with nobody left to tell them
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)

    present = RolloutDataset(tmp_path / "cut")
    assert 1 <= len(present) <= 6
    left = files(present.path)
    data = collect(settings(tmp_path / "cut", episodes=6, max_steps=50), progress=False)
    assert files(data.path) == files(whole.path)
    finished = {name: content for name, content in left.items() if name.endswith(".npz") and name[0] != "."}
    assert len(finished) == len(present)


# Workers that end badly


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ("Raises", "failed: ArithmeticError: no good"),
        ("Dies", "was killed by SIGKILL"),
        ("Hangs", "gave no sign of life"),
    ],
)
def test_a_worker_that_ends_badly_is_replaced_and_its_episode_played_again(
    tmp_path, monkeypatch, caplog, policy, reason
):
    monkeypatch.setenv("BAD_START", str(tmp_path / "counter"))
    with caplog.at_level(logging.WARNING):
        data = collect(
            settings(tmp_path / "data", policy=f"failing_policies:{policy}", episodes=2, stall_seconds=4),
            progress=False,
        )
    assert len(data) == 2
    assert len(caplog.messages) == 1
    assert "worker 0 (pid" in caplog.messages[0]
    assert f"in episode 0 {reason}" in caplog.messages[0]


def test_a_worker_killed_from_outside_is_replaced(tmp_path, caplog):
    result = {}
    chosen = settings(tmp_path, episodes=8, max_steps=100, workers=1)
    thread = threading.Thread(target=lambda: result.update(data=collect(chosen, progress=False)))
    before = set(psutil.Process().children())  # of other tests, not to be looked into: they may be ending
    thread.start()
    while not list(tmp_path.rglob("*.npz")):  # by then it has started, which it may not fail at
        assert thread.is_alive()
        time.sleep(0.01)
    (worker,) = set(psutil.Process().children()) - before
    worker.kill()
    thread.join()
    assert len(result["data"]) == 8
    assert [message for message in caplog.messages if f"(pid {worker.pid})" in message and "SIGKILL" in message]


def test_episodes_that_always_fail_are_named_and_the_others_are_there(tmp_path):
    unlucky = settings(tmp_path, policy="failing_policies:RaisesInSomeEpisodes", seed=8)  # episode 1 of 0, 1, 2
    with pytest.raises(CollectionError, match=r"1 of 3 episodes could not be collected \(1\)") as error:
        collect(unlucky, progress=False)
    assert "in episode 1 failed: ArithmeticError: unlucky" in str(error.value)
    assert RolloutDataset(tmp_path).indices == [0, 2]


def test_a_worker_that_cannot_start_ends_it_at_once(tmp_path):
    with pytest.raises(CollectionError, match="while starting failed: LookupError: the weights are gone"):
        collect(settings(tmp_path, policy="failing_policies:CannotBeMade"), progress=False)


def test_a_full_disk_ends_it_at_once(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        with pytest.raises(CollectionError, match="No space left on device"):
            collect(settings(tmp_path, episodes=20, max_steps=100), progress=False)
        assert len(RolloutDataset(tmp_path)) >= 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# Policies


def test_correlated_noise_is_calm_and_wild_and_correlated():
    env = DmcEnv("walker-walk", size=16, render_quality="fast")
    policy = CorrelatedNoise(context(env))
    strengths, correlations = [], []
    for seed in range(30):
        policy.begin(np.random.default_rng(seed))
        actions = np.stack([policy.act(None, None) for _ in range(400)])
        assert np.abs(actions).max() <= 1
        strengths.append(actions.std())
        correlations.append(np.corrcoef(actions[1:].ravel(), actions[:-1].ravel())[0, 1])
    assert min(strengths) < 0.1
    assert max(strengths) > 0.5
    assert min(correlations) < 0.6
    assert max(correlations) > 0.9


def test_correlated_noise_keeps_the_cart_in_the_picture():
    chosen = settings("unused", max_steps=None, action_repeat=8)
    env = make_collection_env(chosen)
    slider = env.state_names.index("position/slider")
    distances = {}
    for name in ("random", "correlated"):
        policy = make_policy(name, context(env))
        episodes = [play_episode(env, policy, chosen, index) for index in range(4)]
        distances[name] = np.abs(np.concatenate([episode.states[:, slider] for episode in episodes]))
    assert (distances["random"] > 1.5).mean() > 0.1
    assert (distances["correlated"] > 1.5).mean() < 0.01
    assert distances["correlated"].max() > 0.3


class StateEnv(DmcEnv):
    """cartpole-swingup observed by its true state, for a policy to be trained on."""

    def __init__(self):
        super().__init__("cartpole-swingup", size=16, render_quality="fast", state_in_info=True)
        self.observation_space = spaces.Box(-np.inf, np.inf, (len(self.state_names),), np.float32)

    def reset(self, **kwargs):
        _, info = super().reset(**kwargs)
        return info["state"], info

    def step(self, action):
        _, *rest, info = super().step(action)
        return info["state"], *rest, info


def make_stacked_policy(task, path):
    """Save an untrained policy on three stacked frames of 36 pixels; returns the environment it is for."""
    frames = VecFrameStack(make_vec_env(lambda: DmcEnv(task, size=36, render_quality="fast")), 3)
    PPO("CnnPolicy", frames, n_steps=8, batch_size=8, device="cpu").save(path)
    return frames


@pytest.mark.parametrize("algorithm", [PPO, A2C, SAC, TD3])
def test_the_algorithm_of_a_saved_policy_is_recognised(tmp_path, algorithm):
    algorithm("MlpPolicy", StateEnv(), device="cpu").save(tmp_path / "policy.zip")
    assert algorithm_class(tmp_path / "policy.zip") is algorithm


def test_saved_policies_collect_and_their_episodes_can_be_played_again(tmp_path):
    PPO("MlpPolicy", StateEnv(), n_steps=8, batch_size=8, device="cpu").save(tmp_path / "state.zip")
    make_stacked_policy("cartpole-swingup", tmp_path / "frames.zip")
    policy = f"{tmp_path / 'state.zip'},{tmp_path / 'frames.zip'},random"
    chosen = settings(tmp_path / "data", policy=policy, size=36, seed=12, max_steps=5)
    data = collect(chosen, progress=False)
    assert {episode.policy for episode in data} == {"sb3:state.zip", "sb3:frames.zip", "random"}

    env = make_collection_env(chosen)
    again = make_policy(policy, PolicyContext(env.action_space, 36, 1 / env.metadata["render_fps"], env.state_names))
    for index in (2, 0, 1):
        replayed = play_episode(env, again, chosen, index)
        assert np.array_equal(replayed.actions, data[index].actions)
        assert np.array_equal(replayed.pixels, data[index].pixels)

    (tmp_path / "state.zip").write_bytes((tmp_path / "frames.zip").read_bytes())  # another policy by the same name
    with pytest.raises(RolloutError, match="policy_sha256"):
        collect(chosen, progress=False)


def test_a_stacked_policy_sees_what_vec_frame_stack_shows(tmp_path, monkeypatch):
    frames = make_stacked_policy("reacher-easy", tmp_path / "frames.zip")
    env = DmcEnv("reacher-easy", size=36, render_quality="fast", state_in_info=True)
    policy = make_policy(str(tmp_path / "frames.zip"), PolicyContext(env.action_space, 36, 0.04, env.state_names))
    seen = []
    predict = PPO.predict
    monkeypatch.setattr(PPO, "predict", lambda self, obs, **kwargs: seen.append(obs) or predict(self, obs, **kwargs))
    frames.seed(3)
    stacked = frames.reset()
    frame, info = env.reset(seed=3)
    policy.begin(np.random.default_rng(0))
    for _ in range(4):
        action = policy.act(frame, info["state"])
        assert np.array_equal(seen[-1].transpose(1, 2, 0), stacked[0])
        frame, *_, info = env.step(action)
        stacked, *_ = frames.step(action[None])


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "corelated"}, "corelated.*correlated"),
        ({"policy": "nowhere/policy.zip"}, "no SB3 policy at nowhere/policy.zip"),
        ({"policy": ""}, "unknown policy ''"),
        ({"episodes": 0}, "episodes must be.*0"),
        ({"workers": -1}, "workers must be.*-1"),
        ({"max_steps": 0}, "max_steps must be.*0"),
        ({"stall_seconds": 0}, "stall_seconds must be.*0"),
        ({"task": "cartpole-swing"}, "cartpole-swing.*cartpole-swingup"),
        ({"camera": "front"}, "front"),
        ({"task": "lqr-lqr_2_1", "max_steps": None}, "give max_steps"),
    ],
)
def test_bad_settings_are_named_before_any_work(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        collect(settings(tmp_path / "data", **changes), progress=False)
    assert not (tmp_path / "data").exists()


def test_files_that_are_no_policy_and_policies_that_do_not_fit_are_named(tmp_path):
    (tmp_path / "text.zip").write_text("hello")
    walker = DmcEnv("walker-walk", size=16, render_quality="fast")
    with pytest.raises(ValueError, match=r"text.zip is not a policy saved by Stable-Baselines3"):
        make_policy(str(tmp_path / "text.zip"), context(walker))
    PPO("MlpPolicy", StateEnv(), n_steps=8, batch_size=8, device="cpu").save(tmp_path / "cartpole.zip")
    with pytest.raises(
        ValueError, match=r"gives actions of shape \(1,\), the environment takes actions of shape \(6,\)"
    ):
        make_policy(str(tmp_path / "cartpole.zip"), context(walker))
    pendulum = DmcEnv("pendulum-swingup", size=16, render_quality="fast")
    with pytest.raises(ValueError, match="neither the true state"):
        make_policy(str(tmp_path / "cartpole.zip"), context(pendulum))

"""The Perceiver reads the executed action, once and in one unit, whatever becomes of the array that held it."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import ClipAction, RescaleAction, StickyAction, TimeLimit, TransformAction
from gymnasium.wrappers import vector as vector_wrappers
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper
from tiny_envs import LENGTH, UNIT, Painted, painted_frame
from tiny_models import small_frames_model

from agents import VecPerceiverContext
from agents.wrappers.vec_pca import VecFramePCA
from perceiver_obs import ActionEncoding, ContextEncoder, PerceiverContextVectorWrapper, PerceiverContextWrapper
from perceiver_obs.evaluation.frame_pca import FramePCA

MODEL = small_frames_model(action_dim=4)
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (LENGTH, 2)).astype(np.float32)
PAIRS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
Make = Callable[[], gym.Env]


class Single:
    """`PerceiverContextWrapper`, stepped like the others."""

    def __init__(self, make: Make, **arguments: Any) -> None:
        self.env = PerceiverContextWrapper(make(), MODEL, **arguments)
        self.painted = self.env.unwrapped

    def reset(self) -> Any:
        return self.env.reset(seed=0)[0]

    def step(self, action: Any) -> tuple[Any, Any]:
        """The context, and at an episode's end that of its last frame."""
        context, _, _, ended, _ = self.env.step(action)
        return context, context if ended else None


class Vector:
    """`PerceiverContextVectorWrapper` of one row, which resets in the same step."""

    def __init__(self, make: Make, wrap: Callable = lambda venv: venv, **arguments: Any) -> None:
        below = SyncVectorEnv([make], autoreset_mode=AutoresetMode.SAME_STEP)
        self.painted = below.envs[0].unwrapped
        self.env = PerceiverContextVectorWrapper(wrap(below), MODEL, **arguments)

    def reset(self) -> Any:
        return self.env.reset(seed=0)[0][0]

    def step(self, action: Any) -> tuple[Any, Any]:
        contexts, *_, infos = self.env.step(batch(action))
        return contexts[0], infos["final_obs"][0] if "final_obs" in infos else None


class Sb3:
    """`VecPerceiverContext` of one row."""

    def __init__(self, make: Make, wrap: Callable = lambda venv: venv, **arguments: Any) -> None:
        below = DummyVecEnv([make])
        self.painted = below.envs[0].unwrapped
        self.env = VecPerceiverContext(wrap(below), MODEL, **arguments)

    def reset(self) -> Any:
        return self.env.reset()[0]

    def step(self, action: Any) -> tuple[Any, Any]:
        contexts, _, _, infos = self.env.step(batch(action))
        return contexts[0], infos[0].get("terminal_observation")


SHELLS = [Single, Vector, Sb3]


def batch(action: Any) -> Any:
    return (action,) if isinstance(action, dict) else action[None] if isinstance(action, np.ndarray) else [action]


def play(shell: Any, actions: Sequence[Any]) -> np.ndarray:
    """The contexts of an episode, its last frame's included."""
    contexts = [shell.reset()]
    for action in actions:
        context, final = shell.step(action)
        contexts.append(context if final is None else final)
    return np.stack(contexts)


def encoded(rows: Sequence[Any] | None) -> np.ndarray:
    """The contexts of the same frames under action rows `[T, A]`, straight from the encoder."""
    encoder = ContextEncoder(MODEL)
    contexts = [encoder.push(painted_frame(0)[None])]
    for step in range(LENGTH):
        row = None if rows is None else np.asarray(rows[step], np.float32)[None]
        contexts.append(encoder.push(painted_frame(step + 1)[None], row))
    return np.concatenate(contexts)


def assert_reads(shell: Any, actions: Sequence[Any], rows: Sequence[Any] | None) -> None:
    np.testing.assert_allclose(play(shell, actions), encoded(rows), atol=1e-6)


# ---- the encoding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "action", "row"),
    [
        (spaces.Box(-1, 1, (2,)), [0.25, 1.7], [0.25, 1.0]),
        (spaces.Box(-2, 2, (2,)), [1.0, -5.0], [0.5, -1.0]),
        (spaces.Box(np.float32([0, 10]), np.float32([4, 20])), [1.0, 20.0], [-0.5, 1.0]),
        (spaces.Box(-2, 2, (2, 2)), [[0.0, 1.0], [2.0, 3.0]], [0.0, 0.5, 1.0, 1.0]),
        (spaces.Box(0, 255, (1,), np.uint8), [255], [1.0]),
        (spaces.Box(np.float32([3, -1]), np.float32([3, 1])), [3.0, 0.5], [0.0, 0.5]),
        (spaces.Discrete(3), 2, [0, 0, 1]),
        (spaces.Discrete(3, start=-1), -1, [1, 0, 0]),
        (spaces.MultiDiscrete([2, 3]), [1, 0], [0, 1, 1, 0, 0]),
        (spaces.MultiDiscrete([2, 3], start=[5, -1]), [5, 1], [1, 0, 0, 0, 1]),
        (spaces.MultiDiscrete([[2], [2]]), [[0], [1]], [1, 0, 0, 1]),
        (spaces.MultiBinary(3), [1, 0, 1], [1, 0, 1]),
    ],
    ids=str,
)
def test_what_a_space_becomes(space, action, row):
    encoding = ActionEncoding.from_space(space)
    rows = encoding.encode(np.array(action))
    assert (rows.dtype, rows.shape, encoding.size) == (np.float32, (1, len(row)), len(row))
    np.testing.assert_array_equal(rows[0], row)
    np.testing.assert_array_equal(encoding.encode([action, action], 2), [row, row])
    assert ActionEncoding.from_meta(encoding.meta) == encoding
    assert encoding.space().shape == space.shape
    inside = np.clip(action, space.low, space.high) if isinstance(space, spaces.Box) else action
    np.testing.assert_array_equal(encoding.decode(rows)[0], inside)
    assert encoding.decode(rows)[0].astype(encoding.space().dtype) in encoding.space()


def test_actions_of_the_unit_box_are_kept_bit_by_bit():
    actions = np.random.default_rng(0).normal(scale=np.logspace(-30, -1, 30), size=(100, 30)).astype(np.float32)
    encoding = ActionEncoding.from_space(spaces.Box(-1, 1, (30,)))
    assert encoding == ActionEncoding.unit(30)
    np.testing.assert_array_equal(encoding.encode(actions, 100), np.clip(actions, -1, 1))


def test_rows_are_never_views():
    action = np.ones((1, 2), np.float32)
    rows = ActionEncoding.unit(2).encode(action)
    assert not np.shares_memory(rows, action)


@pytest.mark.parametrize("bound", [np.inf, 1e10])
def test_without_bounds_actions_are_clipped_as_they_are_and_that_is_said(bound):
    space = spaces.Box(np.float32([-1, -bound]), np.float32([3, bound]))
    with pytest.warns(UserWarning, match="no bounds to normalise actions by"):
        encoding = ActionEncoding.from_space(space)
    np.testing.assert_array_equal(encoding.encode([3.0, 1e30]), [[1.0, 1.0]])
    np.testing.assert_array_equal(encoding.encode([0.0, 0.25]), [[-0.5, 0.25]])
    assert (encoding.meta["low"], encoding.meta["high"]) == ([-1, -1], [3, 1])


@pytest.mark.parametrize(
    ("space", "action", "message"),
    [
        (UNIT, [np.nan, 0.0], "neither NaN nor infinite"),
        (UNIT, [np.inf, 0.0], "neither NaN nor infinite"),
        (UNIT, [0.0], r"expected 1 of actions of shape \(2,\)"),
        (UNIT, "up", "expected 1 of actions"),
        (spaces.Discrete(3), 3, r"integers from \[0\] to \[2\]"),
        (spaces.Discrete(3), 0.5, "integers from"),
        (spaces.Discrete(3, start=1), 0, r"integers from \[1\] to \[3\]"),
        (spaces.MultiDiscrete([2, 3]), [0, 3], r"integers from \[0, 0\] to \[1, 2\]"),
        (spaces.MultiBinary(2), [0, 2], "integers from"),
    ],
)
def test_what_is_no_action_is_refused(space, action, message):
    with pytest.raises(ValueError, match=message):
        ActionEncoding.from_space(space).encode(np.array(action))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"encoding": "logarithm", "shape": [2]},
        {"encoding": "normalised", "shape": [2], "low": [-1], "high": [1]},
        {"encoding": "normalised", "shape": [1], "low": [float("nan")], "high": [1]},
        {"encoding": "one-hot", "shape": []},
        {"encoding": "bits", "shape": "wide"},
    ],
)
def test_a_broken_entry_of_a_dataset_is_named(entry):
    with pytest.raises(ValueError, match="expected how actions are encoded, got"):
        ActionEncoding.from_meta(entry)


# ---- what the three wrappers read -----------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_an_environment_that_changes_its_action_in_place_changes_nothing(shell):
    sent = [action.copy() for action in ACTIONS]
    assert_reads(shell(lambda: Painted(spoils_actions=True)), sent, ACTIONS)
    np.testing.assert_array_equal(sent, ACTIONS)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_policy_that_uses_its_array_again_changes_nothing(shell):
    shell, action = shell(Painted), np.zeros(2, np.float32)
    contexts = [shell.reset()]
    for values in ACTIONS:
        action[:] = values
        context, final = shell.step(action)
        action[:] = -9
        contexts.append(context if final is None else final)
    np.testing.assert_allclose(contexts, encoded(ACTIONS), atol=1e-6)
    np.testing.assert_array_equal(shell.painted.taken, ACTIONS)


def test_an_array_changed_between_async_and_wait_changes_nothing():
    shell = Sb3(Painted)
    shell.reset()
    sent = ACTIONS[:1].copy()
    shell.env.step_async(sent)
    sent[:] = 0
    context = shell.env.step_wait()[0]
    np.testing.assert_allclose(context[0], encoded(ACTIONS)[1], atol=1e-6)
    np.testing.assert_array_equal(shell.painted.taken, ACTIONS[:1])


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("sent", [1.7, 1e30])
def test_actions_are_read_as_the_bounds_clip_them(shell, sent):
    assert_reads(shell(Painted), np.full((LENGTH, 2), sent, np.float32), np.ones((LENGTH, 2)))


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("low", "high"), [(-2, 2), (-50, 50), (0, 4)])
def test_actions_are_read_alike_whatever_their_unit(shell, low, high):
    sent = (low + (ACTIONS.astype(np.float64) + 1) / 2 * (high - low)).astype(np.float32)
    assert_reads(shell(lambda: Painted(spaces.Box(low, high, (2,)))), sent, ACTIONS)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("space", "actions", "rows"),
    [
        (spaces.Discrete(3), [0, 2, 1, 1], np.eye(3)[[0, 2, 1, 1]]),
        (spaces.Discrete(3, start=4), [4, 6, 5, 5], np.eye(3)[[0, 2, 1, 1]]),
        (spaces.MultiDiscrete([2, 2]), PAIRS, [[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]]),
        (spaces.MultiBinary(2), PAIRS, PAIRS),
    ],
    ids=str,
)
def test_choices_are_read_one_hot(shell, space, actions, rows):
    assert_reads(shell(lambda: Painted(space)), actions, rows)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_does_not_reach_the_environment(shell, value):
    shell = shell(Painted)
    shell.reset()
    with pytest.raises(ValueError, match="neither NaN nor infinite"):
        shell.step(np.full(2, value, np.float32))
    assert shell.painted.taken == []


@pytest.mark.parametrize("shell", SHELLS)
def test_other_spaces_are_not_read_and_that_is_said(shell):
    space = spaces.Dict({"gas": UNIT})
    with pytest.warns(UserWarning, match="contexts are computed without actions"):
        shell = shell(lambda: Painted(space))
    if isinstance(shell, Vector):
        sent = [{"gas": action[None]} for action in ACTIONS]
        contexts = [shell.reset()]
        for action in sent:
            contexts_now, *_, infos = shell.env.step(action)
            contexts.append(infos["final_obs"][0] if "final_obs" in infos else contexts_now[0])
        np.testing.assert_allclose(contexts, encoded(None), atol=1e-6)
    else:
        assert_reads(shell, [{"gas": action} for action in ACTIONS], None)


# ---- wrappers below that change actions -----------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_bounds_below_clip_action_are_the_ones_that_count(shell):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shell = shell(lambda: TimeLimit(ClipAction(Painted(spaces.Box(-2, 2, (2,)))), 100))
    assert_reads(shell, 10 * ACTIONS, np.clip(10 * ACTIONS, -2, 2) / 2)


@pytest.mark.parametrize("shell", SHELLS)
def test_rescaling_is_no_matter(shell):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shell = shell(lambda: RescaleAction(Painted(spaces.Box(-50, 50, (2,))), np.float32(-3), np.float32(3)))
    assert_reads(shell, 3 * ACTIONS, ACTIONS)
    np.testing.assert_allclose(shell.painted.taken, 50 * ACTIONS, rtol=1e-5)


@pytest.mark.parametrize("shell", SHELLS)
def test_other_changes_of_actions_are_named_once(shell):
    def make():
        return TransformAction(StickyAction(Painted(), 0.5), lambda action: 0.27 * action, None)

    with pytest.warns(UserWarning, match="TransformAction, StickyAction below .* changes actions") as caught:
        shell(make)
    assert len([each for each in caught if "changes actions" in str(each.message)]) == 1


def test_vector_wrappers_of_actions_are_looked_through_too():
    def wide():
        return Painted(spaces.Box(-2, 2, (2,)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clipped = Vector(wide, vector_wrappers.ClipAction)
        rescaled = Vector(wide, lambda venv: vector_wrappers.RescaleAction(venv, np.float32(-1), np.float32(1)))
    assert_reads(clipped, 10 * ACTIONS, np.clip(10 * ACTIONS, -2, 2) / 2)
    assert_reads(rescaled, ACTIONS, ACTIONS)
    with pytest.warns(UserWarning, match="TransformAction below .* changes actions"):
        Vector(wide, lambda venv: vector_wrappers.TransformAction(venv, lambda actions: actions / 3))


# ---- the encoder itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_huge_actions_are_clipped_by_every_backend(action_model, backend):
    frames = np.random.default_rng(0).integers(0, 256, (8, 2, 64, 64, 3), dtype=np.uint8)
    huge, one = (ContextEncoder(action_model, 2, "cpu", backend) for _ in range(2))
    for frame in frames:
        contexts = huge.push(frame, np.array([[1e300] * 6, [-1e30] * 6]))
        expected = one.push(frame, np.array([[1.0] * 6, [-1.0] * 6]))
        np.testing.assert_array_equal(contexts, expected)
    assert np.isfinite(contexts).all()


# ---- frames and rewards by value ------------------------------------------------------------------------------


class OneBuffer(VecEnvWrapper):
    """Gives the same arrays at every step, as a vector environment may."""

    def reset(self):
        self.frames = self.venv.reset()
        return self.frames

    def step_wait(self):
        frames, rewards, dones, infos = self.venv.step_wait()
        self.frames[:] = frames
        return self.frames, rewards, dones, infos


def test_frames_seen_are_kept_by_value():
    shell = Sb3(Painted, OneBuffer)
    shell.reset()
    seen = [shell.env.seen]
    for action in ACTIONS[:3]:
        actions = action[None].copy()
        _, rewards, _, _ = shell.env.step(actions)
        actions[:], rewards[:] = 9, -1
        seen.append(shell.env.seen)
    for step, each in enumerate(seen):
        np.testing.assert_array_equal(each.frames[0], painted_frame(step))
    np.testing.assert_array_equal([each.actions[0] for each in seen[1:]], ACTIONS[:3])
    assert [each.rewards.tolist() for each in seen[1:]] == [[1], [2], [3]]


def play_twice(shell: Any) -> None:
    for _ in range(2):
        play(shell, ACTIONS)


@pytest.mark.parametrize("shell", [Vector, Sb3])
def test_a_last_frame_that_the_reset_has_destroyed_is_said_once(shell):
    shell = shell(lambda: Painted(one_buffer=True))
    with pytest.warns(UserWarning, match="draw all frames into one buffer") as caught:
        play_twice(shell)
    assert len([each for each in caught if "one buffer" in str(each.message)]) == 1


@pytest.mark.parametrize("shell", [Vector, Sb3])
@pytest.mark.parametrize("make", [Painted, lambda: Painted(length=1)], ids=["moving", "one step"])
def test_whole_last_frames_raise_no_alarm(shell, make):
    shell = shell(make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(shell, ACTIONS)


def test_the_baseline_of_principal_components_says_it_too():
    class Noise:
        pixels = np.stack([painted_frame(step) for step in range(12)])

    venv = VecFramePCA(DummyVecEnv([lambda: Painted(one_buffer=True)]), FramePCA.fit([Noise()], 4, seed=0))
    venv.reset()
    for action in ACTIONS[:-1]:
        venv.step(action[None])
    with pytest.warns(UserWarning, match="draw all frames into one buffer"):
        venv.step(ACTIONS[-1:])

"""`make_dmc`: the tasks of the dm_control suite as Gymnasium environments that give pixels."""

import math
from typing import Any, Literal, SupportsFloat, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils import EzPickle

from envs.dmc.gl import before_render, choose_backend
from envs.dmc.random_init import randomise_start
from envs.dmc.state import StateReader
from envs.dmc.tasks import env_id, resolve_action_repeat, resolve_camera, split_task
from perceiver_obs.actions import UNBOUNDED
from perceiver_obs.settings import whole_number

RenderQuality = Literal["standard", "fast", "smooth"]
RENDER_QUALITIES = get_args(RenderQuality)
SUPERSAMPLING = 4  # of "smooth", in height and width
MAX_SIZE = 4096


def make_dmc(
    task: str = "walker-walk",
    *,
    size: int = 64,
    camera: int | str | None = None,
    action_repeat: int | str | None = None,
    render_quality: RenderQuality = "smooth",
    seed: int | None = None,
    state_in_info: bool = False,
) -> gymnasium.Env:
    """Make a task of the dm_control suite that is seen through a camera.

    Observations are frames, uint8 `[size, size, 3]`, a fresh contiguous array each step. Actions are float32 in
    [-1, 1], whatever the task's own range (actuators without limits take them as they are). Rewards add up over
    the repeats; the end of the episode stops the repeat. The task's time limit is a truncation. The
    defaults are settings that the bundled model knows.

    Args:
        task: "domain-task", such as "walker-walk" or "ball_in_cup-catch".
        size: height and width of the frames in pixels, 1 to 4096 ("smooth": to 1024).
        camera: name or number of one of the task's cameras, -1 for MuJoCo's free camera; None for the one
            customary in pixel benchmarks (number 0; for quadruped 2).
        action_repeat: control steps per environment step. "planet" takes the DMControl-100k table (cartpole 8;
            reacher, cheetah, ball_in_cup 4; finger, walker 2) and refuses other domains; None takes it too, and 2
            for these.
        render_quality: "smooth" is "fast" at four times the size, averaged, so that what moves by part of a pixel is
            seen to move; "fast" is without shadows and multisampling, twice as fast as "smooth" in software;
            "standard" is MuJoCo's own, and the slowest there. Frames differ: keep to one of them between pretraining
            and use.
        seed: what the first `reset()` uses where it is given no seed of its own.
        state_in_info: put the true state, float32 `[S]`, into `info["state"]`; `state_names(env)` names its entries.

    Raises:
        ValueError: an argument is not one of the above; the message names it and what is allowed.
        RuntimeError: there is no OpenGL library to render with.
    """
    split_task(task)
    kwargs: dict[str, Any] = {
        "size": size,
        "camera": camera,
        "action_repeat": action_repeat,
        "render_quality": render_quality,
        "seed": seed,
        "state_in_info": state_in_info,
    }
    # As Python numbers, because NumPy's do not survive the JSON of `env.spec`.
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in kwargs.items()}
    return gymnasium.make(env_id(task), **plain)


def state_names(env: gymnasium.Env) -> tuple[str, ...]:
    """Names of the entries of `info["state"]`, such as "position/rooty_cos" or "velocity/right_hip"."""
    return env.get_wrapper_attr("state_names")


class DmcEnv(gymnasium.Env[np.ndarray, np.ndarray], EzPickle):
    """A dm_control task behind shimmy's adapter; the arguments are those of `make_dmc`.

    `reset(options={"random_init": True})` starts from a random pose in motion instead of the task's own start.

    Attributes:
        state_names, state_units: of the entries of `info["state"]`.
        frame_contract: what a model must be shown to see what it was trained on: size, channels, action_repeat,
            camera (its number), render_quality, tasks.
        action_size: entries of an action.
        state_in_info: whether `info["state"]` is there.
        max_steps: environment steps until the task's time limit, None where there is none.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        task: str = "walker-walk",
        size: int = 64,
        camera: int | str | None = None,
        action_repeat: int | str | None = None,
        render_quality: RenderQuality = "smooth",
        seed: int | None = None,
        state_in_info: bool = False,
        render_mode: str = "rgb_array",
    ):
        EzPickle.__init__(self, task, size, camera, action_repeat, render_quality, seed, state_in_info, render_mode)
        domain, name = split_task(task)
        if render_quality not in RENDER_QUALITIES:
            raise ValueError(f"render_quality must be one of {RENDER_QUALITIES}, got {render_quality!r}")
        self._samples = SUPERSAMPLING if render_quality == "smooth" else 1
        self._size = whole_number("size", size, 1, MAX_SIZE // self._samples)
        self._action_repeat = resolve_action_repeat(action_repeat, domain)
        if render_mode != "rgb_array":
            raise ValueError(f"render_mode must be 'rgb_array', got {render_mode!r}")
        self._first_seed = None if seed is None else whole_number("seed", seed, 0)
        self.render_mode = render_mode

        choose_backend()
        try:
            from dm_control import suite
            from shimmy.dm_control_compatibility import DmControlCompatibilityV0
        except ModuleNotFoundError as error:
            raise ImportError(
                f"tasks of dm_control need {error.name}, which pip leaves out from Python 3.13 on; docs/install.md "
                "has the way: pip install --no-deps dm-control, and what that needs"
            ) from error

        control = suite.load(domain, name)
        self._env = DmControlCompatibilityV0(control)
        self._physics = control.physics
        self._camera_id = resolve_camera(camera, domain, self._physics.model)
        self._set_rendering(render_quality)
        self._camera: Any = None
        self._frame: np.ndarray | None = None
        self._ended = True

        low, high = self._env.action_space.low, self._env.action_space.high
        bounded = (low > -UNBOUNDED) & (high < UNBOUNDED)
        self._action_centre = np.where(bounded, (high + low) / 2, 0.0)
        self._action_reach = np.where(bounded, (high - low) / 2, 1.0)
        self.action_size = len(low)
        self.action_space = spaces.Box(-1.0, 1.0, (self.action_size,), np.float32)
        self.observation_space = spaces.Box(0, 255, (self._size, self._size, 3), np.uint8)
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": _tidy(1 / (control.control_timestep() * self._action_repeat)),
        }
        limit = control._step_limit / self._action_repeat
        self.max_steps = None if math.isinf(limit) else math.ceil(limit - 1e-9)
        self.state_in_info = state_in_info
        self._read_state = StateReader(self._physics, task, self._camera_id)
        self.state_names, self.state_units = self._read_state.names, self._read_state.units
        self.frame_contract: dict[str, Any] = {
            "size": self._size,
            "channels": 3,
            "action_repeat": self._action_repeat,
            "camera": self._camera_id,
            "render_quality": render_quality,
            "tasks": [task],
        }

    def rollout_meta(self, states: bool) -> dict[str, Any]:
        """What the metadata of a dataset of this environment's episodes says of it; with or without states."""
        contract = self.frame_contract
        kwargs = {name: contract[name] for name in ("size", "camera", "action_repeat", "render_quality")}
        return {
            "env": {"id": env_id(contract["tasks"][0]), "kwargs": kwargs},
            "frame_contract": contract,
            "action_size": self.action_size,
            "state_names": list(self.state_names) if states else None,
        }

    @property
    def physics(self) -> Any:
        """The dm_control `Physics`, for looking at; environments are stepped by `step` alone."""
        return self._physics

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; `seed` may be any non-negative integer."""
        if self._physics is None:
            raise ClosedEnvironmentError("reset() after close()")
        if seed is None:
            seed, self._first_seed = self._first_seed, None
        super().reset(seed=seed)
        if seed is not None:
            self._first_seed = None
            self._env.np_random = _random_state(seed)
        self._env.reset()
        if options and options.get("random_init"):
            randomise_start(self._physics, self._env.np_random)
        self._ended = False
        self._frame = self._render_frame()
        return self.render(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Apply `action`, float `[A]` in [-1, 1] (clipped), for up to `action_repeat` control steps.

        Raises:
            ValueError: the action has another shape, or is not finite.
            gymnasium.error.ResetNeeded: the episode is over.
        """
        if self._ended:
            raise ResetNeeded("the episode is over (or has not begun): call reset() before step()")
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise ValueError(f"expected a finite action of shape {self.action_space.shape}, got {action!r}")
        control = self._action_centre + self._action_reach * np.clip(action, -1.0, 1.0)
        total, terminated, truncated = 0.0, False, False
        for _ in range(self._action_repeat):
            _, reward, terminated, truncated, _ = self._env.step(control)
            total += float(reward)
            if terminated or truncated:
                break
        self._ended = terminated or truncated
        self._frame = self._render_frame()
        return self.render(), total, terminated, truncated, self._info()

    def render(self) -> np.ndarray:
        """The frame last observed, uint8 `[size, size, 3]`, as a copy."""
        if self._frame is None:
            raise ResetNeeded("there is nothing to render before the first reset()")
        return self._frame.copy()

    def close(self) -> None:
        """Free the OpenGL context and the simulation; may be called twice."""
        if self._camera is not None:
            self._camera.scene.free()
            self._camera = None
        if self._physics is not None:
            self._env.close()
            self._physics, self._ended = None, True

    def _info(self) -> dict[str, Any]:
        return {"state": self._read_state(self._physics)} if self.state_in_info else {}

    def _render_frame(self) -> np.ndarray:
        before_render()
        if self._camera is None:
            # Made at the first render, so that a process which only looks at the spaces can still be forked, and
            # kept, because making one costs as much as a fast render.
            from dm_control.mujoco import engine

            size = self._size * self._samples
            self._camera = engine.Camera(self._physics, size, size, self._camera_id)
        frame = self._camera.render()
        # The camera reuses its buffer and gives a view of it with negative strides, which torch refuses.
        return frame.copy(order="C") if self._samples == 1 else _average(frame, self._samples)

    def _set_rendering(self, render_quality: str) -> None:
        """Settings that MuJoCo reads when it makes the OpenGL context, at the first render."""
        visual = self._physics.model.vis
        visual.global_.offwidth = self._size * self._samples
        visual.global_.offheight = self._size * self._samples
        if render_quality != "standard":
            visual.quality.shadowsize = 0
            visual.quality.offsamples = 0


def _average(frame: np.ndarray, samples: int) -> np.ndarray:
    """Means of squares of `samples` x `samples` pixels, rounded."""
    size = len(frame) // samples
    columns = frame.reshape(size, samples, -1).sum(axis=1, dtype=np.uint16).reshape(size, size, samples, 3)
    total = sum(columns[:, :, sample] for sample in range(samples))  # in turn, which is many times as fast as NumPy's
    return ((total + samples**2 // 2) // samples**2).astype(np.uint8)


def _random_state(seed: int) -> np.random.RandomState:
    """dm_control's own stream for a seed; seeds that `RandomState` refuses (2³² and up) get streams of their own."""
    if seed < 2**32:
        return np.random.RandomState(seed)
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))


def _tidy(fps: float) -> int | float:
    return round(fps) if abs(fps - round(fps)) < 1e-6 else fps

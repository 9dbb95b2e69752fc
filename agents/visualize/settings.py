"""Settings of `watch` and `generate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from envs.dmc.environment import RenderQuality
from envs.pictures import Fit


@dataclass
class SeenEnvSettings:
    """A task or any environment, to be seen as a policy, data or a model knows it where that is left open."""

    task: str = "walker-walk"
    """Task of the dm_control suite, as domain-task."""
    env: str | None = None
    """Id of any Gymnasium environment instead of a task, such as "Pendulum-v1"; "module:ID" imports a module that
    registers it."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of that environment, as key=value (values as in JSON or Python), or one JSON object."""
    frames_from: str | None = None
    """Where frames of --env are: "observation", "render", or the key of an image in a Dict observation.
    None: as the policy was trained with, else the observation or the one image in it, else what is rendered."""
    fit: Fit | None = None
    """How frames of --env that are not square become so: with black bars (letterbox), or cut to the middle (crop).
    None: as the policy was trained with, else letterbox."""
    info_keys: tuple[str, ...] = ()
    """Entries of --env's info, such as "lives", that are part of the state: numbers or arrays of them.
    None named: as the policy was trained with."""
    action_repeat: int | Literal["planet"] | None = None
    """Control steps per environment step, or "planet" for the DMControl-100k table.
    None: as the policy, the data or the model was trained with, else the table, and 2 for tasks that are not in it;
    with --env 1."""
    render_quality: RenderQuality | None = None
    """For tasks. Smooth shows small motion, fast is twice as fast without, standard is MuJoCo's own and slow.
    None: as for action_repeat, else smooth."""
    camera: int | str | None = None
    """For tasks. Name or number of one of the task's cameras. None: as for action_repeat, else the customary one."""
    model: str = "dmc-small"
    """Bundled name or directory of the model, or "hf://owner/name" of the hub."""

    @property
    def env_name(self) -> str:
        """The environment's id, or the task."""
        return self.env or self.task


@dataclass
class WatchSettings(SeenEnvSettings):
    """Watch a task or any environment through a model: an animation of frames, predictions, contexts and the state
    read from them."""

    task: Annotated[Positional[str], arg(metavar="[TASK]")] = "walker-walk"
    """Task of the dm_control suite, as domain-task."""
    policy: str = "correlated"
    """What acts: "random", "correlated", a directory or zip of train-policy, or a "module:Class" of your own.
    Also the .zip of any other SB3 policy on states or pixels. Load only what you trust: these hold pickles."""
    deterministic: bool = True
    """Have a policy of SB3 take its most likely action, as in `evaluate`, instead of a sample, as in `collect`."""
    out: str | None = None
    """File to write: .gif, or .webp, which keeps every colour as it is. None: runs/watch/TASK.gif (or the ID's)."""
    max_steps: int = 200
    """Environment steps to play, unless the episode ends before."""
    horizon: int = 3
    """Steps ahead that are predicted, in one go.
    Beyond what the model was trained on (train-predictor --horizons) it predicts nothing of worth."""
    data: str | None = None
    """Rollouts with states to fit the linear probe of the state on.
    None: episodes are played for it, half of them by the policy, half by correlated noise from random starts."""
    episodes: int = 16
    """How many are played."""
    show: tuple[str, ...] = ()
    """Entries of the state to show, such as "position/slider velocity/slider", up to three of each kind.
    None named: the first that vary."""
    speed: float = 1.0
    """Speed of the animation; 1 is that of the simulation, as far as a GIF can be that fast (50 frames a second)."""
    seed: int = 0
    """Seed of the episodes."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""


@dataclass
class GenerateSettings(SeenEnvSettings):
    """Let a trained model continue an episode under the actions that were taken; writes a picture and a GIF."""

    model: str = "runs/predictor"
    """Bundled name or directory of the model, or "hf://owner/name" of the hub."""
    data: str | None = None
    """Rollout directory that the episode comes from. None: a fresh one of the task or --env, under random actions."""
    out: str = "runs/generate"
    """Directory for future.gif, figures/future.png and a report."""
    episode: int = 0
    """Which episode of the data."""
    start: int = 0
    """First frame to show the model."""
    num_context_frames: int = 8
    """Frames that the model sees."""
    num_frames: int = 32
    """Frames to continue by."""
    goal: bool = False
    """Continue towards the last of these frames, without the actions that led there. For models trained with
    `--condition goal`."""
    mode: Literal["autoregressive", "maskgit"] = "autoregressive"
    """How the tokens of a frame are drawn: all at once, or in rounds with the surest first."""
    steps: int = 8
    """Rounds of mode maskgit."""
    temperature: float = 0.0
    """0 takes the most likely tokens; 1 draws them as likely as the model holds them to be."""
    top_k: int | None = None
    """Draw from the k most likely tokens only."""
    top_p: float | None = None
    """Draw from the smallest set of tokens of this probability only."""
    seed: int = 0
    """Seed of the draws and of a fresh episode."""
    frames_per_second: float = 20.0
    """Speed of the GIF."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("num_context_frames", 1), ("num_frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.data is not None and self.env is not None:
            raise ValueError(f"the episode is one of data or a fresh one of env, got {self.data!r} and {self.env!r}")

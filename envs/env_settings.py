"""`EnvSettings`: which environment a command works in, and how its frames are made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from envs.dmc.environment import DmcEnv, RenderQuality
from envs.frame_observation import FrameObservation, make_env
from envs.pictures import Fit

_OF_DMC = ("camera", "render_quality")
_OF_ANY = ("env_kwargs", "frames_from", "fit", "info_keys")


@dataclass(frozen=True, kw_only=True)
class OwnEnvSettings:
    """Any Gymnasium environment, and where its frames come from."""

    env: str | None = None
    """Id of any Gymnasium environment instead of a task, such as "Pendulum-v1"; "module:ID" imports a module that
    registers it."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of that environment, as key=value (values as in JSON or Python), or one JSON object."""
    frames_from: str = "auto"
    """Where frames of --env are: "observation", "render", or the key of an image in a Dict observation.
    "auto": the observation or the one image in it, else what is rendered."""
    fit: Fit = "letterbox"
    """How frames of --env that are not square become so: with black bars (letterbox), or cut to the middle (crop)."""
    info_keys: tuple[str, ...] = ()
    """Entries of --env's info, such as "lives", that are recorded as part of the state: numbers or arrays of them."""
    size: int = 64
    """Height and width of the frames, pixels."""


@dataclass(frozen=True, kw_only=True)
class EnvSettings(OwnEnvSettings):
    """A dm_control task, or any Gymnasium environment."""

    task: str = "walker-walk"
    """Task of the dm_control suite, as domain-task. For any other environment: --env."""
    action_repeat: int | Literal["planet"] | None = None
    """Environment steps that an action lasts, for tasks control steps; "planet" is the DMControl-100k table.
    None: for tasks that table, and 2 where it has none; 1 with --env. Keep to what the model was trained with."""
    render_quality: RenderQuality = "smooth"
    """For tasks. Smooth shows small motion, fast is twice as fast without, standard is MuJoCo's own and slow.
    Keep to what the model was trained with."""
    camera: int | str | None = None
    """For tasks. Name or number of a camera; None for the customary one. Keep to what the model was trained with."""

    @property
    def env_name(self) -> str:
        """The environment's id, or the task."""
        return self.env or self.task

    @property
    def options(self) -> list[str]:
        """The options of the command line that name the environment: what is not as by default, and what it is."""
        options = [] if self.env is not None else ["--task", self.task]
        for field in fields(EnvSettings):
            value = getattr(self, field.name)
            if field.name != "task" and _plain(value) != _plain(field.default):
                values = value if isinstance(value, tuple | list) else [value]
                options += [f"--{field.name.replace('_', '-')}", *map(str, values)]
        return options

    def make_env(
        self, *, state_in_info: bool, render_quality: RenderQuality | None = None
    ) -> DmcEnv | FrameObservation:
        """Makes the environment; `render_quality` in place of that of the settings.

        Raises:
            ValueError: there is no such environment or task, or a setting is not for it.
        """
        for name in _OF_ANY if self.env is None else _OF_DMC:
            if _plain(getattr(self, name)) != _plain(getattr(EnvSettings, name)):
                kind = "with --env" if self.env is None else "for dm_control tasks"
                raise ValueError(f"{name} works {kind} only, got {getattr(self, name)!r} for {self.env_name}")
        if self.env is None:
            return DmcEnv(
                self.task,
                size=self.size,
                camera=self.camera,
                action_repeat=self.action_repeat,
                render_quality=render_quality or self.render_quality,
                state_in_info=state_in_info,
            )
        if isinstance(self.action_repeat, str):
            raise ValueError(f"action_repeat must be a number for {self.env}, got {self.action_repeat!r}")
        return make_env(
            self.env,
            self.env_kwargs,
            size=self.size,
            frames_from=self.frames_from,
            fit=self.fit,
            action_repeat=self.action_repeat,
            info_keys=self.info_keys,
            state_in_info=state_in_info,
        )


def file_name(env_name: str) -> str:
    """A task or an environment's id without its module, and without directories: "ALE/Pong-v5" is one id."""
    return env_name.rpartition(":")[2].replace("/", "-")


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # of settings that went through JSON

"""The tasks of the dm_control suite by name, and the ids under which Gymnasium finds them.

The table is written out here because reading it from dm_control would import MuJoCo, which settles the OpenGL
backend; `import envs` must leave that open.
"""

import re
from typing import Any

import gymnasium

from perceiver_obs.settings import near_matches, whole_number

_TASKS_BY_DOMAIN = {
    "acrobot": ("swingup", "swingup_sparse"),
    "ball_in_cup": ("catch",),
    "cartpole": ("balance", "balance_sparse", "swingup", "swingup_sparse", "three_poles", "two_poles"),
    "cheetah": ("run",),
    "dog": ("fetch", "run", "stand", "trot", "walk"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("swim", "upright"),
    "hopper": ("hop", "stand"),
    "humanoid": ("run", "run_pure_state", "stand", "walk"),
    "humanoid_CMU": ("run", "stand", "walk"),
    "lqr": ("lqr_2_1", "lqr_6_2"),
    "manipulator": ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
    "pendulum": ("swingup",),
    "point_mass": ("easy", "hard"),
    "quadruped": ("escape", "fetch", "run", "walk"),
    "reacher": ("easy", "hard"),
    "stacker": ("stack_2", "stack_4"),
    "swimmer": ("swimmer15", "swimmer6"),
    "walker": ("run", "stand", "walk"),
}
TASKS = tuple(f"{domain}-{name}" for domain, names in _TASKS_BY_DOMAIN.items() for name in names)

_GYMNASIUM_ID = re.compile(r"(?:[\w.]+:)?(?:[\w-]+/)?[\w.-]+-v\d+")

PLANET_ACTION_REPEAT = {
    "cartpole": 8,
    "reacher": 4,
    "cheetah": 4,
    "ball_in_cup": 4,
    "finger": 2,
    "walker": 2,
}
"""Action repeats of the PlaNet and DMControl-100k benchmarks (Hafner et al. 2019, https://arxiv.org/abs/1811.04551)."""
DEFAULT_ACTION_REPEAT = 2  # where the table of the benchmarks has none
DEFAULT_CAMERAS = {"quadruped": 2}  # as in DrQ-v2: camera 0 looks at the quadruped from far above


def split_task(task: str) -> tuple[str, str]:
    """Domain and task of, say, "ball_in_cup-catch"; an unknown one raises ValueError naming near matches."""
    if task not in TASKS:
        if task in gymnasium.registry or _GYMNASIUM_ID.fullmatch(str(task)):
            raise ValueError(
                f"{task} is no task of the dm_control suite but a Gymnasium environment: --env {task} in collect, "
                f"train-policy and watch, envs.make_env({task!r}) in Python"
            )
        raise ValueError(f"unknown task {task!r}; {near_matches(str(task), TASKS)}")
    domain, name = task.split("-", 1)
    return domain, name


def env_id(task: str) -> str:
    """The id of a task in Gymnasium's registry, "dmc/walker-walk-v0"."""
    return f"dmc/{task}-v0"


def register_ids() -> None:
    """Register every task with Gymnasium; `gymnasium.make("envs:dmc/walker-walk-v0", size=84)` then works."""
    for task in TASKS:
        if env_id(task) not in gymnasium.registry:
            gymnasium.register(env_id(task), entry_point="envs.dmc:DmcEnv", kwargs={"task": task})


def resolve_action_repeat(action_repeat: int | str | None, domain: str) -> int:
    """The number of control steps that `action_repeat` means in a domain."""
    if action_repeat is None:
        return PLANET_ACTION_REPEAT.get(domain, DEFAULT_ACTION_REPEAT)
    if action_repeat == "planet":
        if domain not in PLANET_ACTION_REPEAT:
            raise ValueError(
                f"action_repeat='planet' knows {', '.join(PLANET_ACTION_REPEAT)}, not {domain!r}: give a number"
            )
        return PLANET_ACTION_REPEAT[domain]
    if isinstance(action_repeat, str):
        raise ValueError(f"action_repeat must be a number or 'planet', got {action_repeat!r}")
    return whole_number("action_repeat", action_repeat, 1, 1000)


def resolve_camera(camera: int | str | None, domain: str, model: Any) -> int:
    """The number of the camera that is meant, -1 being MuJoCo's free camera."""
    if camera is None:
        return DEFAULT_CAMERAS.get(domain, 0)
    names = [model.id2name(number, "camera") for number in range(model.ncam)]
    if isinstance(camera, str):
        if camera not in names:
            raise ValueError(f"unknown camera {camera!r} of {domain}; {near_matches(camera, names)}")
        return names.index(camera)
    try:
        return whole_number("camera", camera, -1, model.ncam - 1)
    except ValueError as error:
        raise ValueError(f"{error} (their names: {', '.join(names)})") from None

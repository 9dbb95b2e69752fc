"""The tasks of the dm_control suite by name, and the ids under which Gymnasium finds them.

The table is written out here because reading it from dm_control would import MuJoCo, which settles the OpenGL
backend; `import envs` must leave that open.
"""

import difflib
import re
from collections.abc import Iterable

import gymnasium

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


def split_task(task: str) -> tuple[str, str]:
    """Domain and task of, say, "ball_in_cup-catch"; an unknown one raises ValueError naming near matches."""
    if task not in TASKS:
        if task in gymnasium.registry or _GYMNASIUM_ID.fullmatch(str(task)):
            raise ValueError(
                f"{task} is no task of the dm_control suite but a Gymnasium environment: --env {task} in collect and "
                f"train-policy, envs.make_env({task!r}) in Python"
            )
        raise ValueError(f"unknown task {task!r}; {near_matches(str(task), TASKS)}")
    domain, name = task.split("-", 1)
    return domain, name


def near_matches(word: str, choices: Iterable[str]) -> str:
    """The part of an error message that says what would have been accepted."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known are {', '.join(choices)}"


def env_id(task: str) -> str:
    """The id of a task in Gymnasium's registry, "dmc/walker-walk-v0"."""
    return f"dmc/{task}-v0"


def register_ids() -> None:
    """Register every task with Gymnasium; `gymnasium.make("envs:dmc/walker-walk-v0", size=84)` then works."""
    for task in TASKS:
        if env_id(task) not in gymnasium.registry:
            gymnasium.register(env_id(task), entry_point="envs.dmc:DmcEnv", kwargs={"task": task})

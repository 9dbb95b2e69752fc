"""The recorded true state in coordinates that frames can show, for probes.

A regression from frames cannot read what no frame shows: which half-turn a symmetric body has made, where the target
lies in a scene whose camera travels. Figures would blame the features for it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Columns = dict[str, NDArray[np.float64]]

REACHER_ARM, REACHER_HAND = 0.12, 0.12  # m, from joint to joint to finger tip, in dm_control's reacher.xml
SPINNER_X, SPINNER_Z, SPINNER_TIP = 0.2, 0.4, 0.13  # m, the spinner's hinge and its tip's radius, in finger.xml
HIDDEN_TARGETS = ("finger-spin", "fish-upright")  # dm_control makes these transparent
RIGHT, LEFT = "right_", "left_"

# Joints that slide, by domain of the suite; all others turn.
_SLIDES = {
    "ball_in_cup": r"(cup|ball)_[xz]",
    "cartpole": r"slider",
    "cheetah": r"root[xz]",
    "dog": r"(ball_)?root_[xyz]",
    "fish": r"root_[xyz]",
    "hopper": r"root[xz]",
    "humanoid": r"root_[xyz]",
    "humanoid_CMU": r"root_[xyz]",
    "lqr": r"joint_\d+",
    "manipulator": r"(ball|peg)_[xz]",
    "point_mass": r"root_[xy]",
    "quadruped": r"(ball_)?root_[xyz]",
    "stacker": r"box\d+_[xz]",
    "swimmer": r"root[xy]",
    "walker": r"root[xz]",
}
_SLIDES |= dict.fromkeys(("acrobot", "finger", "pendulum", "reacher"), r"(?!)")
_UNITLESS = re.compile(r"_(cos|sin|q[wxyz])$")
_TARGET = re.compile(r"target_[xyz]$")


@dataclass(frozen=True)
class Coordinate:
    """One dimension of a state that frames can show.

    Attributes:
        name: "position/hinge_cos", "velocity/rootx", "position/right+left_hip".
        unit: "m", "rad", "m/s", "rad/s", or "" where it has none (cosines) or it is not known.
        twins: "sum" or "difference" of two limbs that look alike, "" otherwise.
    """

    name: str
    unit: str
    twins: str = ""


class StateCoordinates:
    """Changes recorded states into coordinates that frames can show; units are kept.

    - reacher: cosine and sine of the wrist's angle for the angle; target relative to the finger tip.
    - finger-spin: cosine and sine of twice the spinner's angle, which looks alike after half a turn.
    - finger-turn: target relative to the spinner's tip, which is drawn there and shows the whole angle.
    - walker: sums (right + left) and differences (right - left) of the legs' angles and velocities.
    - Targets are left out where they are not drawn, and along axes on which the camera travels with the body.

    Whatever else was recorded stays as it is, as do all states of tasks that are not dm_control's.

    Args:
        state_names: what was recorded, as `meta["state_names"]` of a dataset holds it.
        task: the task, as frame contracts name it ("walker-walk"); None where unknown.

    Attributes:
        state_names, task: as given.
        coordinates: positions first, then velocities.
    """

    def __init__(self, state_names: Sequence[str], task: str | None):
        self.state_names, self.task = tuple(state_names), task or ""

    @cached_property
    def coordinates(self) -> tuple[Coordinate, ...]:
        domain = self.task.split("-")[0]
        return tuple(Coordinate(name, _unit(name, domain), _twins(name)) for name in self._columns(np.zeros(len(self))))

    def __len__(self) -> int:
        return len(self.state_names)

    def __call__(self, states: ArrayLike) -> NDArray[np.float64]:
        """Coordinates `[..., K]` of recorded states `[..., S]`."""
        return np.stack(list(self._columns(states).values()), axis=-1)

    def _columns(self, states: ArrayLike) -> Columns:
        values = np.asarray(states, np.float64)
        if values.shape[-1:] != (len(self),):
            raise ValueError(f"expected states of {len(self)} entries, got shape {values.shape}")
        columns = dict(zip(self.state_names, np.moveaxis(values, -1, 0)))
        for hidden in _hidden_targets(columns, self.task):
            del columns[hidden]
        for prefix, change in _CHANGES.items():
            if self.task.startswith(prefix):
                change(columns)
        return dict(sorted(columns.items(), key=lambda item: not item[0].startswith("position/")))


def _hidden_targets(columns: Columns, task: str) -> list[str]:
    """Targets that are not drawn, or that stand in a scene along whose axis the body's position was not recorded."""
    targets = [name for name in columns if _TARGET.search(name)]

    def travels(axis: str) -> bool:
        roots = (f"root{axis}", f"root_{axis}")
        return any(f"velocity/{root}" in columns and not _recorded(columns, root) for root in roots)

    return [name for name in targets if task in HIDDEN_TARGETS or travels(name[-1])]


def _recorded(columns: Columns, joint: str) -> bool:
    return f"position/{joint}" in columns or f"position/{joint}_cos" in columns


def _reacher(columns: Columns) -> None:
    needed = [f"position/{name}" for name in ("shoulder_cos", "shoulder_sin", "wrist", "target_x", "target_y")]
    if not columns.keys() >= set(needed):
        return
    cos, sin, wrist, target_x, target_y = (columns[name] for name in needed)
    wrist_cos, wrist_sin = np.cos(wrist), np.sin(wrist)
    tip_x = REACHER_ARM * cos + REACHER_HAND * (cos * wrist_cos - sin * wrist_sin)
    tip_y = REACHER_ARM * sin + REACHER_HAND * (sin * wrist_cos + cos * wrist_sin)
    _replace(
        columns,
        needed[2:],
        {
            "position/wrist_cos": wrist_cos,
            "position/wrist_sin": wrist_sin,
            "position/finger_to_target_x": target_x - tip_x,
            "position/finger_to_target_y": target_y - tip_y,
        },
    )


def _finger_spin(columns: Columns) -> None:
    needed = ["position/hinge_cos", "position/hinge_sin"]
    if columns.keys() >= set(needed):
        cos, sin = (columns[name] for name in needed)
        doubled = {"position/doubled_hinge_cos": cos**2 - sin**2, "position/doubled_hinge_sin": 2 * sin * cos}
        _replace(columns, needed, doubled)


def _finger_turn(columns: Columns) -> None:
    needed = [f"position/{name}" for name in ("hinge_cos", "hinge_sin", "target_x", "target_z")]
    if columns.keys() >= set(needed):
        cos, sin, x, z = (columns[name] for name in needed)
        relative = {
            "position/tip_to_target_x": x - (SPINNER_X - SPINNER_TIP * sin),
            "position/tip_to_target_z": z - (SPINNER_Z + SPINNER_TIP * cos),
        }
        _replace(columns, needed[2:], relative)


def _twin_legs(columns: Columns) -> None:
    for right in [name for name in columns if f"/{RIGHT}" in name]:
        left = right.replace(RIGHT, LEFT)
        if left in columns:
            kind, limb = right.split(f"/{RIGHT}")
            both = columns[right] + columns[left], columns[right] - columns[left]
            _replace(columns, [right, left], {f"{kind}/right{sign}left_{limb}": v for sign, v in zip("+-", both)})


def _replace(columns: Columns, names: Sequence[str], by: Columns) -> None:
    for name in names:
        del columns[name]
    columns |= by


_CHANGES: dict[str, Callable[[Columns], None]] = {
    "reacher-": _reacher,
    "finger-spin": _finger_spin,
    "finger-turn": _finger_turn,
    "walker-": _twin_legs,
}


def _twins(name: str) -> str:
    return {"+": "sum", "-": "difference"}.get(match[1], "") if (match := re.search(r"/right(.)left_", name)) else ""


def _unit(name: str, domain: str) -> str:
    kind, _, joint = name.partition("/")
    if domain not in _SLIDES or kind not in ("position", "velocity") or _UNITLESS.search(joint):
        return ""
    slides = re.fullmatch(_SLIDES[domain], joint) or (kind == "position" and _TARGET.search(joint))
    return ("m" if slides else "rad") + ("/s" if kind == "velocity" else "")

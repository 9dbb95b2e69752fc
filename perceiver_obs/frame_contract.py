"""`FrameContract`: how frames were made. The one comparison of what is shown with what a model or a dataset knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from gymnasium import logger, spaces

if TYPE_CHECKING:
    from perceiver_obs.causal_perceiver import CausalPerceiverIO

SETTINGS = ("action_repeat", "camera", "render_quality")
FAMILIAR_SHARE = 0.1  # of a task's frames: what fewer show is named as unfamiliar

Setting = int | float | str | None


@dataclass(frozen=True)
class Variant:
    """One way in which frames of one task were made; None is unknown, and fits everything.

    Attributes:
        task: such as "walker-walk".
        action_repeat: control steps from frame to frame.
        camera: its number or name.
        render_quality: such as "smooth".
        frames: how many there are, None where nobody counted.
    """

    task: str | None = None
    action_repeat: Setting = None
    camera: Setting = None
    render_quality: Setting = None
    frames: int | None = None

    @property
    def key(self) -> tuple[Any, Any, Any, Any]:
        """All but the number of frames."""
        return (self.task, self.action_repeat, self.camera, self.render_quality)

    def fits(self, other: Variant) -> bool:
        """Whether both may be made alike."""
        return all(None in pair or pair[0] == pair[1] for pair in zip(self.key, other.key))


@dataclass(frozen=True)
class FrameContract:
    """How frames were made: of one environment, or all the ways that a dataset holds or a model was trained on.

    As JSON it is `{"size": 64, "channels": 3, "tasks": ["walker-walk"], "action_repeat": 2, "camera": 0,
    "render_quality": "smooth"}`. A setting may be a list, of which each is known for each task, and null or absent
    where it is unknown. Where tasks or settings differ, `"seen"` lists the variants one by one, as
    `{"task", "action_repeat", "camera", "render_quality", "frames"}`, and counts for what is compared. Other entries
    are left aside.

    Attributes:
        size: height and width in pixels.
        channels: of a frame.
        variants: sorted, each once.
        data_fingerprint: of the rollouts that a model was trained on.
    """

    size: int | None = None
    channels: int | None = None
    variants: tuple[Variant, ...] = ()
    data_fingerprint: str | None = None

    @classmethod
    def of(cls, stated: Stated) -> FrameContract:
        """From the JSON form; ValueError names what is not of it."""
        if isinstance(stated, FrameContract):
            return stated
        if not isinstance(stated, Mapping):
            raise ValueError(f"a frame contract must be a mapping, got {stated!r:.80}")
        if "seen" in stated:
            try:
                variants = [Variant(**each) for each in stated["seen"]]
            except TypeError as error:
                raise ValueError(f"'seen' of a frame contract must list variants: {error}") from None
        else:
            values = [_values(stated, name) for name in ("tasks", *SETTINGS)]
            variants = [Variant(*key) for key in product(*values)]
        size, channels = stated.get("size"), stated.get("channels")
        for number in (size, channels, *(variant.frames for variant in variants)):
            if not isinstance(number, int | None):
                raise ValueError(f"sizes and counts of a frame contract must be integers, got {number!r:.80}")
        for setting in (value for variant in variants for value in variant.key):
            if not isinstance(setting, Setting):
                raise ValueError(f"settings of a frame contract must be numbers or names, got {setting!r:.80}")
        return cls(size, channels, _merged(variants), stated.get("data_fingerprint"))

    @classmethod
    def join(cls, contracts: Iterable[FrameContract], data_fingerprint: str | None = None) -> Self:
        """All that is in any of them; ValueError where sizes or channels differ."""
        contracts = list(contracts)
        shape: dict[str, int | None] = {}
        for name in ("size", "channels"):
            values = {getattr(each, name) for each in contracts} - {None}
            if len(values) > 1:
                raise ValueError(f"frames of {name} {' and '.join(map(str, sorted(values)))} do not go together")
            shape[name] = next(iter(values), None)
        variants = _merged(variant for each in contracts for variant in each.variants)
        return cls(shape["size"], shape["channels"], variants, data_fingerprint)

    @property
    def tasks(self) -> list[str]:
        """Those that are known, sorted."""
        return sorted({variant.task for variant in self.variants if variant.task is not None})

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`, of RGB where nothing else is known; ValueError where the size is not known."""
        if self.size is None:
            raise ValueError("the frame contract does not say how large frames are")
        return (3 if self.channels is None else self.channels, self.size, self.size)

    def only(self, setting: str) -> Setting:
        """The one value of a setting, None where it is unknown or there are several."""
        values = {getattr(variant, setting) for variant in self.variants}
        return values.pop() if len(values) == 1 else None

    def counted(self, frames: int) -> FrameContract:
        """The same of so many frames, in equal parts."""
        share = frames // max(1, len(self.variants))
        return replace(self, variants=tuple(replace(variant, frames=share) for variant in self.variants))

    def commonest(self, task: str) -> Variant:
        """What most frames of a task show, or most of all where the task is not among them."""
        of_task = [each for each in self.variants if each.task == task] or self.variants or (Variant(),)
        return max(of_task, key=lambda variant: variant.frames or 0)

    def to_json(self) -> dict[str, Any]:
        """The JSON form, in plain values."""
        stated: dict[str, Any] = {"size": self.size, "channels": self.channels, "tasks": self.tasks or None}
        for name in SETTINGS:
            values = _sorted({getattr(variant, name) for variant in self.variants})
            stated[name] = values[0] if len(values) == 1 else (values or None)
        if len(self.variants) > 1 or any(variant.frames is not None for variant in self.variants):
            stated["seen"] = [asdict(variant) for variant in self.variants]
        if self.data_fingerprint is not None:
            stated["data_fingerprint"] = self.data_fingerprint
        return stated

    def differences(self, shown: FrameContract, holder: str = "the model was trained with") -> list[str]:
        """What in `shown` is not known here, in words; empty where all of it is.

        A variant that makes up less than a tenth of its task's frames counts as unknown. What one side leaves open
        is not compared.

        Args:
            shown: what an environment shows, or other rollouts hold.
            holder: who knows what is in this contract, as in "size is 84, the model was trained with 64".
        """
        differences = [
            f"{name} is {getattr(shown, name)}, {holder} {getattr(self, name)}"
            for name in ("size", "channels")
            if None not in (getattr(self, name), getattr(shown, name)) and getattr(self, name) != getattr(shown, name)
        ]
        for variant in shown.variants:
            differences += self._new_in(variant, holder)
        return list(dict.fromkeys(differences))

    def _new_in(self, shown: Variant, holder: str) -> list[str]:
        same_task = [each for each in self.variants if None in (shown.task, each.task) or shown.task == each.task]
        new_task = [] if same_task else [f"task {shown.task} is new, {holder} {', '.join(self.tasks)}"]
        candidates = same_task or list(self.variants)
        if not candidates:
            return []
        familiar = [each for each in candidates if self._is_familiar(each)]
        settings = replace(shown, task=None)
        if any(settings.fits(each) for each in familiar):
            return new_task
        differences = []
        for name in SETTINGS:
            value, known = getattr(shown, name), {getattr(each, name) for each in familiar}
            if value is not None and None not in known and value not in known:
                frames = {each: each.frames or 0 for each in candidates}
                alike = sum(count for each, count in frames.items() if getattr(each, name) == value)
                rare = f" (and hardly with that: {alike / sum(frames.values()):.1%} of its frames)" if alike else ""
                differences.append(f"{name} is {value!r}, {holder} {' or '.join(map(repr, _sorted(known)))}{rare}")
        if not differences:
            together = ", ".join(f"{name}={getattr(shown, name)!r}" for name in SETTINGS)
            differences.append(f"{together} is new together, {holder} each alone")
        return differences + new_task

    def _is_familiar(self, variant: Variant) -> bool:
        frames = [each.frames for each in self.variants if each.task == variant.task and each.frames is not None]
        return variant.frames is None or variant.frames >= FAMILIAR_SHARE * sum(frames)


Stated = Mapping[str, Any] | FrameContract


def warn_of_unfamiliar_frames(stated: Sequence[Stated | None], model: CausalPerceiverIO) -> list[FrameContract | None]:
    """Warns, once, where frames are not what a model knows: contexts are still computed, but from unfamiliar frames.

    Args:
        stated: the frame contract of each row, None of one that states none.
        model: what reads the frames.

    Returns:
        the contracts.

    Raises:
        ValueError: a contract is malformed.
    """
    known = FrameContract.of(model.frame_contract)
    shown = [None if each is None else FrameContract.of(each) for each in stated]
    rows_of: dict[str, list[int]] = {}
    for row, contract in enumerate(shown):
        for difference in _unstated(model) if contract is None else known.differences(contract):
            rows_of.setdefault(difference, []).append(row)
    for difference in _between_rows([each for each in shown if each is not None]):
        rows_of[difference] = list(range(len(shown)))
    if rows_of:
        where = {difference: _where(rows, len(shown)) for difference, rows in rows_of.items()}
        words = "; ".join(f"{difference}{where[difference]}" for difference in rows_of)
        logger.warn("%s", f"the frames may not be what the model was trained on: {words}")
    return shown


def check_pixel_range(space: spaces.Box, name: str) -> None:
    """Raises ValueError unless values of an image space mean 0 (black) to 255."""
    if (space.low != 0).any() or (space.high != 255).any():
        raise ValueError(
            f"{name} must hold frames from 0 to 255, its space goes from {space.low.min()} to {space.high.max()}; "
            "rescale them, or correct the space where it is wrong (gymnasium.wrappers.TransformObservation)"
        )


def _values(stated: Mapping[str, Any], name: str) -> list[Any]:
    value = stated.get(name)
    if isinstance(value, list | tuple | set | frozenset):
        values = list(value) or [None]
    else:
        values = [value]
    return [each.item() if isinstance(each, np.generic) else each for each in values]


def _merged(variants: Iterable[Variant]) -> tuple[Variant, ...]:
    frames: dict[tuple[Any, Any, Any, Any], int | None] = {}
    for each in variants:
        before = frames.get(each.key, 0)
        frames[each.key] = None if before is None or each.frames is None else before + each.frames
    ordered = sorted(frames, key=lambda key: [_order(value) for value in key])
    return tuple(Variant(*key, frames[key]) for key in ordered)


def _sorted(values: Iterable[Setting]) -> list[Setting]:
    return sorted(values, key=_order)


def _order(value: Setting) -> tuple[Any, ...]:
    return (value is None, isinstance(value, str), 0 if value is None else value)


def _unstated(model: CausalPerceiverIO) -> list[str]:
    """What is said of an environment without a contract: a bundled model knows the tasks of its training alone."""
    if model.bundled_name is None:
        return []
    tasks = ", ".join(FrameContract.of(model.frame_contract).tasks)
    return [
        f"the environment states no frame_contract, and {model.bundled_name} saw {tasks} alone; train a model on "
        "frames of your own (perceiver-obs train-predictor --begin-with), or give the environment a frame_contract"
    ]


def _between_rows(shown: Sequence[FrameContract]) -> list[str]:
    """How rows that show the same task differ."""
    first: dict[str, FrameContract] = {}
    differences: list[str] = []
    for contract in shown:
        before = first.setdefault("+".join(contract.tasks), contract)
        differences += [f"rows differ: {each}" for each in before.differences(contract, "another row has")]
    return list(dict.fromkeys(differences))


def _where(rows: Sequence[int], num_rows: int) -> str:
    if len(rows) == num_rows:
        return ""
    return f" (row {rows[0]})" if len(rows) == 1 else f" (rows {', '.join(map(str, rows))})"

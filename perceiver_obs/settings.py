"""Settings of a job: one dataclass that the command line, a JSON file and `--help` share."""

import dataclasses
import difflib
import inspect
import json
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_type_hints

from perceiver_obs.presets import PRESETS, preset

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")
Backend = Literal["auto", "torch", "onnx"]
"""What computes contexts: PyTorch, ONNX Runtime, or the latter on a CPU alone."""


def resumable(default: Any) -> Any:
    """A settings field that does not influence the result, so a run may be resumed with another value."""
    return dataclasses.field(default=default, metadata={"resumable": True})


@dataclass
class DefaultsFrom:
    """Where the defaults of a command's settings come from, if not from the code."""

    settings: Path | None = None
    """A JSON file of settings by name."""
    preset: str | None = None
    """Sizes of models by name (`perceiver_obs.presets`); the file's come before them."""


def parse_settings(settings_type: type[Settings], arguments: Sequence[str], prog: str) -> Settings:
    """Settings from the command line; its errors and `--help` exit as tyro does.

    `--settings FILE.json` gives defaults that the options override, and so does `--preset NAME` where the settings
    have sizes.
    """
    import tyro

    default, arguments = take_defaults(settings_type, arguments, prog)
    return tyro.cli(
        settings_type, prog=prog, description=describe(settings_type), default=default, args=list(arguments)
    )


def take_defaults(settings_type: type[Settings], arguments: Sequence[str], prog: str) -> tuple[Settings, list[str]]:
    """The defaults that `--settings` and `--preset` give, and the arguments without these two.

    Raises:
        ValueError: the file is no JSON object or holds what the settings do not know, or there is no such preset.
    """
    import tyro

    source, rest = tyro.cli(DefaultsFrom, prog=prog, args=list(arguments), return_unknown_args=True, add_help=False)
    values = {} if source.preset is None else _preset_sizes(settings_type, source.preset)
    default = settings_type(**values)
    if source.settings is not None:
        try:
            values = read_json(source.settings)
            values = values.get("settings", values)  # of a record such as policy.json, those in it
            default = dataclasses.replace(default, **checked_values(settings_type, values))
        except ValueError as error:
            raise ValueError(f"{source.settings}: {error}") from error
    return default, rest


def describe(settings_type: type) -> str:
    """What `--help` says above the options."""
    said = f"{settings_type.__doc__}\n--settings FILE.json gives defaults that the options override."
    return f"{said} So does --preset NAME, one of {', '.join(PRESETS)}." if _sizes(settings_type) else said


def _sizes(settings_type: Any) -> set[str]:
    """The settings that presets give, where there are any."""
    known = {field.name for field in dataclasses.fields(settings_type)}
    return known & set().union(*PRESETS.values())


def _preset_sizes(settings_type: Any, name: str) -> dict[str, Any]:
    if not (sizes := _sizes(settings_type)):
        raise ValueError("--preset is for train-tokenizer and train-predictor: nothing else here has sizes")
    return {size: value for size, value in preset(name).items() if size in sizes}


def checked_values(settings_type: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Settings from JSON in their own types; ValueError names the first that is unknown or of another type."""
    import typeguard

    types = get_type_hints(settings_type)
    known = [field.name for field in dataclasses.fields(settings_type)]
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"unknown setting {name!r}; {near_matches(name, known)}")
        if isinstance(value, list):
            value = tuple(value)
        if isinstance(value, str) and Path in (types[name], *get_args(types[name])):
            value = Path(value)
        try:
            checked[name] = typeguard.check_type(value, types[name])
        except typeguard.TypeCheckError as error:
            expected = inspect.formatannotation(types[name])
            raise ValueError(f"{name} must be of type {expected}, got {values[name]!r}") from error
    return checked


def settings_to_dict(settings: Any) -> dict[str, Any]:
    """Settings as JSON holds them: tuples become lists, paths texts."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError names the file if it holds anything else."""
    path = Path(path)
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


def check_same_inputs(saved: dict[str, str], current: dict[str, str], where: str) -> None:
    """Raises ValueError naming the first input (data, tokenizer) that is not what a run was begun with."""
    for name, fingerprint in current.items():
        if saved.get(name) != fingerprint:
            raise ValueError(f"{where} was begun with other {name} than there is now; choose another output directory")


def check_same_settings(saved: Mapping[str, Any], settings: Any, where: str, fixed: Collection[str] = ()) -> None:
    """Raises ValueError naming the settings in which a run to be resumed differs from its beginning.

    Settings that are `resumable` may differ, except those in `fixed`. What the run's version did not know has its
    default there.
    """
    before = settings_to_dict(type(settings)()) | dict(saved)
    if changes := setting_changes(before, settings_to_dict(settings), resumable_names(settings) - set(fixed)):
        raise ValueError(
            f"{where} was begun with other settings ({changes}); "
            "resume with the same settings or choose another output directory"
        )


def setting_changes(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> str:
    """Where settings as JSON differ, as "seed was 0, is 1", those in `free` left out; empty where nowhere."""
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed if name not in free)


def resumable_names(settings: Any) -> set[str]:
    """The settings with which a run may be resumed that began with others."""
    return {field.name for field in dataclasses.fields(settings) if field.metadata.get("resumable")}


def whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int, if it is one from `low` to `high`."""
    expected = f"an integer of {low} or more" if high is None else f"an integer from {low} to {high}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be {expected}, got {value!r}") from None
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return number


def near_matches(word: str, choices: Iterable[str]) -> str:
    """The part of an error message that says what would have been accepted."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known are {', '.join(choices)}"

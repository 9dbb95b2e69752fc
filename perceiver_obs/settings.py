"""Settings of a job: one dataclass that the command line, a JSON file and `--help` share."""

import dataclasses
import difflib
import json
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from perceiver_obs.presets import PRESETS, preset

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")
Backend = Literal["auto", "torch", "onnx"]
"""What computes contexts: PyTorch, ONNX Runtime, or the latter on a CPU alone."""


def resumable(default: Any) -> Any:
    """A settings field that does not influence the result, so a run may be resumed with another value."""
    return dataclasses.field(default=default, metadata={"resumable": True})


def positional(default: Any) -> Any:
    """A settings field that may come first on the command line without its name; one of a class at most."""
    return dataclasses.field(default=default, metadata={"positional": True})


def implicit(default: Any, value: str) -> Any:
    """A settings field whose option has `value` where it stands alone on the command line."""
    return dataclasses.field(default=default, metadata={"implicit": value})


def parse_settings(settings_type: type[Settings], arguments: Sequence[str], prog: str) -> Settings:
    """Settings from command line arguments.

    `--settings FILE.json` gives defaults that the others override, and so does `--preset NAME` where the settings
    have fields of its (`perceiver_obs.presets`).
    """
    import tyro

    file, arguments = _take_option("--settings", list(arguments))
    name, arguments = _take_option("--preset", arguments)
    from_file = settings_arguments(settings_type, read_json(file)) if file else []
    if name is not None:
        from_file = [*_preset_arguments(settings_type, name), *from_file]
    for field in dataclasses.fields(settings_type):
        if value := field.metadata.get("implicit"):
            arguments = _give_value(f"--{field.name}", value, arguments)
    unnamed = [f"--{f.name}" for f in dataclasses.fields(settings_type) if f.metadata.get("positional")]
    if arguments and not arguments[0].startswith("-"):
        arguments = [*unnamed, *arguments]
    description = f"{settings_type.__doc__}\n--settings FILE.json gives defaults that the options override."
    if {"base_channels", "num_latents"} & {field.name for field in dataclasses.fields(settings_type)}:
        description += f" So does --preset NAME, one of {', '.join(PRESETS)}."
    return tyro.cli(settings_type, prog=prog, description=description, args=[*from_file, *arguments])


def _take_option(flag: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}="), arguments[:place] + arguments[place + 1 :]
        if argument == flag:
            if place + 1 == len(arguments):
                raise ValueError(f"{flag} needs a value")
            return arguments[place + 1], arguments[:place] + arguments[place + 2 :]
    return None, arguments


def _give_value(flag: str, value: str, arguments: list[str]) -> list[str]:
    """The arguments in which a flag that stands alone has a value."""
    for place, argument in enumerate(arguments):
        if argument == flag and (place + 1 == len(arguments) or arguments[place + 1].startswith("--")):
            return [*arguments[: place + 1], value, *arguments[place + 1 :]]
    return arguments


def _preset_arguments(settings_type: type, name: str) -> list[str]:
    known = {field.name for field in dataclasses.fields(settings_type)}
    chosen = {size: value for size, value in preset(name).items() if size in known}
    if not chosen:
        raise ValueError("--preset is for train-tokenizer and train-predictor: nothing else here has sizes")
    return settings_arguments(settings_type, chosen)


def settings_arguments(settings_type: type, values: dict[str, Any]) -> list[str]:
    """The command line that says what `values` say, so that a file is checked just as a command line is."""
    known = [field.name for field in dataclasses.fields(settings_type)]
    arguments = []
    for name, value in values.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
            raise ValueError(f"unknown setting {name!r}{hint}")
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            arguments += [f"--{flag}", *map(str, value)]
        elif isinstance(value, dict):
            arguments += [f"--{flag}", *(str(part) for pair in value.items() for part in pair)]
        else:
            arguments.append(f"--{flag}={value}")
    return arguments


def settings_to_dict(settings: Any) -> dict[str, Any]:
    """Settings as JSON would hold them (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


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


def check_same_settings(saved: dict[str, Any], settings: Any, where: str) -> None:
    """Raises ValueError naming the first setting in which a run to be resumed differs from its beginning."""
    current = settings_to_dict(settings)
    free = {f.name for f in dataclasses.fields(settings) if f.metadata.get("resumable")}
    for name in sorted((saved.keys() | current.keys()) - free):
        before, now = saved.get(name, "(absent)"), current.get(name, "(absent)")
        if before != now:
            raise ValueError(
                f"{where} was begun with {name}={before!r}, not {now!r}; "
                f"resume with the same settings or choose another output directory"
            )


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

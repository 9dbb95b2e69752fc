"""Checking the arguments of `make_dmc`; every error names the value and what is allowed."""

import operator
from typing import Any

from envs.tasks import PLANET_ACTION_REPEAT, near_matches

DEFAULT_ACTION_REPEAT = 2  # where the table of the benchmarks has none
DEFAULT_CAMERAS = {"quadruped": 2}  # as in DrQ-v2: camera 0 looks at the quadruped from far above


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

"""Whether an environment shows its frames the way a model saw them in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import logger

_SETTINGS = ("action_repeat", "camera", "render_quality")


def warn_if_frames_differ(environment: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Warns where two frame contracts disagree: contexts are still computed, but from unfamiliar frames.

    Entries that one side does not have, or leaves open with None, are not compared. Size and channels are no
    matter of warnings: frames of another shape are refused.
    """
    differences = [
        f"{name} is {environment[name]!r}, the model was trained with {model[name]!r}"
        for name in _SETTINGS
        if environment.get(name) is not None and model.get(name) is not None and environment[name] != model[name]
    ]
    unseen = sorted(set(environment.get("tasks") or ()) - set(model.get("tasks") or ()))
    if unseen and model.get("tasks"):
        differences.append(f"task {', '.join(unseen)} is new to the model, which saw {', '.join(model['tasks'])}")
    if differences:
        logger.warn(f"the frames are not what the model was trained on: {'; '.join(differences)}")

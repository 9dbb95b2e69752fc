"""What a model was trained on, kept beside its weights: which rollouts, how many frames, and who acted in them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.files import write_atomic

DATA_FILE = "data.json"
UNKNOWN_POLICY = "unknown"


@dataclass(frozen=True)
class OfflineFrames:
    """Frames spent before a policy begins to learn.

    Attributes:
        control_steps: simulator steps, the unit of a policy's budget: environment steps times action repeat.
        rendered: images, which counts the first of every episode too.
        policies: what acted, as `perceiver-obs collect` names it.
    """

    control_steps: int
    rendered: int
    policies: tuple[str, ...]


def describe_datasets(datasets: Sequence[RolloutDataset]) -> list[dict[str, Any]]:
    """An entry a dataset, in plain values; one that comes several times is listed once."""
    return [_describe(dataset) for dataset in dict.fromkeys(datasets)]


def _describe(dataset: RolloutDataset) -> dict[str, Any]:
    contract, collection = dataset.frame_contract, dataset.meta.get("collection", {})
    return {
        "name": dataset.path.name,
        "tasks": contract.tasks or None,
        "episodes": len(dataset),
        "frames": dataset.num_frames,
        "action_repeat": contract.only("action_repeat"),
        "render_quality": contract.only("render_quality"),
        "policy": collection.get("policy", [UNKNOWN_POLICY]),
        "random_init": collection.get("random_init"),
        "max_steps": collection.get("max_steps"),
        "seed": collection.get("seed"),
        "fingerprint": dataset.fingerprint,
    }


def write_data_record(
    directory: str | Path, datasets: Sequence[RolloutDataset], before: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Writes `data.json` into a model's directory; `before` are the entries of what it was made from."""
    entries = {entry["fingerprint"]: entry for entry in (*before, *describe_datasets(datasets))}
    text = json.dumps(list(entries.values()), indent=1) + "\n"
    write_atomic(Path(directory) / DATA_FILE, text.encode())


def read_data_record(directory: str | Path) -> list[dict[str, Any]] | None:
    """The entries of a `data.json`, None where a model's directory has none; ValueError if it is damaged."""
    path = Path(directory) / DATA_FILE
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text())
        offline_frames(entries)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a record of rollout datasets: {error!r}") from error
    return entries


def offline_frames(entries: Sequence[Mapping[str, Any]]) -> OfflineFrames:
    """Adds up the frames of datasets. Where an action repeat is not known, a step counts once."""
    return OfflineFrames(
        control_steps=sum((e["frames"] - e["episodes"]) * (e["action_repeat"] or 1) for e in entries),
        rendered=sum(e["frames"] for e in entries),
        policies=tuple(dict.fromkeys(policy for e in entries for policy in e["policy"])),
    )

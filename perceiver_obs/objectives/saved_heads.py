"""The heads that only training needs, kept beside the model that they trained: a later run takes them up."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from perceiver_obs.files import write_atomic
from perceiver_obs.objectives.latent import LatentObjective, SavedHeads

OBJECTIVE_FILE = "objective.safetensors"
FORMAT_VERSION = 1


def save_heads(directory: str | Path, objective: LatentObjective) -> None:
    """Writes `objective.safetensors`, whole or not at all: every head, and the tasks of its groups."""
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in objective.state_dict().items()}
    metadata = {"format_version": str(FORMAT_VERSION), "tasks": json.dumps(list(objective.targets.tasks))}
    write_atomic(Path(directory) / OBJECTIVE_FILE, save(tensors, metadata))


def read_heads(directory: str | Path) -> SavedHeads | None:
    """What `save_heads` wrote, None where a model's directory has none; ValueError where it is damaged."""
    path = Path(directory) / OBJECTIVE_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format_version") != str(FORMAT_VERSION):
                raise ValueError(
                    f"format version {metadata.get('format_version')}, this version reads {FORMAT_VERSION}"
                )
            tasks = json.loads(metadata["tasks"])
            if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
                raise ValueError(f"tasks must be names, got {tasks!r:.80}")
            return SavedHeads(tasks, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold the heads of an objective: {error}") from error


def take_up_heads(objective: LatentObjective, directory: str | Path) -> str:
    """Goes on from the heads beside a model, where they fit; returns a line that says which, and which are new.

    Raises:
        ValueError: the file is damaged.
    """
    saved = read_heads(directory)
    if saved is None:
        return f"objective heads: {directory} holds none, all are learned anew"
    objective.take_up(saved)
    every, new = [name for name, _ in objective.named_children()], objective.learned_anew()
    text = f"objective heads of {directory}: {', '.join(name for name in every if name not in new) or 'none'} taken up"
    unseen = [
        task or "a task without a name" for task in objective.targets.tasks if task not in saved.tasks or not task
    ]
    if new:
        text += f"; {', '.join(new)} learned anew"
    return text + (f"; new tasks: {', '.join(unseen)}" if unseen else "")

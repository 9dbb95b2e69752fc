"""Checkpoints of a training run: one safetensors file, written atomically, never a pickle.

The file holds the model's tensors as `model.NAME`, AdamW's as `optimizer.PARAMETER|ENTRY`, and as metadata the
format version, step, settings and so on (JSON) with a digest over all of it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from perceiver_obs.files import write_atomic
from perceiver_obs.hub import current_names
from perceiver_obs.settings import check_same_settings, read_json, settings_to_dict
from perceiver_obs.training.settings import current_settings


class RunDirectory:
    """Paths of a run, and its settings.

    Opening a directory that holds a run begun with other settings raises ValueError naming the setting.
    """

    def __init__(self, path: str | Path, settings: Any):
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.token_cache = self.path / "token_cache"
        self.report = self.path / "report.html"
        self.settings_file = self.path / "settings.json"
        if self.settings_file.is_file():
            check_same_settings(current_settings(read_json(self.settings_file)), settings, str(self.path))

    def write_settings(self, settings: Any) -> None:
        """Records the settings the run is under way with."""
        write_atomic(self.settings_file, json.dumps(settings_to_dict(settings), indent=2).encode())


FORMAT_VERSION = 2
READABLE = ("1", "2")  # 1 numbered the optimiser's parameters


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on: all else is a function of the settings and the step.

    Attributes:
        step: optimiser steps done.
        minutes: time spent on them.
        settings: what the run was begun with.
        inputs: fingerprints of what it reads, by name.
        tensors: of model and optimiser.
        format_version: of the file.
    """

    step: int
    minutes: float
    settings: dict[str, Any]
    inputs: dict[str, str]
    tensors: dict[str, Tensor]
    format_version: int = FORMAT_VERSION

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Loads the tensors into a model and an optimiser of the same shapes.

        Where the model has `FORMER_TENSORS`, as `Pretrained` has, those of earlier versions too.
        """
        former = getattr(model, "FORMER_TENSORS", {})
        saved = _without_prefix(self.tensors, "model.")
        model.load_state_dict(current_names(saved, former), strict=True)
        names = _parameter_names(model, optimizer)
        entries: dict[str, dict[str, Tensor]] = {}
        for name, tensor in _without_prefix(self.tensors, "optimizer.").items():
            owner, _, entry = name.rpartition("." if self.format_version == 1 else "|")
            entries.setdefault(owner, {})[entry] = tensor
        if self.format_version == 1:
            numbered = _numbered_names(model, names, saved, former)
            entries = {numbered[int(number)]: entry for number, entry in entries.items()}
        entries = current_names(entries, former)
        state = {number: entries[name] for number, name in enumerate(names) if name in entries}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    settings: dict[str, Any],
    inputs: dict[str, str] | None = None,
    minutes: float = 0.0,
) -> None:
    """Writes a checkpoint; a crash at any moment leaves the former file whole.

    Raises OSError naming the file and the space needed if the disk is full.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = _parameter_names(model, optimizer)
    for number, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{names[number]}|{entry}": tensor for entry, tensor in entries.items()}
    # Clones, because safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    content = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "minutes": minutes,
        "settings": settings,
        "inputs": inputs or {},
    }
    metadata = {name: json.dumps(value) for name, value in content.items()}
    write_atomic(path, save(tensors, {**metadata, "digest": _digest(tensors, metadata)}))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Raises FileNotFoundError if there is none, ValueError if it is cut short, damaged, of another format
    version or not a checkpoint of this library.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"checkpoint {path} is cut short or damaged: {error}") from error
    if missing := {"format_version", "step", "minutes", "settings", "inputs", "digest"} - metadata.keys():
        raise ValueError(f"{path} is not a training checkpoint: it lacks {', '.join(sorted(missing))}")
    if metadata["format_version"] not in READABLE:
        raise ValueError(
            f"checkpoint {path} is of format version {metadata['format_version']}, expected {FORMAT_VERSION}"
        )
    if metadata.pop("digest") != _digest(tensors, metadata):
        raise ValueError(f"checkpoint {path} is damaged: its content does not match its digest")
    content = {name: json.loads(metadata[name]) for name in ("format_version", "step", "minutes", "settings", "inputs")}
    content["settings"] = current_settings(content["settings"])
    return Checkpoint(tensors=tensors, **content)


def state_digest(model: nn.Module) -> str:
    """SHA-256 over every parameter and buffer: equal digests mean bit-identical models."""
    return _digest({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, {})


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of an optimiser's parameters in their order; of those that are not the model's, their number."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [names.get(id(parameter), str(number)) for number, parameter in enumerate(ordered)]


def _numbered_names(
    model: nn.Module, names: list[str], saved: dict[str, Tensor], former: Mapping[str, str | None]
) -> list[str]:
    """The parameters that numbers meant in format 1: those of `names` with what is gone, the predictor's last ones.

    What decays (two axes and more) comes first.
    """
    gone = [name for name in saved if name.startswith(tuple(each for each, now in former.items() if now is None))]
    if not gone:
        return names
    dimensions = {name: parameter.ndim for name, parameter in model.named_parameters()}
    ordered: list[str] = []
    for decays in (True, False):
        of_kind = [name for name in names if (dimensions[name] >= 2) == decays]
        place = 1 + max(number for number, name in enumerate(of_kind) if name.startswith("predictor."))
        of_kind[place:place] = [name for name in gone if (saved[name].ndim >= 2) == decays]
        ordered += of_kind
    return ordered

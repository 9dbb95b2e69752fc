"""Checkpoints of a training run: one safetensors file, written atomically, never a pickle.

The file holds the model's tensors as `model.NAME`, AdamW's as `optimizer.INDEX.NAME`, and as metadata the
format version, step, settings and so on (JSON) with a digest over all of it.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from perceiver_obs.files import write_atomic
from perceiver_obs.settings import check_same_settings, read_json, settings_to_dict


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
            check_same_settings(read_json(self.settings_file), settings, str(self.path))

    def write_settings(self, settings: Any) -> None:
        """Records the settings the run is under way with."""
        write_atomic(self.settings_file, json.dumps(settings_to_dict(settings), indent=2).encode())


FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on: all else is a function of the settings and the step.

    Attributes:
        step: optimiser steps done.
        minutes: time spent on them.
        settings: what the run was begun with.
        inputs: fingerprints of what it reads, by name.
        tensors: of model and optimiser.
    """

    step: int
    minutes: float
    settings: dict[str, Any]
    inputs: dict[str, str]
    tensors: dict[str, Tensor]

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Loads the tensors into a model and an optimiser of the same shapes."""
        model.load_state_dict(_without_prefix(self.tensors, "model."), strict=True)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _without_prefix(self.tensors, "optimizer.").items():
            index, _, entry = name.partition(".")
            state.setdefault(int(index), {})[entry] = tensor
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
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in entries.items()}
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
    if metadata["format_version"] != str(FORMAT_VERSION):
        raise ValueError(
            f"checkpoint {path} is of format version {metadata['format_version']}, expected {FORMAT_VERSION}"
        )
    if metadata.pop("digest") != _digest(tensors, metadata):
        raise ValueError(f"checkpoint {path} is damaged: its content does not match its digest")
    content = {name: json.loads(metadata[name]) for name in ("step", "minutes", "settings", "inputs")}
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

"""Batched streaming contexts over a frozen model: the one place that owns rows, resets and devices."""

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from gymnasium import logger
from torch import Tensor

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.context_space import ContextSpace
from perceiver_obs.devices import choose_device
from perceiver_obs.hub import find_pretrained
from perceiver_obs.isolation import one_thread_if_forked
from perceiver_obs.modules.streaming import StreamingState
from perceiver_obs.onnx_step import OnnxStep
from perceiver_obs.settings import Backend

ModelLike = str | Path | CausalPerceiverIO
Rows = Sequence[int] | np.ndarray | None


class StreamingModel(Protocol):
    """The functional step of both backends: `CausalPerceiverIO` itself, and `OnnxStep`."""

    def init_state(self, batch_size: int) -> Any: ...

    def step(self, frames: Tensor, state: Any, actions: Tensor | None = None) -> tuple[Tensor, Any]: ...


class ContextEncoder:
    """Contexts for a batch of running episodes, one row each.

    The encoder holds a frozen copy of the model: neither `train()`, optimisers nor later changes of a model that
    was passed in reach it. Models given by name are loaded once a process and shared.

    Args:
        model: a bundled name, a directory, "hf://owner/name" of the hub, or a model.
        num_rows: rows N of the batch.
        device: "auto" takes a GPU where there is one, the CPU otherwise; or a torch device.
        backend: what computes the steps: "torch"; "onnx" for ONNX Runtime on the CPU, several times as fast for few
            rows and equal within 1e-4; or "auto": on a GPU PyTorch, on the CPU ONNX Runtime, or PyTorch with a warning
            where that does not work.

    Attributes:
        model: the frozen model.
        backend: "torch" or "onnx", what computes the steps.
        context_dim: width D of the contexts.
        frame_shape: `(H, W, C)` of the frames it reads.
        action_dim: the most action dimensions it reads, or None.
        fingerprint: hash of the weights.
        context_space: that of one context; its fingerprint follows the model.

    Raises:
        FileNotFoundError: no such model.
        ValueError: a broken checkpoint, an unknown or absent device, or `num_rows` below 1; an unknown backend, or
            "onnx" on a device other than the CPU.
        ImportError: the backend is not installed.
    """

    def __init__(
        self,
        model: ModelLike = "dmc-small",
        num_rows: int = 1,
        device: str | torch.device = "auto",
        backend: Backend = "auto",
    ):
        if not isinstance(num_rows, int) or num_rows < 1:
            raise ValueError(f"num_rows must be an integer of 1 or more, got {num_rows!r:.80}")
        if backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")
        self.device = choose_device("cpu" if backend == "onnx" and device == "auto" else device)
        if backend == "onnx" and self.device.type != "cpu":
            raise ValueError(f"backend 'onnx' computes on the CPU, got device {str(device)!r}")
        self.backend: Backend = "torch" if backend == "auto" and self.device.type != "cpu" else backend
        self.num_rows = num_rows
        frozen = frozen_model(model, self.device)
        self.context_space = ContextSpace(frozen.context_dim, fingerprint="")
        self._set_frozen(frozen)

    def set_model(self, model: CausalPerceiverIO) -> None:
        """Go on with a frozen copy of another model that differs in its weights alone; all rows begin anew.

        Raises:
            ValueError: the model is built in another way.
        """
        if {**model.config(), "frame_contract": None} != {**self.model.config(), "frame_contract": None}:
            raise ValueError("only a model of the same configuration can take this one's place, the given one differs")
        self._set_frozen(frozen_model(model, self.device))

    def reset(self, rows: Rows = None) -> None:
        """Begin new episodes: in all rows, in those of a sequence of indices, or where a bool mask `[N]` is True."""
        if rows is None:
            self._state = self._backend.init_state(self.num_rows)
        else:
            mask = torch.zeros(self.num_rows, dtype=torch.bool)
            mask[self._indices(rows)] = True
            self._state = self._state.reset(mask)

    def push(self, frames: np.ndarray, actions: np.ndarray | None = None, rows: Rows = None) -> np.ndarray:
        """Contexts float32 `[N, D]` of the next frames.

        Args:
            frames: uint8 `[N, H, W, C]`.
            actions: `[N, A]` in [-1, 1] (clipped), the action that led to each frame; ignored in rows whose episode
                begins.
            rows: advance only these M rows; frames, actions and contexts then have M entries in their order.

        Raises:
            ValueError: frames, actions or rows of another shape or dtype, actions that are not finite, or rows out of
                range.
        """
        if rows is None:
            contexts, self._state = self._step(frames, actions, self._state, self.num_rows)
            return contexts
        indices = self._indices(rows)
        if not len(indices):
            return np.zeros((0, self.context_dim), np.float32)
        contexts, state = self._step(frames, actions, self._state.select(indices), len(indices))
        self._state = self._state.replace(indices, state)
        return contexts

    def peek(self, frames: np.ndarray, rows: Rows, actions: np.ndarray | None = None) -> np.ndarray:
        """The contexts `[M, D]` that frames `[M, H, W, C]` would give in `rows`, with the state left as it was."""
        indices = self._indices(rows)
        if not len(indices):
            return np.zeros((0, self.context_dim), np.float32)
        return self._step(frames, actions, self._state.select(indices), len(indices))[0]

    def _set_frozen(self, model: CausalPerceiverIO) -> None:
        self.model = model
        self._backend = self._backend_of(model)
        _, channels, height, width = model.video_shape
        self.frame_shape = (height, width, channels)
        self.context_dim = model.context_dim
        self.action_dim = model.action_dim
        self.fingerprint = self.context_space.fingerprint = model.fingerprint
        self.reset()

    def _backend_of(self, model: CausalPerceiverIO) -> StreamingModel:
        if self.backend == "torch":
            return model
        try:
            step = OnnxStep(model)
        except Exception as error:  # ONNX Runtime's errors have no class of their own
            if self.backend == "onnx":
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            logger.warn("%s", f"contexts are computed by PyTorch, which is slower than ONNX Runtime: {reason}")
            self.backend = "torch"
            return model
        self.backend = "onnx"
        return step

    def _step(
        self, frames: np.ndarray, actions: np.ndarray | None, state: StreamingState, count: int
    ) -> tuple[np.ndarray, StreamingState]:
        one_thread_if_forked()
        # A tensor cannot be made of all arrays: of read-only ones only with a warning, of negative strides not at all.
        frames = np.require(frames, requirements=["C", "W", "E"])
        expected = (count, *self.frame_shape)
        if frames.shape != expected or frames.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 {expected} (rows, H, W, C), got {frames.dtype} {frames.shape}")
        pixels = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2)
        contexts, state = self._backend.step(pixels, state, self._actions(actions, count))
        return contexts.cpu().numpy(), state

    def _actions(self, actions: np.ndarray | None, count: int) -> Tensor | None:
        if actions is None:
            return None
        if self.action_dim is None:
            raise ValueError("actions were given, but the model reads none (action_dim=None)")
        actions = np.asarray(actions)
        if actions.dtype.kind not in "biuf" or not np.isfinite(actions).all():
            raise ValueError(f"actions must be numbers, neither NaN nor infinite, got {actions.tolist()!r:.200}")
        actions = np.clip(actions, -1.0, 1.0).astype(np.float32)  # before float32, which may not hold them
        if actions.ndim != 2 or len(actions) != count or actions.shape[1] > self.action_dim:
            raise ValueError(f"actions must be [{count}, up to {self.action_dim}], got {actions.shape}")
        return torch.from_numpy(actions).to(self.device)

    def _indices(self, rows: Rows) -> Tensor:
        array = np.asarray(rows)
        if array.dtype == bool:
            if array.shape != (self.num_rows,):
                raise ValueError(f"a row mask must have shape ({self.num_rows},), got {array.shape}")
            array = np.flatnonzero(array)
        if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
            raise ValueError(f"rows must be a sequence of row numbers or a bool mask, got {rows!r}")
        if array.size and not (array.min() >= 0 and array.max() < self.num_rows):
            raise ValueError(f"rows must lie in 0 to {self.num_rows - 1}, got {array.tolist()}")
        if len(np.unique(array)) != array.size:
            raise ValueError(f"rows must not repeat, got {array.tolist()}")
        return torch.as_tensor(array.astype(np.int64))


def frozen_model(model: ModelLike, device: torch.device) -> CausalPerceiverIO:
    """A float32 model in eval mode without gradients: shared for a name or directory, a copy of an object."""
    one_thread_if_forked()
    if isinstance(model, CausalPerceiverIO):
        return copy.deepcopy(model).float().eval().requires_grad_(False).to(device)
    if not isinstance(model, (str, Path)):
        raise ValueError(f"model must be a name, a directory or a CausalPerceiverIO, got {type(model).__name__}")
    directory = find_pretrained(model)
    changed = tuple(sorted((f.name, f.stat().st_mtime_ns) for f in directory.iterdir() if f.is_file()))
    return _load_shared(str(directory.resolve()), changed, device)


@lru_cache(maxsize=8)
def _load_shared(directory: str, changed: tuple, device: torch.device) -> CausalPerceiverIO:
    return CausalPerceiverIO.from_pretrained(directory).requires_grad_(False).to(device)

"""Streaming steps by ONNX Runtime: the contexts of PyTorch, sooner."""

import ctypes
import os
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceiver_obs.causal_perceiver import CausalPerceiverIO


@dataclass(frozen=True)
class GraphState:
    """What the steps so far left behind, in arrays with a row for each episode. A value, as `ContextState` is.

    Attributes:
        arrays: float32 `[B, ...]`.
        seen: int64 `[B]`, frames since each row's episode began.
    """

    arrays: tuple[NDArray[np.float32], ...]
    seen: NDArray[np.int64]

    def reset(self, rows: Tensor) -> "GraphState":
        """Begin a new episode in the rows where the bool mask `[B]` is True."""
        mask = rows.numpy()
        arrays = tuple(np.where(mask.reshape(-1, *[1] * (a.ndim - 1)), np.float32(0), a) for a in self.arrays)
        return GraphState(arrays, np.where(mask, 0, self.seen))

    def select(self, rows: Tensor) -> "GraphState":
        """The state of rows (int64 `[M]`) alone."""
        chosen = rows.numpy()
        return GraphState(tuple(a[chosen] for a in self.arrays), self.seen[chosen])

    def replace(self, rows: Tensor, other: "GraphState") -> "GraphState":
        """This state with rows (int64 `[M]`) taken from `other`, which holds M rows."""
        return GraphState(
            tuple(_put(mine, rows, theirs) for mine, theirs in zip(self.arrays, other.arrays)),
            _put(self.seen, rows, other.seen),
        )


def _put(mine: NDArray, rows: Tensor, theirs: NDArray) -> NDArray:
    result = mine.copy()
    result[rows.numpy()] = theirs
    return result


class OnnxStep:
    """Streaming steps of a model by ONNX Runtime on the CPU, from a graph of the weights as they are now.

    It uses as many threads as PyTorch has. Copies, pickles and forked processes make a session of their own.

    Args:
        model: on the CPU.

    Raises:
        ImportError: onnx or onnxruntime is missing.
    """

    def __init__(self, model: CausalPerceiverIO):
        try:
            import onnxruntime  # noqa: F401 (needed only when a session opens, but missed here)

            from perceiver_obs.step_graph import step_graph
        except ImportError as error:
            raise ImportError(f"backend 'onnx' needs {error.name}: pip install onnx onnxruntime") from error
        self._content, self._shapes = step_graph(model)
        self._action_dim = model.action_dim or 0
        self._session: Any = None
        self._open()

    def init_state(self, batch_size: int) -> GraphState:
        """The state of `batch_size` episodes that have not begun."""
        arrays = tuple(np.zeros((batch_size, *shape), np.float32) for shape in self._shapes)
        return GraphState(arrays, np.zeros(batch_size, np.int64))

    def step(
        self, frames: NDArray[np.uint8], state: GraphState, actions: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], GraphState]:
        """The contexts `[B, context_dim]` of the next frames `[B, H, W, C]`, and the state after them.

        Args:
            actions: `[B, up to action_dim]` in [-1, 1], that led to each frame; ignored in rows whose episode begins.
        """
        if self._session is None:
            self._open()
        led = np.zeros((len(frames), self._action_dim + 1), np.float32)
        if actions is not None:
            led[:, : actions.shape[1]], led[:, -1] = actions, 1
            led[state.seen == 0] = 0
        given = {"frames": frames, "actions": led, "seen": state.seen}
        given |= zip(self._state_names, state.arrays)
        contexts, *arrays = self._session.run(self._outputs, {name: given[name] for name in self._inputs})
        return contexts, GraphState(tuple(arrays), state.seen + 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def _open(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(self._content, options, providers=["CPUExecutionProvider"])
        self._inputs = [given.name for given in self._session.get_inputs()]
        self._outputs = [result.name for result in self._session.get_outputs()]
        self._state_names = [f"state_{number}" for number in range(len(self._shapes))]
        _opened.add(self)


_opened: WeakSet[OnnxStep] = WeakSet()


def _after_fork_in_child() -> None:
    """Leaves sessions to the parent, where their threads are: to run or to close one here would wait for ever."""
    for step in list(_opened):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(step._session))  # never closed, not even when Python ends
        step._session = None
    _opened.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

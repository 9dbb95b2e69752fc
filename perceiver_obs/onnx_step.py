"""Streaming steps by ONNX Runtime: the contexts of PyTorch, sooner."""

import ctypes
import os
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.modules.streaming import StreamingState


@dataclass(frozen=True)
class GraphState(StreamingState):
    """What the graph carries from frame to frame.

    Attributes:
        seen: int64 `[B]`, frames since each row's episode began.
        carried: float32 `[B, ...]`, in the order of the graph's inputs.
    """

    seen: Tensor
    carried: tuple[Tensor, ...]


class OnnxStep:
    """`init_state` and `step` of a model by ONNX Runtime on the CPU, from a graph of the weights as they are now.

    It uses as many threads as PyTorch has. Copies, pickles and forked processes make a session of their own.

    Args:
        model: on the CPU.

    Raises:
        ImportError: onnx or onnxruntime is missing.
    """

    def __init__(self, model: CausalPerceiverIO):
        try:
            import onnxruntime  # noqa: F401 (needed only when a session opens, but reported here)

            from perceiver_obs.step_graph import step_graph
        except ImportError as error:
            raise ImportError(f"backend 'onnx' needs {error.name}: pip install onnx onnxruntime") from error
        self._content, self._shapes = step_graph(model)
        self._action_dim = model.action_dim or 0
        self._session: Any = None
        self._open()

    def init_state(self, batch_size: int) -> GraphState:
        """The state of `batch_size` episodes that have not begun."""
        carried = tuple(torch.zeros(batch_size, *shape, dtype=torch.float32) for shape in self._shapes)
        return GraphState(torch.zeros(batch_size, dtype=torch.long), carried)

    def step(self, frames: Tensor, state: GraphState, actions: Tensor | None = None) -> tuple[Tensor, GraphState]:
        """The contexts `[B, context_dim]` of the next frames, and the state after them.

        Args:
            frames: uint8 `[B, C, H, W]`; quickest as a view of `[B, H, W, C]`.
            actions: float32 `[B, up to action_dim]` in [-1, 1], the action that led to each frame; ignored in rows
                whose episode begins.
        """
        if self._session is None:
            self._open()
        seen = state.seen.numpy()
        led = np.zeros((len(frames), self._action_dim + 1), np.float32)
        if actions is not None:
            led[:, : actions.shape[1]], led[:, -1] = actions, 1
            led[seen == 0] = 0
        given = {"frames": frames.permute(0, 2, 3, 1).contiguous().numpy(), "actions": led, "seen": seen}
        given |= zip(self._state_names, (tensor.numpy() for tensor in state.carried))
        contexts, *carried = self._session.run(self._outputs, {name: given[name] for name in self._inputs})
        return torch.from_numpy(contexts), GraphState(state.seen + 1, tuple(map(torch.from_numpy, carried)))

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

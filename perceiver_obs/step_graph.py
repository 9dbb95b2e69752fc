"""A streaming step as one graph of arrays in and out, run by ONNX Runtime: the same contexts, sooner."""

import ctypes
import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perceiver_obs.causal_perceiver import CausalPerceiverIO, ContextState
from perceiver_obs.files import write_atomic
from perceiver_obs.isolation import isolated
from perceiver_obs.modules.adapters import check_actions
from perceiver_obs.modules.frame_memory import FrameMemory
from perceiver_obs.predictor import PredictorState

FORMAT_VERSION = 1  # of the graph
EXTRA = "pip install 'perceiver-obs[onnx]'"


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


class StepGraph(nn.Module):
    """`CausalPerceiverIO.step` on plain tensors of fixed shapes, as exporters need it.

    The keys and values of the last frames shift along, where `FrameMemory` writes them once into a log.

    Attributes:
        shapes: of the state's tensors, without their batch axis.
    """

    def __init__(self, model: CausalPerceiverIO):
        super().__init__()
        self.model = model
        _, state = model.step(torch.zeros(1, *model.video_shape[1:], dtype=torch.uint8), model.init_state(1))
        memory, adapter_past = state.predictor.memory, state.predictor.past
        assert memory.log is not None
        self.window, self.num_convolutions = memory.window, len(state.past or ())
        self.has_adapter_past, self.has_recent = adapter_past is not None, state.recent.shape[1] > 0
        ring = (self.window - 1, *memory.log.keys.shape[2:])
        carried = [*(state.past or ()), *([adapter_past] if adapter_past is not None else [])]
        recent = [tuple(state.recent.shape[1:])] if self.has_recent else []
        self.shapes = [*(tuple(tensor.shape[1:]) for tensor in carried), ring, ring, *recent]

    def forward(
        self, frames: Tensor, actions: Tensor, known: Tensor, seen: Tensor, state: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The contexts `[B, context_dim]` of frames, and the state after them.

        Args:
            frames: uint8 `[B, C, H, W]`.
            actions: `[B, action_dim]`, the action that led to each frame.
            known: bool `[B]`, where there is one.
            seen: int64 `[B]`, frames since each row's episode began.
            state: of `shapes`.
        """
        model, predictor = self.model, self.model.predictor
        waiting = iter(state)
        past = [next(waiting) for _ in range(self.num_convolutions)]
        adapter_past = next(waiting) if self.has_adapter_past else None
        past_keys, past_values = next(waiting), next(waiting)
        observed, new_past = predictor.observe(frames[:, None], past or None)
        inputs, adapter_past = predictor.inputs(observed, actions[:, None], known[:, None], adapter_past)
        keys, values = predictor.encoder.keys_values(inputs)
        keys, values = torch.cat([past_keys, keys], dim=1), torch.cat([past_values, values], dim=1)
        exists = torch.arange(self.window, device=seen.device) >= self.window - 1 - seen[:, None]
        latents = predictor.encoder.attend(keys, values, 1, exists)
        context = model.normalize(predictor.context(latents))
        before = None
        if self.has_recent:
            counted = PredictorState(FrameMemory(self.window, seen))
            before = ContextState(None, counted, next(waiting))
        contexts, recent = model.over_timescales(context, before)
        carried = [*new_past, *([adapter_past] if adapter_past is not None else []), keys[:, 1:], values[:, 1:]]
        return contexts[:, 0], [*carried, *([recent] if self.has_recent else [])]


class OnnxStep:
    """Streaming steps of a model by ONNX Runtime on the CPU; contexts equal PyTorch's within 1e-4.

    The graph is exported once (some seconds) and kept in `$XDG_CACHE_HOME/perceiver_obs` (or `~/.cache`), by the
    weights and the versions that made it. It uses as many threads as PyTorch has. Copies, pickles and forked processes
    make a session of their own from it.

    Args:
        model: on the CPU, in eval mode.
        keep: whether to keep the graph; not for models that go on changing.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """

    def __init__(self, model: CausalPerceiverIO, keep: bool = True):
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401  # the exporter asks for it, and late
        except ImportError as error:
            raise ImportError(f"backend 'onnx' needs {error.name}: {EXTRA}") from error
        graph = StepGraph(model).eval()
        self._shapes, self._action_dim = graph.shapes, model.action_dim or 0
        self._session: Any = None
        kept = _cache_directory() / f"{model.fingerprint}-{FORMAT_VERSION}-torch{version('torch')}.onnx"
        try:
            self._content = kept.read_bytes()
            self._open()
        except Exception:  # not there, or damaged; ONNX Runtime's errors have no class of their own
            self._content = _export(graph)
            self._open()
            if keep:
                with suppress(OSError):  # a cache that cannot be written is done without
                    write_atomic(kept, self._content)

    def init_state(self, batch_size: int) -> GraphState:
        """The state of `batch_size` episodes that have not begun."""
        arrays = tuple(np.zeros((batch_size, *shape), np.float32) for shape in self._shapes)
        return GraphState(arrays, np.zeros(batch_size, np.int64))

    def step(self, frames: Tensor, state: GraphState, actions: Tensor | None = None) -> tuple[Tensor, GraphState]:
        """As `CausalPerceiverIO.step`, for uint8 frames `[B, C, H, W]`."""
        led, known = np.zeros((len(frames), self._action_dim), np.float32), np.zeros(len(frames), bool)
        if actions is not None:
            check_actions(actions, self._action_dim, frames.shape[:1])
            led[:, : actions.shape[-1]], known = actions.clamp(-1, 1).numpy(), state.seen > 0
        given = {"frames": frames.contiguous().numpy(), "actions": led, "known": known, "seen": state.seen}
        given |= {f"state_{number}": array for number, array in enumerate(state.arrays)}
        if self._session is None:
            self._open()
        contexts, *arrays = self._session.run(None, {name: given[name] for name in self._names})
        return torch.from_numpy(contexts), GraphState(tuple(arrays), state.seen + 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def _open(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(self._content, options, providers=["CPUExecutionProvider"])
        self._names = [given.name for given in self._session.get_inputs()]
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


def _export(graph: StepGraph) -> bytes:
    model, shapes, rows = graph.model, graph.shapes, 2
    any_rows = {0: torch.export.Dim.DYNAMIC}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that nothing here needs
    with isolated(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            (
                torch.zeros(rows, *model.video_shape[1:], dtype=torch.uint8),
                torch.zeros(rows, model.action_dim or 0),
                torch.ones(rows, dtype=torch.bool),
                torch.ones(rows, dtype=torch.long),
                [torch.zeros(rows, *shape) for shape in shapes],
            ),
            dynamo=True,
            verbose=False,
            input_names=["frames", "actions", "known", "seen", *(f"state_{n}" for n in range(len(shapes)))],
            dynamic_shapes=(any_rows, any_rows, any_rows, any_rows, [any_rows] * len(shapes)),
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def _cache_directory() -> Path:
    """Where there is no home directory, nowhere: nothing is found there, and nothing can be written."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perceiver_obs"
    except RuntimeError:
        return Path(os.devnull) / "perceiver_obs"

"""Building an ONNX graph of one step, node by node."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

OPSET, IR_VERSION = 20, 9
CONTRIB = "com.microsoft"  # ONNX Runtime's own nodes: self-attention is one
ROWS = "rows"
END = np.iinfo(np.int64).max

Array = NDArray[np.float64]
Shape = tuple[int, ...]


class OnnxGraph:
    """Nodes by their names; a constant may stand wherever a node's name may."""

    def __init__(self) -> None:
        self.state_shapes: list[Shape] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._kept: list[str] = []

    def input(self, name: str, kind: int, *shape: int) -> str:
        """An input `[rows, *shape]`."""
        self._inputs[name] = helper.make_tensor_value_info(name, kind, [ROWS, *shape])
        return name

    def __call__(self, kind: str, *inputs: "str | NDArray", outputs: int = 1, **attributes: Any) -> Any:
        """A node; returns the name of its output, or their names where there are several."""
        names = [self._constant(given) if isinstance(given, np.ndarray) else given for given in inputs]
        results = [f"{kind}_{len(self._nodes)}_{number}" for number in range(outputs)]
        self._nodes.append(helper.make_node(kind, names, results, **attributes))
        return results[0] if outputs == 1 else results

    def reshape(self, x: str, *shape: int) -> str:
        """`shape` with its rows; 0 keeps an axis, -1 takes what is left."""
        return self("Reshape", x, np.array(shape))

    def linear(self, x: str, weights: Array, bias: Array) -> str:
        """`[X, out]` of `[X, in]`, by weights `[out, in]` and bias `[out]`."""
        return self("Gemm", x, weights.T, bias)

    def norm(self, x: str, norm: nn.LayerNorm) -> str:
        return self("LayerNormalization", x, *weights_of(norm), epsilon=norm.eps)

    def silu(self, x: str) -> str:
        return self("Mul", x, self("Sigmoid", x))

    def remember(
        self, new: str, axis: int, length: int, steps: int, shape: Sequence[int], where: str | None = None
    ) -> str:
        """What the last `steps` steps brought and what this one brings, joined along an axis, oldest first.

        Args:
            length: entries of one step along the axis.
            shape: what one step brings, without its rows.
            where: bool, to be broadcast to rows of `shape`: which of them remember this step. None for all.
        """
        if not steps:
            return new
        kept = tuple(steps * length if number == axis else size for number, size in enumerate(shape, start=1))
        state = self.input(f"state_{len(self.state_shapes)}", TensorProto.FLOAT, *kept)
        self.state_shapes.append(kept)
        joined = self("Concat", state, new, axis=axis)
        kept_now = self("Slice", joined, np.array([length]), np.array([END]), np.array([axis]))
        self._kept.append(kept_now if where is None else self("Where", where, kept_now, state))
        return joined

    def serialise(self, contexts: str, context_dim: int) -> bytes:
        shapes = {contexts: (context_dim,), **dict(zip(self._kept, self.state_shapes))}
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [ROWS, *shape]) for n, shape in shapes.items()]
        graph = helper.make_graph(self._nodes, "step", list(self._inputs.values()), outputs, self._constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()

    def _constant(self, values: NDArray) -> str:
        name = f"constant_{len(self._constants)}"
        values = np.ascontiguousarray(values, {"f": np.float32, "b": np.bool_}.get(values.dtype.kind, np.int64))
        self._constants.append(numpy_helper.from_array(values, name))
        return name


def array(tensor: Tensor | None) -> Array:
    assert tensor is not None
    return tensor.detach().cpu().numpy().astype(np.float64)


def weights_of(layer: Any) -> tuple[Array, Array]:
    """Weight and bias of a linear map (also a convolution with a kernel of 1, `[out, in]`), a convolution or a norm."""
    weight, bias = array(layer.weight), array(layer.bias)
    return (weight[:, :, 0, 0] if weight.shape[2:] == (1, 1) else weight), bias

"""A streaming step as one ONNX graph, written node by node from a model's weights.

A step of one row is short work, and each node costs a start: what does not depend on frames is computed here and held
as constants, and linear maps in a row are merged. Weights are merged in float64 and stored in float32.
"""

import math

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, nn

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.modules.attention import MLP, Attention, SelfAttentionBlock
from perceiver_obs.modules.causal_conv import CausalConv, FrameNorm, ResidualBlock
from perceiver_obs.modules.perceiver import CausalPerceiverEncoder
from perceiver_obs.modules.timescales import Timescale
from perceiver_obs.onnx_graph import CONTRIB, Array, OnnxGraph, Shape, array, weights_of


def step_graph(model: CausalPerceiverIO) -> tuple[bytes, list[Shape]]:
    """The graph of `CausalPerceiverIO.step`, serialised, and the shapes of its state's arrays without their rows.

    Inputs:
        frames: uint8 `[B, H, W, C]`.
        actions: float32 `[B, action_dim + 1]`, the action that led to each frame and 1, or zeros where there is none;
            for models that read actions.
        seen: int64 `[B]`, frames since each row's episode began; where something depends on it.
        state_0, state_1, …: float32 `[B, *shape]`, zeros where an episode begins.

    Outputs: contexts `[B, context_dim]`, and the state's arrays after the step, in the order of the inputs.
    """
    graph = OnnxGraph()
    inputs = _inputs(graph, model)
    latents = _latents(graph, model.predictor.encoder, inputs, _inputs_of_a_frame(model))
    contexts = _contexts(graph, model, latents)
    return graph.serialise(contexts, model.context_dim), graph.state_shapes


# ---- frames and actions to inputs of the Perceiver ----------------------------------------------------------------


def _inputs_of_a_frame(model: CausalPerceiverIO) -> int:
    return model.init_state(1).keys_values[0].shape[2]


def _inputs(graph: OnnxGraph, model: CausalPerceiverIO) -> str:
    """Inputs of the Perceiver, `[B * P, C]`."""
    if model.predictor.frame_adapter is not None:
        return _with_action(graph, _read_frames(graph, model), model)
    adapter = model.predictor.token_adapter
    assert adapter.project is not None
    features, to_vectors, vector_bias = _code_vectors(graph, model)  # the standardised code vectors' linear map
    weights, bias = weights_of(adapter.project.conv)
    steps, channels, num_tokens = adapter.time_kernel - 1, adapter.channels, vector_bias.shape[1]
    code_dim = len(to_vectors)
    if adapter.inputs_per_frame is None:
        _, _, height, width = model.video_shape
        downsample = model.tokenizer.downsample
        position = array(adapter.positions(height // downsample, width // downsample)).T + bias[:, None]
        if steps:
            vectors = graph("Add", graph("MatMul", to_vectors, features), vector_bias)
            vectors = graph.remember(vectors, 1, code_dim, steps, (code_dim, num_tokens))
            tokens = graph("Add", graph("MatMul", weights, vectors), position)
        else:
            tokens = graph("Add", graph("MatMul", weights @ to_vectors, features), weights @ vector_bias + position)
        tokens = graph.reshape(graph("Transpose", tokens, perm=[0, 2, 1]), 0, num_tokens * channels)
        return _with_action(graph, tokens, model)

    if adapter.keypoints is None:
        vectors = graph("Add", graph("MatMul", to_vectors, features), vector_bias)
        summary, width = graph.reshape(vectors, 0, code_dim * num_tokens), code_dim * num_tokens
        # Weights are of tokens, then channels; the vectors lie here the other way round.
        weights = weights.reshape(len(weights), -1, num_tokens, code_dim).swapaxes(2, 3).reshape(len(weights), -1)
    else:
        keypoints = adapter.keypoints
        number, width = keypoints.look.out_features, 2 * keypoints.look.out_features
        # One map gives logits, columns and rows.
        both = zip(weights_of(keypoints.look), weights_of(keypoints.offset))
        maps, bias_of_maps = (np.concatenate(pair) for pair in both)
        constants = (maps @ vector_bias + bias_of_maps[:, None]).reshape(3, number, num_tokens)
        constants[1:] += array(keypoints.coordinates)[:, :, 0].T[:, None]
        mapped = graph.reshape(graph("MatMul", maps @ to_vectors, features), 0, 3, number, num_tokens)
        logits, coordinates = graph("Split", graph("Add", mapped, constants), np.array([1, 2]), outputs=2, axis=1)
        weighted = graph("Mul", graph("Softmax", logits, axis=-1), coordinates)
        summary = graph.reshape(graph("ReduceSum", weighted, np.array([-1]), keepdims=0), 0, width)
    summary = graph.remember(summary, 1, width, steps, (width,))
    return _with_action(graph, graph.linear(summary, weights, bias), model)


def _with_action(graph: OnnxGraph, inputs: str, model: CausalPerceiverIO) -> str:
    """Inputs `[B, P * C]` of frames, and behind them that of the action, as `[B * P, C]`."""
    adapter = model.predictor.action_adapter
    if adapter is not None:
        actions, none = graph.input("actions", TensorProto.FLOAT, adapter.action_dim + 1), array(adapter.none)
        weights, bias = weights_of(adapter.project)
        weights = np.column_stack([weights, bias - none])
        inputs = graph("Concat", inputs, graph.linear(actions, weights, none), axis=1)
    return graph.reshape(inputs, -1, model.predictor.token_adapter.channels)


def _read_frames(graph: OnnxGraph, model: CausalPerceiverIO) -> str:
    """Inputs `[B, P * C]` by the Perceiver's own convolutions."""
    adapter, (channels, height, width) = model.predictor.frame_adapter, model.video_shape[1:]
    assert adapter is not None
    x, scale = graph("Sub", _pixels(graph, model), np.array(127.5)), 2 / 255
    for layer in adapter.convolutions:
        if isinstance(layer, nn.Conv2d):
            x, (channels, height, width) = _conv2d(graph, x, layer, (channels, height, width), scale)
            scale = 1.0
        else:
            x = graph("Gelu", x)
    norm, project = adapter.project
    assert isinstance(norm, nn.LayerNorm)
    features = graph.norm(graph.reshape(x, 0, channels * height * width), norm)
    weights, bias = weights_of(project)
    return graph.linear(features, weights, bias + array(adapter.which).reshape(-1))


def _pixels(graph: OnnxGraph, model: CausalPerceiverIO) -> str:
    """Frames `[B, C, H, W]` as floats, 0 to 255."""
    channels, height, width = model.video_shape[1:]
    x = graph("Transpose", graph.input("frames", TensorProto.UINT8, height, width, channels), perm=[0, 3, 1, 2])
    return graph("Cast", x, to=TensorProto.FLOAT)


def _code_vectors(graph: OnnxGraph, model: CausalPerceiverIO) -> tuple[str, Array, Array]:
    """Features `[B, F, h * w]`, and the weights `[code_dim, F]` and bias `[code_dim, h * w]` of the standardised code
    vectors that follow from them."""
    channels, height, width = model.video_shape[1:]
    shape: Shape = (channels, height, width)
    x = _pixels(graph, model)
    *layers, last = model.tokenizer.encoder.layers
    scale = 1 / 255
    for layer in layers:
        if isinstance(layer, CausalConv):
            x, shape = _convolve(graph, x, layer, shape, scale)
            scale = 1.0
        elif isinstance(layer, ResidualBlock):
            y = x
            for norm, conv in ((layer.norm1, layer.conv1), (layer.norm2, layer.conv2)):
                y, _ = _convolve(graph, graph.silu(_frame_norm(graph, y, norm, shape)), conv, shape)
            x = graph("Add", x, y)
        elif isinstance(layer, FrameNorm):  # the last, before a linear map of each token
            shape = (shape[0], shape[1] * shape[2])
            x = _frame_norm(graph, x, layer, shape)
        elif isinstance(layer, nn.SiLU):
            x = graph.silu(x)
        else:
            raise NotImplementedError(f"no graph of {type(layer).__name__}")
    adapter = model.predictor.token_adapter
    code_scale, mean = array(adapter.scale)[:, None], array(adapter.mean).reshape(-1, len(adapter.scale)).T
    assert isinstance(last, CausalConv)
    weights, bias = weights_of(last.conv)
    return x, weights / code_scale, np.broadcast_to(bias[:, None] - mean, (len(bias), shape[1])) / code_scale


def _convolve(graph: OnnxGraph, x: str, layer: CausalConv, shape: Shape, scale: float = 1.0) -> tuple[str, Shape]:
    """The convolution of `[B, C, H, W]`, scaled and with what it remembers of frames before; and its shape."""
    x = graph.remember(x, 1, layer.in_channels, layer.time_kernel - 1, shape)
    return _conv2d(graph, x, layer.conv, shape, scale)


def _conv2d(graph: OnnxGraph, x: str, conv: nn.Conv2d, shape: Shape, scale: float) -> tuple[str, Shape]:
    (kernel, _), (stride, _), pad = conv.kernel_size, conv.stride, int(conv.padding[0])
    weights, bias = array(conv.weight), array(conv.bias)
    x = graph("Conv", x, scale * weights, bias, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
    height, width = ((size + 2 * pad - kernel) // stride + 1 for size in shape[1:])
    return x, (conv.out_channels, height, width)


def _frame_norm(graph: OnnxGraph, x: str, norm: FrameNorm, shape: Shape) -> str:
    """Group normalisation, to `[B, *shape]`: a layer norm of each group, then every channel's own weight and bias.

    On frames of one colour it is several times as exact as ONNX Runtime's `InstanceNormalization`.
    """
    channels = shape[0]
    same = np.ones(math.prod(shape) // norm.num_groups)
    grouped = graph("LayerNormalization", graph.reshape(x, 0, norm.num_groups, -1), same, epsilon=norm.eps)
    statistics = (np.zeros(channels), np.ones(channels))
    return graph("BatchNormalization", graph.reshape(grouped, 0, *shape), *weights_of(norm), *statistics, epsilon=0.0)


# ---- inputs to contexts -------------------------------------------------------------------------------------------


def _latents(graph: OnnxGraph, encoder: CausalPerceiverEncoder, inputs: str, per_frame: int) -> str:
    """Latents `[B * M, C]`, those of all timescales in a row, before their last norm, of inputs `[B * P, C]`."""
    attention, channels = encoder.cross_attention, encoder.latents.shape[1]
    heads = attention.num_heads
    inputs = _mlp(graph, inputs, encoder.input_mlp)

    # The latents' queries are constant: in place of keys, the memory holds every latent's score for every input.
    queries = array(attention.queries(attention.norm(encoder.all_latents)))
    number = len(queries)
    queries = queries.reshape(number, heads, -1)
    queries /= queries.shape[-1] ** 0.5
    weights, bias = weights_of(attention.to_keys_values)
    key_weights, key_bias = weights[:channels].reshape(heads, -1, channels), bias[:channels].reshape(heads, -1)
    of_timescales = np.split(queries, np.cumsum(encoder.counts)[:-1])
    score_weights = [np.einsum("nhd,hdc->hnc", own, key_weights).reshape(-1, channels) for own in of_timescales]
    score_bias = [np.einsum("nhd,hd->hn", own, key_bias).reshape(-1) for own in of_timescales]
    weights, bias = np.concatenate([*score_weights, weights[channels:]]), np.concatenate([*score_bias, bias[channels:]])
    read = graph.reshape(graph.linear(graph.norm(inputs, encoder.input_norm), weights, bias), -1, per_frame, len(bias))
    read = graph("Transpose", read, perm=[0, 2, 1])

    each = [read]
    if len(encoder.counts) > 1:
        sizes = np.array([*map(len, score_bias), channels])
        *scores, values = graph("Split", read, sizes, outputs=len(sizes), axis=1)
        each = [graph("Concat", own, values, axis=1) for own in scores]
    given = zip(encoder.timescales, each, encoder.all_biases, strict=True)
    attended = [_attended(graph, timescale, own, array(bias), channels, per_frame) for timescale, own, bias in given]
    joined = graph("Concat", *attended, axis=2) if len(attended) > 1 else attended[0]
    joined = graph.reshape(graph("Transpose", joined, perm=[0, 2, 1, 3]), 0, -1, channels)
    weights, bias = weights_of(attention.out)
    latents = graph("Add", graph("MatMul", joined, weights.T), array(encoder.all_latents) + bias)
    latents = _mlp(graph, graph.reshape(latents, -1, channels), encoder.mlp)
    for block in encoder.blocks:
        assert isinstance(block, SelfAttentionBlock)
        latents = _mlp(graph, _self_attention(graph, latents, block.attention, encoder.alike, number), block.mlp)
    return latents


def _attended(graph: OnnxGraph, timescale: Timescale, read: str, age_bias: Array, channels: int, per_frame: int) -> str:
    """What a timescale's latents attend to, `[B, heads, N, C / heads]`.

    Args:
        read: scores and values `[B, heads * N + C, P]` of this step's inputs.
        age_bias: `[heads, N, W]`.
    """
    heads, number, _ = age_bias.shape
    rows, frames, stride = heads * number, timescale.length + 1, timescale.stride
    # The ring is full after so many steps, and what is read repeats itself at every stride from there on.
    steps = torch.arange(timescale.span + stride)
    buckets, visible = timescale.reads(steps[:, None], torch.cat([timescale.held(steps), steps[:, None]], dim=1))
    biases = age_bias.reshape(rows, -1)[:, buckets.numpy()].swapaxes(0, 1)
    biases = np.where(visible.numpy()[:, None], biases, -np.inf)[..., None]
    bias, remembers = biases[0], None
    if timescale.span > 1:
        seen = graph.input("seen", TensorProto.INT64)
        most = np.array(timescale.span)
        if stride > 1:
            most = graph("Add", graph("Mod", seen, np.array(stride)), most)
        step = graph("Min", seen, most)
        bias = graph("Gather", biases, step)
        if stride > 1:
            remembers = graph("Gather", (steps % stride == 0).numpy()[:, None, None], step)
    read = graph.remember(read, 2, per_frame, timescale.length, (rows + channels, per_frame), remembers)
    scores, values = graph("Split", read, np.array([rows, channels]), outputs=2, axis=1)
    scores = graph("Add", graph.reshape(scores, 0, rows, frames, per_frame), bias)
    weights = graph("Softmax", graph.reshape(scores, 0, heads, number, frames * per_frame), axis=-1)
    values = graph("Transpose", graph.reshape(values, 0, heads, -1, frames * per_frame), perm=[0, 1, 3, 2])
    return graph("MatMul", weights, values)


def _contexts(graph: OnnxGraph, model: CausalPerceiverIO, latents: str) -> str:
    """Contexts `[B, context_dim]` of latents `[B * M, C]`, before their last norm."""
    encoder, to_context = model.predictor.encoder, model.predictor.to_context
    mean, scale = array(model.context_mean), array(model.context_scale)
    weight, bias = weights_of(encoder.norm)
    several, linear = len(model.timescales) > 1, not isinstance(to_context, nn.Identity)
    if not (several or linear):
        weight, bias = weight / scale, (bias - mean) / scale
    latents = graph.reshape(latents, -1, *encoder.all_latents.shape)
    latents = graph("LayerNormalization", latents, weight, bias, epsilon=encoder.norm.eps)
    if several:
        means = np.repeat(np.eye(len(encoder.counts)), encoder.counts, axis=1) / np.array(encoder.counts)[:, None]
        contexts = graph.reshape(graph("MatMul", means, latents), -1, len(weight))
    else:
        contexts = graph("ReduceMean", latents, np.array([1]), keepdims=0)
    if linear:
        weight, bias = weights_of(to_context)
        if not several:
            weight, bias = weight / scale[:, None], (bias - mean) / scale
        contexts = graph.linear(contexts, weight, bias)
    if several:  # each has statistics of its own, which cannot be merged into layers that they share
        contexts = graph("Mul", graph.reshape(contexts, -1, model.context_dim), 1 / scale)
        contexts = graph("Add", contexts, -mean / scale)
    return contexts


def _mlp(graph: OnnxGraph, x: str, mlp: MLP) -> str:
    """An MLP around its skip."""
    norm, widen, _, narrow, _ = mlp
    assert isinstance(norm, nn.LayerNorm)
    hidden = graph("Gelu", graph.linear(graph.norm(x, norm), *weights_of(widen)))
    return graph("Add", x, graph.linear(hidden, *weights_of(narrow)))


def _self_attention(graph: OnnxGraph, x: str, attention: Attention, alike: Tensor | None, number: int) -> str:
    """Attention of each row's M latents `[B * M, C]` to one another, or where `alike` `[M, M]`, around its skip."""
    channels = attention.out.in_features
    both = zip(weights_of(attention.queries), weights_of(attention.to_keys_values))
    weights, bias = (np.concatenate(pair) for pair in both)
    normed = graph.reshape(graph.norm(x, attention.norm), -1, number, channels)
    given: list[str | Array] = [normed, weights.T, bias]
    if alike is not None:
        given += ["", "", np.where(alike.cpu().numpy(), 0.0, -np.inf)[None, None]]  # no mask index, no past
    attended = graph("Attention", *given, num_heads=attention.num_heads, domain=CONTRIB)
    attended = graph.reshape(attended, -1, channels)
    return graph("Add", x, graph.linear(attended, *weights_of(attention.out)))

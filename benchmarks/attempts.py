"""Where a PyTorch step's time goes, and what was tried to make it cheaper.

Writes `results/attempts.json`; part of `make bench`. Needs a C++ compiler, for `torch.compile`.
"""

import copy
import warnings
from collections.abc import Callable

import torch
from measure import time_in_turns, write_results
from steps import LONG_WINDOW, ROWS, best_of, push_step, random_frames, recompute_step, with_window
from tensor_step import TensorStep
from torch import nn
from torch.profiler import ProfilerActivity, profile

from perceiver_obs import CausalPerceiverIO
from perceiver_obs.onnx_step import OnnxStep

KINDS = {
    "matrix products": ("mm",),
    "convolutions": ("conv", "im2col", "col2im"),
    "attention": ("attention",),
    "copies": ("copy_", "clone", "cat", "fill_", "zero_"),
    "norms and activations": ("norm", "gelu", "silu", "softmax"),
}
PROFILED_STEPS = 50


def graph_step(graph: nn.Module, model: CausalPerceiverIO, rows: int) -> Callable[[], object]:
    """A step on plain tensors, the state always that of a running episode."""
    _, *carried = TensorStep(model).init_state(rows)
    arguments = (
        torch.randint(0, 256, (rows, 3, 64, 64), dtype=torch.uint8),
        torch.zeros(rows, model.action_dim or 0),
        [torch.full((rows,), 100), *carried],
    )

    def step() -> None:
        with torch.inference_mode():
            graph(*arguments)

    return step


def onnx_step(model: CausalPerceiverIO, rows: int) -> Callable[[], object]:
    runtime, frames = OnnxStep(model), torch.from_numpy(random_frames(rows)).permute(0, 3, 1, 2)
    state = runtime.init_state(rows)
    return lambda: runtime.step(frames, state)


def in_bfloat16(step: Callable[[], object]) -> Callable[[], object]:
    def cast() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step()

    return cast


def quantized(graph: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to torchao
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(graph), {nn.Linear}, torch.qint8)


def where_time_goes(step: Callable[[], object]) -> dict[str, object]:
    """Operators a step launches, and milliseconds in each kind; the rest of a step is Python and dispatch."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED_STEPS):
            step()
    kinds = dict.fromkeys([*KINDS, "other operators"], 0.0)
    launched = 0.0
    for event in profiled.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((k for k, parts in KINDS.items() if any(part in name for part in parts)), "other operators")
        kinds[kind] += event.self_cpu_time_total / 1e3 / PROFILED_STEPS
        launched += event.count / PROFILED_STEPS
    return {"operators": round(launched), "ms": {kind: round(ms, 3) for kind, ms in kinds.items()}}


def main() -> None:
    torch.set_num_threads(1)
    torch.compiler.config.force_disable_caches = True  # how long it takes is among the figures
    model = CausalPerceiverIO.from_pretrained("dmc-small")
    graph, longer = TensorStep(model).eval(), with_window(model, LONG_WINDOW)
    compiled = torch.compile(graph, dynamic=False)
    steps: dict[str, Callable[[], object]] = {}
    first_seconds = {}
    for rows in (1, ROWS):
        steps |= {
            f"PyTorch, {rows}": graph_step(graph, model, rows),
            f"channels-last, {rows}": graph_step(
                copy.deepcopy(graph).to(memory_format=torch.channels_last), model, rows
            ),
            f"bfloat16, {rows}": in_bfloat16(graph_step(graph, model, rows)),
            f"int8, {rows}": graph_step(quantized(graph), model, rows),
            f"torch.compile, {rows}": graph_step(compiled, model, rows),
            f"ONNX Runtime, {rows}": onnx_step(model, rows),
        }
        first_seconds[str(rows)] = round(best_of(1, steps[f"torch.compile, {rows}"]), 1)
    steps |= {f"window {LONG_WINDOW}, {b}": push_step(longer, 1, b, warm_up=100) for b in ("torch", "onnx")}
    steps[f"window {LONG_WINDOW}, recomputed"] = recompute_step(longer)
    timings = time_in_turns(steps, rounds=60)
    ms = {name: float(timing["median_ms"]) for name, timing in timings.items()}
    results = {
        "profile": where_time_goes(push_step(model, 1, "torch", warm_up=100)),
        "compiling_seconds": first_seconds,
        "window": LONG_WINDOW,
        "recomputed_ms_a_frame": round(ms[f"window {LONG_WINDOW}, recomputed"] / LONG_WINDOW, 3),
        "timings": timings,
    }
    ratios = {
        f"PyTorch / {name}": ms[f"PyTorch, {name.rsplit(', ', 1)[1]}"] / ms[name]
        for name in steps
        if not name.startswith(("PyTorch", "window"))
    }
    write_results("attempts", results, ratios)


if __name__ == "__main__":
    main()

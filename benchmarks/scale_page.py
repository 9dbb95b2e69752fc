"""Writes `docs/scale.md`: what much more of everything would cost, worked out from what was measured on one core."""

import numpy as np
from measure import DOCS

from perceiver_obs.files import write_atomic

ENVIRONMENTS, FRAMES, GPUS, CORES = 1000, 100e6, 8, 64
# NVIDIA H100 SXM data sheet: float32 outside of the tensor cores.
GPU_PEAK = 67e12
SHARE_OF_PEAK = 0.1


def duration(seconds: float) -> str:
    """In the unit that makes it a small number."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "s")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds * 1e3:.0f} ms"


def write_scale_page(steps: dict, throughput: dict) -> None:
    """Writes the page from `steps.json` and `throughput.json`."""
    per_second = throughput["frames_per_second_with_action_repeat_2"]
    env_seconds = {
        quality: float(np.mean([1 / rate for name, rate in per_second.items() if name.endswith(quality)]))
        for quality in ("standard", "fast")
    }
    row_seconds = steps["timings"]["small, onnx, 16 rows"]["median_ms"] / 16e3
    flops = steps["step_megaflops"] * 1e6
    state_bytes = steps["bytes_held_of_a_row"]
    training = throughput["training"]
    rows = []
    for stage in ("tokenizer", "predictor"):
        one = training[stage]
        updates = FRAMES / one["frames_a_step"]
        core = updates * throughput["training_steps"][stage]["median_ms"] / 1e3
        gpus = updates * one["gigaflop_a_step"] * 1e9 / (GPUS * GPU_PEAK * SHARE_OF_PEAK)
        rate = FRAMES / gpus * throughput["bytes_a_frame"]["as it is"] / 1e9
        rows.append(
            f"| train-{stage} | {one['frames_a_step']} | {one['gigaflop_a_step']:.0f} | {updates:,.0f} "
            f"| {duration(core)} | {duration(gpus)} | {rate:.1f} GB/s |"
        )
    stored = throughput["bytes_a_frame"]
    page = f"""# What more would cost

A plan on paper. Written by `make bench` from what it measured on one core of an {steps["machine"]["processor"]}; the \
rest is multiplication, and nothing on this page was run at that size. No GPU was measured: where one is named, it \
is assumed to reach {SHARE_OF_PEAK:.0%} of an H100's {GPU_PEAK / 1e12:.0f} TFLOP/s in float32 (NVIDIA's data sheet). \
Small convolutions may well reach less.

## {ENVIRONMENTS:,} environments

| of one step of all of them | on one core | on {CORES} cores |
| --- | --- | --- |
| simulation and fast rendering, mean of six tasks | {duration(ENVIRONMENTS * env_seconds["fast"])} \
| {duration(ENVIRONMENTS * env_seconds["fast"] / CORES)} |
| simulation and standard rendering | {duration(ENVIRONMENTS * env_seconds["standard"])} \
| {duration(ENVIRONMENTS * env_seconds["standard"] / CORES)} |
| contexts of `dmc-small`, ONNX Runtime, at the rate of 16 rows | {duration(ENVIRONMENTS * row_seconds)} \
| {duration(ENVIRONMENTS * row_seconds / CORES)} |

- Contexts take {ENVIRONMENTS * flops / 1e9:.0f} GFLOP a step: \
{ENVIRONMENTS * flops / (GPU_PEAK * SHARE_OF_PEAK) * 1e3:.1f} ms of the assumed GPU, \
once {ENVIRONMENTS * 64 * 64 * 3 / 1e6:.0f} MB of frames have been copied to it.
- What is remembered of a row takes {state_bytes / 1e3:.0f} kB, {ENVIRONMENTS * state_bytes / 1e6:.0f} MB for all, \
however long the episodes.
- So it is rendering that wants cores: workers render, and one process holds the model \
([many environments](how-to/vector-environments.md)).

## {FRAMES / 1e6:.0f} million frames

| | one core | {CORES} cores |
| --- | --- | --- |
| collect, fast rendering | {duration(FRAMES * env_seconds["fast"])} \
| {duration(FRAMES * env_seconds["fast"] / CORES)} |
| collect, standard rendering | {duration(FRAMES * env_seconds["standard"])} \
| {duration(FRAMES * env_seconds["standard"] / CORES)} |

- On disk {FRAMES * stored["as it is"] / 1e12:.1f} TB, or {FRAMES * stored["compressed"] / 1e12:.2f} TB with \
`--compress` (measured on walker-walk: {stored["as it is"]:,.0f} and {stored["compressed"]:,.0f} bytes a frame).
- `collect --ray` writes in one process. Its episodes come over the network: at \
{CORES / env_seconds["fast"] * stored["as it is"] / 1e6:,.0f} MB/s from {CORES} cores.

## {GPUS} GPUs

One pass over those frames, every frame of a clip counted, with the sizes of `small` and the trainings' own batch \
sizes on each GPU:

| | frames a step | GFLOP a step | steps | one core | {GPUS} GPUs | to be read |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

- The trainings are data-parallel by `torchrun` ([many machines](how-to/many-machines.md)): {GPUS} GPUs take \
{GPUS} times as many clips a step.
- Reading is what would have to be built next: frames come from memory-mapped files by one thread for each process.
"""
    write_atomic(DOCS / "scale.md", page.encode())
    print(f"written to {DOCS / 'scale.md'}")

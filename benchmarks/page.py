"""Writes `docs/speed.md` with its picture, and `docs/scale.md`, from `results/`; part of `make bench`."""

import io
import json

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from measure import DOCS, RESULTS
from scale_page import write_scale_page

from perceiver_obs.files import write_atomic
from perceiver_obs.reporting.plots import COLORS, DOTS_PER_INCH

ONE_ROW = {
    "small, onnx": "small, ONNX Runtime",
    "small, torch": "small, PyTorch",
    "NatureCNN on 3 frames": "NatureCNN on 3 stacked frames",
    "env step, fast": "environment step, fast rendering",
    "window 16, recomputed": "small with 16 frames, recomputed",
    "env step, standard": "environment step, standard rendering",
    "ResNet-18 at 224": "ResNet-18 at 224×224 (as R3M)",
    "published size 2d, recomputed": "published size, recomputed",
}
BARS = (
    ("streaming against recomputation, 16 frames", "window 16 recomputed / streaming", "≥ 10", 1),
    ("published size recomputed, 2D, against small", "published size 2d recomputed / small", "≥ 100", 0),
    ("published size recomputed, 3D, against small", "published size 3d recomputed / small", "≥ 200", 0),
    ("ResNet-18 at 224 against small, one row", "ResNet-18 / small", "≥ 10", 1),
    ("small over a standard environment step", "small, {} / standard env step", "≤ 0.25", 3),
    ("small over a fast environment step", "small, {} / fast env step", "≤ 1", 2),
    ("small, 16 rows, over the floor", "small, {} / floor, 16 rows", "≤ 3", 2),
    ("steps a second with contexts over bare, standard", "steps per second with contexts / bare, standard", "≥ 0.8", 2),
    ("steps a second with contexts over bare, fast", "steps per second with contexts / bare, fast", "≥ 0.5", 2),
    ("small, all timescales over fast alone", "all timescales / fast alone", "≤ 1.3", 2),
    ("frame 10,000 over frame 100", "frame 10,000 / frame 100", "1 ± 0.05", 3),
)


def picture(timings: dict) -> bytes:
    """Milliseconds of one step of one row, each with its quartiles."""
    rows = sorted(ONE_ROW, key=lambda name: -timings[name]["median_ms"])
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for place, name in enumerate(rows):
        median, (low, high) = timings[name]["median_ms"], timings[name]["quartiles_ms"]
        color = COLORS[0] if name.startswith("small") else COLORS[5]
        axes.barh(place, median, color=color, xerr=[[max(0, median - low)], [max(0, high - median)]], ecolor="black")
        label = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
        axes.text(high * 1.1, place, f"{label} ms", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [ONE_ROW[name] for name in rows])
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 3)
    axes.set_xlabel("milliseconds per step, one row, one thread")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def bars_table(ratios: dict[str, float]) -> str:
    lines = ["| ratio | aim | PyTorch | ONNX Runtime |", "| --- | --- | --- | --- |"]
    for label, name, aim, digits in BARS:
        values = [
            ratios[name.format(backend) if "{}" in name else f"{name}, {backend}"] for backend in ("torch", "onnx")
        ]
        lines.append(f"| {label} | {aim} | " + " | ".join(f"{value:.{digits}f}" for value in values) + " |")
    sixteen = [ratios[f"ResNet-18 / small, {backend}, 16 rows"] for backend in ("torch", "onnx")]
    lines.append("| ResNet-18 at 224 against small, 16 rows | ≥ 10 | " + " | ".join(f"{v:.0f}" for v in sixteen) + " |")
    stacked = ratios["3 stacked frames / context, bytes in a replay buffer"]
    lines.append(f"| three stacked 64×64 frames over a context, bytes | ≥ 30 | {stacked:.0f} | {stacked:.0f} |")
    shell = ratios["VecPerceiverContext / model alone, 16 rows"]
    lines.append(f"| VecPerceiverContext over the model alone, 16 rows | ≤ 1.1 | {shell:.2f} | – |")
    held = ratios["state held at frame 10,000 / frame 100, bytes"]
    lines.append(f"| state held at frame 10,000 over frame 100, bytes | 1 ± 0.05 | {held:.2f} | – |")
    return "\n".join(lines)


def attempts_section(attempts: dict) -> str:
    spent, timings, window = attempts["profile"], attempts["timings"], attempts["window"]
    parts = ", ".join(f"{kind} {ms:.2f} ms" for kind, ms in spent["ms"].items())
    alone = {b: timings[f"window {window}, {b}"]["median_ms"] for b in ("torch", "onnx")}
    lines = ["| times as fast as PyTorch | one row | 16 rows |", "| --- | --- | --- |"]
    compiling = attempts["compiling_seconds"]["1"]
    for name, label in {
        "ONNX Runtime": '**`backend="onnx"`**',
        "torch.compile": f"`torch.compile` ({compiling:.0f} s before the first step, and a C++ compiler)",
        "channels-last": "channels-last weights",
        "int8": "int8 weights of linear maps (dynamic quantisation)",
        "bfloat16": "bfloat16, for which this processor has no instructions",
    }.items():
        ratios = [attempts["ratios"][f"PyTorch / {name}, {rows}"] for rows in (1, 16)]
        lines.append(f"| {label} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return f"""## Where the time goes, and what was tried

A step of one row with PyTorch launches {spent["operators"]} operators (views among them). Under the profiler, which \
slows them: {parts}. Small work done many times: no kernel stands out, and what helps is to launch fewer, as ONNX \
Runtime does.

{chr(10).join(lines)}

With {window} frames, recomputation is ahead of its reputation: it works on all of them at once, \
{attempts["recomputed_ms_a_frame"]:.2f} ms a frame, where a step has one frame alone, {alone["torch"]:.1f} ms with \
PyTorch and {alone["onnx"]:.1f} ms with ONNX Runtime. Each reads all weights once. A step that cost no more than a \
frame of many would be {window} times as fast as recomputation.

"""


def rendering_table(throughput: dict) -> str:
    per_second = throughput["frames_per_second_with_action_repeat_2"]
    tasks, qualities = (list(dict.fromkeys(name.rsplit(", ", 1)[i] for name in per_second)) for i in (0, 1))
    others = qualities[1:]
    lines = [
        f"| task | {' | '.join(qualities)} | {' | '.join(f'{quality} over standard' for quality in others)} |",
        "| --- |" + " --- |" * (len(qualities) + len(others)),
    ]
    for task in tasks:
        rates = {quality: per_second[f"{task}, {quality}"] for quality in qualities}
        cells = [f"{rate:.0f}" for rate in rates.values()]
        cells += [f"{rates[quality] / rates['standard']:.1f}" for quality in others]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def presets_section(presets: dict | None) -> str:
    if presets is None:
        return ""
    lines = [
        "| preset | parameters | MFLOP a step | ms a step (PyTorch) | ms (ONNX) | MLP probe, positions / velocities |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, size in presets["sizes"].items():
        ms = {b: presets["timings"].get(f"{name}, {b}", {}).get("median_ms") for b in ("torch", "onnx")}
        scores = presets["trained"].get(name, {}).get("probe_r2", {}).get("context, MLP")
        read = f"{scores['positions']:.2f} / {scores['velocities']:.2f}" if scores else "not trained here"
        times = [f"{value:.1f}" if value else "–" for value in ms.values()]
        lines.append(
            f"| `{name}` | {size['parameters']:,} | {size['step_megaflops']:,.0f} | {times[0]} | {times[1]} | {read} |"
        )
    steps = presets["steps"]
    return f"""## Sizes

`CausalPerceiverIO.from_preset(NAME)`, and `--preset NAME` of both trainings. The probe is of minutes of training, \
{steps["tokenizer"]:,} steps of the tokenizer and {steps["predictor"]:,} of the predictor on {presets["frames"]:,} \
frames of {presets["task"]} (seed {presets["seed"]}): enough to compare sizes, not to judge them. `base` is the \
published size, for a GPU. Measured by `make presets`.

{chr(10).join(lines)}

"""


def main() -> None:
    results = {
        path.stem: json.loads(path.read_text())
        for path in (RESULTS / f"{name}.json" for name in ("steps", "attempts", "throughput", "presets"))
        if path.is_file()
    }
    steps, throughput = results["steps"], results["throughput"]
    made_on = steps["machine"]
    collected = throughput["collected_frames_per_second"]
    training = throughput["ratios"]["plain loop / predictor training"]
    write_atomic(DOCS / "images" / "steps.png", picture(steps["timings"]))
    page = f"""# What a step costs

Written by `make bench` from `benchmarks/results/`; do not edit. One thread of an {made_on["processor"]}, torch \
{made_on["torch"]}, ONNX Runtime {made_on["onnxruntime"]}; everything in a table was timed in one run, in turns.

![Milliseconds per step](images/steps.png)

*Medians of one row with quartiles, on a logarithmic axis. "Recomputed" is what has been published for contexts of \
this kind: the whole window again at every step.*

`backend="auto"`, the default, takes `"{steps["default_backend"]}"` on a CPU. ONNX Runtime runs a step as one graph of \
{steps["graph_nodes"]} nodes: the same contexts within 1e-4, checked by the same tests. The floor is the step's \
{steps["step_megaflops"]:.1f} MFLOP at this machine's own matrix \
product ({steps["matmul_gigaflops_per_second"]:.0f} GFLOP/s), or its weights at the speed of memory \
({steps["copy_gigabytes_per_second"]:.0f} GB/s), whichever takes longer: \
{steps["floor_ms"]["1"]:.2f} ms for one row, {steps["floor_ms"]["16"]:.1f} ms for 16.

{bars_table(steps["ratios"])}

{attempts_section(results["attempts"])}{presets_section(results.get("presets"))}## Rendering

Environment steps a second, action repeat 2, one process.

{rendering_table(throughput)}

Collected frames a second, start of the workers not counted: \
{", ".join(f"{value:.0f} ({name})" for name, value in collected.items())}.

## Training

A step of `train-predictor` reads cached tokens, computes contexts of some frames only and predicts tokens of a few: \
{training:.1f} times as fast as a plain loop of the same model, which encodes the frames at every step and predicts \
all tokens of all frames to come.
"""
    write_atomic(DOCS / "speed.md", page.encode())
    print(f"written to {DOCS / 'speed.md'}")
    write_scale_page(steps, throughput)


if __name__ == "__main__":
    main()

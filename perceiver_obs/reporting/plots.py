"""Pictures of a run as PNG bytes: plain, labelled, readable without the code at hand."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perceiver_obs.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Frames = NDArray[np.uint8]
Curve = tuple[Sequence[float], Sequence[float]]
DOTS_PER_INCH = 110
CELL_PIXELS, CELL_GAP, TABLE_PIXELS = 96, 4, 1200
COLORS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774", "#24292f")


def reconstructions(originals: Frames, decoded: Frames) -> bytes:
    """Originals `[N, H, W, 3]` above what the tokens decode to, and their absolute difference (×4)."""
    difference = np.abs(originals.astype(np.int16) - decoded.astype(np.int16))
    rows = {"original": originals, "from tokens": decoded, "difference ×4": np.minimum(4 * difference, 255)}
    return frame_table({name: frames.astype(np.uint8) for name, frames in rows.items()})


def filmstrip(happened: Frames, predicted: Frames, every: int = 1) -> bytes:
    """What happened `[T, H, W, 3]` above what a model predicted for the last of these frames `[N, H, W, 3]`.

    Every `every`-th predicted frame is shown, and the last one that the model saw.
    """
    ahead = np.arange(every, len(predicted) + 1, every)
    first = len(happened) - len(predicted) - 1
    unseen = np.full((1, *happened.shape[1:]), 255, np.uint8)
    rows = {
        "happened": happened[first + np.concatenate([[0], ahead])],
        "predicted": np.concatenate([unseen, predicted[ahead - 1]]),
    }
    return frame_table(rows, ["last seen", *(f"+{number}" for number in ahead)])


def write_gif(path: Path, happened: Frames, predicted: Frames, frames_per_second: float, scale: int = 4) -> None:
    """An animation: what happened on the left, on the right what the model saw and then predicted.

    A bar above the right half is grey while the model sees and orange while it predicts.
    """
    from PIL import Image

    num_seen = len(happened) - len(predicted)
    right = np.concatenate([happened[:num_seen], predicted])
    images = []
    for time, halves in enumerate(zip(happened, right)):
        large = [frame.repeat(scale, axis=0).repeat(scale, axis=1) for frame in halves]
        gap = np.full((large[0].shape[0], scale, 3), 255, np.uint8)
        picture = np.concatenate([large[0], gap, large[1]], axis=1)
        bar = np.full((2 * scale, picture.shape[1], 3), 255, np.uint8)
        bar[:, large[0].shape[1] + scale :] = (160, 160, 160) if time < num_seen else (217, 115, 13)
        images.append(Image.fromarray(np.concatenate([bar, picture])))
    buffer = io.BytesIO()
    duration = round(1000 / frames_per_second)
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    write_atomic(path, buffer.getvalue())


def frame_table(rows: Mapping[str, Frames], columns: Sequence[str] = ()) -> bytes:
    """Rows of frames `[N, H, W, 3]` under column labels, enlarged by whole numbers only."""
    count, height, width, _ = next(iter(rows.values())).shape
    scale = max(1, min(round(CELL_PIXELS / width), TABLE_PIXELS // (count * width)))
    cell_height, cell_width = scale * height + CELL_GAP, scale * width + CELL_GAP
    table = np.full((len(rows) * cell_height, count * cell_width, 3), 255, np.uint8)
    for row, frames in enumerate(rows.values()):
        for column, frame in enumerate(frames):
            top, left = row * cell_height, column * cell_width
            large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
            table[top : top + scale * height, left : left + scale * width] = large
    size = (table.shape[1] / DOTS_PER_INCH, table.shape[0] / DOTS_PER_INCH)
    figure, axes = _figure(*size, 1, 1)
    axis = axes[0, 0]
    axis.imshow(table, interpolation="nearest")
    axis.set_axis_off()
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    for row, name in enumerate(rows):
        axis.text(-6, (row + 0.5) * cell_height, name, ha="right", va="center", fontsize=9)
    for column, name in enumerate(columns):
        axis.text((column + 0.5) * cell_width, -6, name, ha="center", va="bottom", fontsize=8)
    return _png(figure)


def code_usage(counts: NDArray[np.int64]) -> bytes:
    """How often each code is used, most frequent first, one panel a codebook; counts `[Q, num_codes]`."""
    figure, axes = _figure(3.2 * len(counts), 2.4, 1, len(counts), sharey=True)
    for number, (axis, usage) in enumerate(zip(axes[0], counts)):
        share = np.sort(usage)[::-1] / max(usage.sum(), 1)
        axis.fill_between(np.arange(len(share)), share, step="mid", color=COLORS[0], alpha=0.85, linewidth=0)
        axis.set_yscale("log")
        used = np.count_nonzero(usage)
        axis.set_title(f"codebook {number + 1}: {used} of {len(usage)} codes used", fontsize=9)
        axis.set_xlabel("code, most frequent first", fontsize=8)
        _tidy(axis)
    axes[0, 0].set_ylabel("share of tokens", fontsize=8)
    return _png(figure)


def curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> bytes:
    """Panels by title, each with lines by name: their x (steps) and y values."""
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure, axes = _figure(4.4 * num_columns, 2.7 * num_rows, num_rows, num_columns)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, lines) in zip(axes.flat, panels.items()):
        for color, (name, (steps, values)) in zip(cycle(COLORS), lines.items()):
            marker = "o" if len(steps) <= 20 else None
            axis.plot(steps, values, label=name, color=color, linewidth=1.3, marker=marker, markersize=3)
        positive = [v for _, values in lines.values() for v in values if v > 0]
        if "loss" in title and positive and max(positive) > 20 * min(positive):
            axis.set_yscale("log")
        if "share" in title:
            axis.set_ylim(0, 1.04)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        if len(lines) > 1:
            axis.legend(fontsize=7, frameon=False)
        _tidy(axis)
    return _png(figure)


def bars(groups: Mapping[str, Mapping[str, float]], ylabel: str) -> bytes:
    """Groups of bars between 0 and 1, each with its number; bars below 0 are cut there and keep their number."""
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    width = 0.8 / len(names)
    figure, axes = _figure(max(4.5, 1.0 + 0.62 * len(groups) * len(names)), 3.0, 1, 1)
    axis = axes[0, 0]
    for place, (name, color) in enumerate(zip(names, cycle(COLORS))):
        values = np.array([group.get(name, np.nan) for group in groups.values()])
        x = np.arange(len(groups)) + (place - (len(names) - 1) / 2) * width
        drawn = axis.bar(x, np.maximum(values, 0), width * 0.92, color=color, label=name)
        labels = ["" if np.isnan(value) else f"{value:.2f}" for value in values]
        axis.bar_label(drawn, labels, fontsize=7, padding=1)
    axis.set_xticks(np.arange(len(groups)), groups.keys(), fontsize=8)
    axis.set_ylabel(ylabel, fontsize=8)
    axis.set_ylim(0, 1.06)
    axis.legend(fontsize=7, frameon=False, ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _tidy(axis)
    return _png(figure)


def learning_curve(lines: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Mean return over environment frames with a band of one standard deviation, one line a policy, the first bold."""
    figure, axes = _figure(6.8, 3.6, 1, 1)
    axis = axes[0, 0]
    for place, (name, evaluations) in enumerate(lines.items()):
        color = COLORS[place % len(COLORS)]
        frames = np.array([e["frames"] for e in evaluations])
        mean = np.array([e["mean_return"] for e in evaluations])
        deviation = np.array([e.get("std_return", 0.0) for e in evaluations])
        width = 2.4 if place == 0 else 1.6
        axis.plot(frames, mean, color=color, linewidth=width, marker="o", markersize=2 * width, clip_on=False)
        axis.fill_between(frames, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)
        end = (frames[-1], mean[-1])
        axis.annotate(name, end, (9, 0), textcoords="offset points", color=color, fontsize=11, va="center")
    if axis.get_ylim()[0] > 0:  # so that small differences look small
        axis.set_ylim(bottom=0)
    axis.set_xlabel("frames", fontsize=11)
    axis.set_ylabel("return of an episode", fontsize=11)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    _tidy(axis)
    axis.tick_params(labelsize=10)
    return _png(figure)


def return_curves(
    panels: Mapping[str, Mapping[str, Sequence[Curve]]], references: Mapping[str, float], reference_name: str
) -> bytes:
    """A panel a task: mean return over frames, a line a method with its lowest to highest seed shaded.

    Args:
        panels: by task and method, the curve (frames, returns) of each seed.
        references: by task, a return drawn as a dashed line.
        reference_name: what these are, for the legend.
    """
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure, axes = _figure(3.5 * num_columns, 2.6 * num_rows + 0.5, num_rows, num_columns, sharex=True, sharey=True)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axis, (task, lines) in zip(axes.flat, panels.items()):
        _draw_seeds(axis, lines, names, 1000)
        if task in references:
            axis.axhline(references[task], color="#37352f", linewidth=1, linestyle=(0, (5, 3)), label=reference_name)
        axis.set_title(task, fontsize=10)
        axis.set_ylim(0, 1020)
        axis.set_xlim(left=0)
        _tidy(axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("return of an episode", fontsize=8)
    for place, axis in enumerate(axes.flat[: len(panels)]):
        if place + num_columns >= len(panels):
            axis.set_xlabel("control steps, thousands", fontsize=8)
            axis.tick_params(labelbottom=True)
    _legend_below(figure, axes, 2 * num_columns)
    return _png(figure)


def cost_curves(panels: Mapping[str, Mapping[str, Sequence[Curve]]]) -> bytes:
    """A panel a cost, such as steps or minutes: mean return over it, a line a method as in `return_curves`.

    Args:
        panels: by cost and method, the curve (cost, returns) of each seed.
    """
    figure, axes = _figure(4.6 * len(panels), 3.6, 1, len(panels), sharey=True)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axis, (cost, lines) in zip(axes.flat, panels.items()):
        _draw_seeds(axis, lines, names, 1)
        axis.set_xlim(left=0)
        axis.set_xlabel(cost, fontsize=8)
        _tidy(axis)
    axes.flat[0].set_ylabel("return of an episode", fontsize=8)
    _legend_below(figure, axes, 3)
    return _png(figure)


def _draw_seeds(axis: Any, lines: Mapping[str, Sequence[Curve]], names: Sequence[str], unit: float) -> None:
    """The mean of each method's seeds, and from the lowest to the highest of them shaded."""
    for name, seeds in lines.items():
        grid, values = _on_one_grid(seeds)
        color = COLORS[names.index(name) % len(COLORS)]
        axis.plot(grid / unit, values.mean(axis=0), color=color, linewidth=1.6, label=name)
        axis.fill_between(grid / unit, values.min(axis=0), values.max(axis=0), color=color, alpha=0.16, linewidth=0)


def _legend_below(figure: Any, axes: Any, most_in_a_row: int) -> None:
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels())}
    per_row = min(most_in_a_row, len(handles))
    legend_height = 0.15 + 0.2 * -(-len(handles) // per_row)  # inches
    figure.tight_layout(rect=(0, legend_height / figure.get_figheight(), 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=per_row, fontsize=8, frameon=False)


def _on_one_grid(curves: Sequence[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The frames of the shortest curve, and all curves there `[seeds, points]`: resumed runs evaluate a step apart."""
    grid = np.asarray(min((frames for frames, _ in curves), key=len), np.float64)
    return grid, np.stack([np.interp(grid, frames, values) for frames, values in curves])


def _figure(width: float, height: float, rows: int, columns: int, **options: Any) -> tuple["Figure", Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _tidy(axis: "Axes") -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)
    axis.grid(axis="y", alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.06)
    return buffer.getvalue()

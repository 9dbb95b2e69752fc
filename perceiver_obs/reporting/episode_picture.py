"""One moment of an episode as a model sees it: frames, the context as a trace, and the state read from it."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from perceiver_obs.reporting.episode_view import LANES, EpisodeView, Frames, Reading, Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

DOTS_PER_INCH = 100
TRUE, CONTEXT, TOKENS, GREY, PALE = "#24292f", "#0b6e99", "#d9730d", "#6e7781", "#f6f8fa"
MARGIN, GAP, PANEL = 28, 24, 192  # pixels
PANELS_TOP, TRACES_TOP, TRACES_HEIGHT, BOTTOM = 122, 70, 240, 62
BAR = 4  # dots of colour above a frame
TICKS = 36  # dots left of an axis for its labels
LANE_GAP = 12
NAME_ROOM = 18  # dots above a lane's lines for its name
THINNEST = 0.08  # of the height, the room of a direction that hardly varies


class EpisodePicture:
    """Draws the moments of an episode, all on the same axes, so that only lines and frames move.

    What stands still is drawn once; frames are pasted as they are, each pixel `scale` × `scale` dots.

    Args:
        view: the episode.
        window: seconds that the traces look back.

    Attributes:
        size: `(width, height)` of the pictures in dots.
        scale: dots a pixel of a frame.
        panels: left and top of each frame in dots, by name: "seen", "predicted", "now", "tokens".
    """

    def __init__(self, view: EpisodeView, window: float = 4.0):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.view = view
        self.window = window
        pixels = view.frames.shape[1]
        self.scale = -(-PANEL // pixels)
        self._side = self.scale * pixels
        self._traces_top = PANELS_TOP + self._side + TRACES_TOP
        width = 2 * MARGIN + 4 * self._side + 3 * GAP
        self.size = (width, self._traces_top + TRACES_HEIGHT + BOTTOM)
        lefts = [MARGIN + place * (self._side + GAP) for place in range(4)]
        self.panels = {n: (left, PANELS_TOP) for n, left in zip(("seen", "predicted", "now", "tokens"), lefts)}
        inches = [length / DOTS_PER_INCH for length in self.size]
        self._figure = Figure(figsize=(inches[0], inches[1]), dpi=DOTS_PER_INCH, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        self._times = np.arange(len(view.frames)) * view.step_seconds
        self._lines: list[tuple[Line2D, Line2D, Values]] = []
        self._draw_headings()
        self._draw_panel_titles()
        self._draw_traces()
        self._clock = self._text(width - MARGIN, 34, "", size=10, color=GREY, ha="right", animated=True)

    def __len__(self) -> int:
        return len(self.view.frames)

    def draw(self, time: int) -> Frames:
        """The picture `[height, width, 3]` of frame `time`."""
        view, now = self.view, self._times[time]
        self._canvas.restore_region(self._background)
        first = int(np.searchsorted(self._times, now - self.window - view.step_seconds))
        for line, dot, values in self._lines:
            line.set_data(self._times[first : time + 1] - now, values[first : time + 1])
            dot.set_data([0], [values[time]])
            self._figure.draw_artist(line)
            self._figure.draw_artist(dot)
        self._clock.set_text(f"step {time}    {now:.2f} s    return {view.rewards[:time].sum():.1f}")
        self._figure.draw_artist(self._clock)
        picture = np.asarray(self._canvas.buffer_rgba())[..., :3].copy()
        then = time - view.horizon
        shown = {"now": view.frames[time], "tokens": view.reconstructed[time]}
        if then >= 0:
            shown |= {"seen": view.frames[then], "predicted": view.predicted[then]}
        for name, frame in shown.items():
            left, top = self.panels[name]
            large = frame.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
            picture[top : top + self._side, left : left + self._side] = large
        return picture

    @cached_property
    def _background(self) -> Any:
        """All that stands still, drawn once."""
        self._canvas.draw()
        return self._canvas.copy_from_bbox(self._figure.bbox)

    def _draw_headings(self) -> None:
        self._text(MARGIN, 34, self.view.title, size=15, weight="bold")
        self._text(MARGIN, 55, self.view.subtitle, size=9, color=GREY)
        self._text(MARGIN, self.size[1] - 14, self.view.footnote, size=7.5, color=GREY)

    def _draw_panel_titles(self) -> None:
        from matplotlib.patches import Rectangle

        view = self.view
        steps = "1 step" if view.horizon == 1 else f"{view.horizon} steps"
        actions = "the action" if view.horizon == 1 else f"the {view.horizon} actions"
        height, width, codebooks = view.token_shape
        titles = {
            "seen": (f"{steps} ago", f"{view.horizon * view.step_seconds:.2g} s before now", TRUE),
            "predicted": ("predicted from there", f"context + {actions} since", CONTEXT),
            "now": ("now", "what the environment shows", TRUE),
            "tokens": ("now, through tokens", f"{height}×{width} places, {codebooks} codes each", TOKENS),
        }
        for name, (title, explanation, color) in titles.items():
            left, top = self.panels[name]
            self._text(left, top - 28, title, size=10.5, weight="bold", color=color)
            self._text(left, top - 12, explanation, size=8, color=GREY)
            for box, fill in (((left, top - BAR, self._side, BAR), color), ((left, top, self._side, self._side), PALE)):
                x, y, across, up = self._box(*box)
                where = self._figure.transFigure
                self._figure.add_artist(Rectangle((x, y), across, up, facecolor=fill, transform=where))
            middle = {"ha": "center", "va": "center", "color": GREY}
            self._text(left + self._side / 2, top + self._side / 2, "nothing yet", size=9, **middle)

    def _draw_traces(self) -> None:
        view = self.view
        column = (self.size[0] - 2 * MARGIN - 2 * GAP) / 3
        lefts = [MARGIN + place * (column + GAP) for place in range(3)]
        top = self._traces_top
        count = len(view.shares)
        self._text(lefts[0], top - 24, "context", size=10.5, weight="bold", color=CONTEXT)
        explanation = f"{count} main directions of its {view.context_dim} numbers"
        self._text(lefts[0], top - 8, explanation, size=8, color=GREY)
        self._draw_context(lefts[0], column)
        for left, title, readings in (
            (lefts[1], "positions", view.positions),
            (lefts[2], "velocities", view.velocities),
        ):
            self._text(left, top - 24, title, size=10.5, weight="bold")
            self._text(left, top - 8, "true", size=8, weight="bold", color=TRUE)
            self._text(left + 31, top - 8, "and", size=8, color=GREY)
            self._text(left + 55, top - 8, "read from the context", size=8, weight="bold", color=CONTEXT)
            for place, reading in enumerate(readings[:LANES]):
                self._draw_reading(left, column, place, min(LANES, len(readings)), reading)

    def _draw_context(self, left: float, width: float) -> None:
        """One line a direction, one below the other and all to the same scale."""
        traces, shares = self.view.traces, self.view.shares
        axis = self._axes(left + TICKS, self._traces_top, width - TICKS, TRACES_HEIGHT)
        lows, highs = traces.min(axis=0), traces.max(axis=0)
        rooms = np.maximum(highs - lows, THINNEST * max(float((highs - lows).sum()), 1e-9))
        middles = rooms / 2 - np.cumsum(rooms)
        axis.set_ylim(-1.02 * rooms.sum(), 0.02 * rooms.sum())
        axis.set_yticks(middles, [f"{share:.0%}" for share in shares])
        axis.tick_params(axis="y", length=0)
        for place, middle in enumerate(middles):
            values = traces[:, place] - (lows[place] + highs[place]) / 2 + middle
            self._add_line(axis, values, CONTEXT, alpha=1 - 0.55 * place / max(len(shares) - 1, 1))

    def _draw_reading(self, left: float, width: float, place: int, count: int, reading: Reading) -> None:
        """True and read, on axes that hold all that is true; the worst of what is read stays at their edges."""
        from matplotlib.ticker import MaxNLocator

        height = (TRACES_HEIGHT - (count - 1) * LANE_GAP) / count
        top = self._traces_top + place * (height + LANE_GAP)
        axis = self._axes(left + TICKS, top, width - TICKS, height, time_labels=place == count - 1)
        low = min(reading.true.min(), np.quantile(reading.read, 0.01))
        high = max(reading.true.max(), np.quantile(reading.read, 0.99))
        span = max(high - low, 1e-3)
        axis.set_ylim(low - 0.05 * span, low + span * height / (height - NAME_ROOM))
        ticks = MaxNLocator(3, steps=[1, 2, 5, 10]).tick_values(low, high)
        axis.set_yticks([tick for tick in ticks if low <= tick <= low + span])
        unit = f" {reading.unit}" if reading.unit else ""
        corner: dict[str, Any] = {"transform": axis.transAxes, "va": "top", "fontsize": 8}
        above = 1 - 3 / height
        axis.text(0.02, above, reading.name + (f", {reading.unit}" if unit else ""), color=TRUE, **corner)
        axis.text(0.97, above, f"error {reading.error:.2g}{unit}", ha="right", color=GREY, **corner)
        self._add_line(axis, reading.true, TRUE, width=1.8)
        self._add_line(axis, np.clip(reading.read, low, high), CONTEXT)

    def _axes(self, left: float, top: float, width: float, height: float, time_labels: bool = True) -> "Axes":
        axis = self._figure.add_axes(self._box(left, top, width, height), facecolor=PALE)
        axis.spines[:].set_visible(False)
        axis.set_xlim(-self.window, 0.02 * self.window)
        ticks = np.linspace(-self.window, 0, 5)
        labels = [f"{tick:g}" for tick in ticks[:-1]] + ["now"]
        axis.set_xticks(ticks, labels if time_labels else [])
        axis.tick_params(labelsize=7.5, color=GREY, labelcolor=GREY, length=2, pad=2)
        if time_labels:
            axis.set_xlabel("seconds", fontsize=7.5, color=GREY, labelpad=1)
        axis.axvline(0, color="#d0d7de", linewidth=1, zorder=0)
        return axis

    def _add_line(self, axis: "Axes", values: Values, color: str, width: float = 1.3, alpha: float = 1.0) -> None:
        (line,) = axis.plot([], [], color=color, linewidth=width, alpha=alpha, animated=True)
        (dot,) = axis.plot([], [], "o", color=color, markersize=4, alpha=alpha, animated=True, clip_on=False)
        self._lines.append((line, dot, values))

    def _text(self, left: float, base: float, text: str, **style: Any) -> Any:
        """Text whose baseline lies `base` dots below the top."""
        width, height = self.size
        return self._figure.text(left / width, 1 - base / height, text, **style)

    def _box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """A box in dots from the top left as matplotlib wants it, in parts of the figure from the bottom left."""
        across, down = self.size
        return left / across, 1 - (top + height) / down, width / across, height / down

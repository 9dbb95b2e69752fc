"""The learning curve of a run, one JSON line an evaluation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from perceiver_obs.files import write_atomic

CURVE_FILE = "curve.jsonl"


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation: `frames` are simulated control steps (agent steps x action repeat), `seconds` of the
    run."""

    frames: int
    steps: int
    mean_return: float
    std_return: float
    returns: list[float]
    seconds: float


class LearningCurve:
    """Reads and extends `curve.jsonl`.

    Args:
        path: the file; it need not exist.
        steps: how far the run has come. Later points, of a run that was killed after its last checkpoint, are
            dropped, since they will be measured again.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self.path = path
        self.points = [point for point in read_curve(path) if point.steps <= steps] if path.is_file() else []

    def append(self, point: CurvePoint) -> None:
        """Adds a point and writes the file, whole or not at all."""
        self.points.append(point)
        lines = "".join(json.dumps(asdict(point)) + "\n" for point in self.points)
        write_atomic(self.path, lines.encode())


def read_curve(path: Path) -> list[CurvePoint]:
    """The points of a `curve.jsonl`, in order; ValueError if it is damaged."""
    try:
        points = [CurvePoint(**json.loads(line)) for line in path.read_text().splitlines()]
        if not all(isinstance(point.steps, int) for point in points):
            raise TypeError("steps must be whole numbers")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a learning curve: {error}") from error
    return points

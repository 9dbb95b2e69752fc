"""Metrics of a run: JSON lines for the report and TensorBoard for watching."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceiver_obs.files import name_full_disk, write_atomic


class MetricsLog:
    """Writes scalars to `metrics.jsonl` and, with pictures, to TensorBoard.

    Args:
        file: JSON lines file. Lines of steps after `step` are dropped: a resumed run writes them anew.
        tensorboard: directory of the event files.
        step: the step that the run goes on from.
    """

    def __init__(self, file: Path, tensorboard: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        if file.exists():
            kept = [row for row in read_lines(file) if row["step"] <= step]
            write_atomic(file, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._path = file
        self._file = open(file, "a", buffering=1)  # noqa: SIM115 (open for as long as the run)
        self._board = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one line: the step and its scalars, named like `train/loss`."""
        with name_full_disk(self._path):
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)

    def write_pictures(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Shows pictures `[H, W, 3]` in TensorBoard."""
        with name_full_disk(self._path):
            for name, picture in pictures.items():
                self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_lines(file: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; a line cut short by a kill is left out."""
    rows = []
    for line in Path(file).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def curve(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one scalar."""
    chosen = [row for row in rows if name in row]
    return [row["step"] for row in chosen], [row[name] for row in chosen]

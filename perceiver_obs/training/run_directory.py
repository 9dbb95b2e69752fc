"""The directory of a run: settings, checkpoint, metrics, figures, report and the finished model."""

import json
from pathlib import Path
from typing import Any

from perceiver_obs.files import write_atomic
from perceiver_obs.training.settings import check_same_settings, read_json, settings_to_dict


class RunDirectory:
    """Paths of a run, and its settings.

    Opening a directory that holds a run begun with other settings raises ValueError naming the setting.
    """

    def __init__(self, path: str | Path, settings: Any):
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.token_cache = self.path / "token_cache"
        self.report = self.path / "report.html"
        self._settings_file = self.path / "settings.json"
        if self._settings_file.is_file():
            check_same_settings(read_json(self._settings_file), settings, str(self.path))

    def write_settings(self, settings: Any) -> None:
        """Records the settings the run is under way with."""
        write_atomic(self._settings_file, json.dumps(settings_to_dict(settings), indent=2).encode())

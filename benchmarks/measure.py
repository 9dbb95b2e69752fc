"""What every benchmark here shares: timing in turns, the machine, and files of results."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from agents.training.policy_files import processor
from perceiver_obs.files import write_atomic

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"

Timing = dict[str, float | list[float]]


def time_in_turns(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Median and quartiles of each step in milliseconds; one of each in every round, so that ratios hold in noise."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    timings = {}
    for name, values in seconds.items():
        low, median, high = (1e3 * q for q in statistics.quantiles(values, n=4))
        timings[name] = {"median_ms": round(median, 3), "quartiles_ms": [round(low, 3), round(high, 3)]}
    return timings


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    packages = ("torch", "onnxruntime", "mujoco", "dm_control", "stable_baselines3", "transformers")
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def write_results(name: str, results: Mapping[str, object], ratios: Mapping[str, float]) -> None:
    """Writes `results/NAME.json` and prints the ratios."""
    path = RESULTS / f"{name}.json"
    rounded = {ratio: round(value, 3) for ratio, value in ratios.items()}
    text = json.dumps({"machine": machine(), **results, "ratios": rounded}, indent=2) + "\n"
    write_atomic(path, text.encode())
    for ratio, value in rounded.items():
        print(f"{value:10.2f}  {ratio}")
    print(f"written to {path}")

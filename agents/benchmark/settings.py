"""Settings of `benchmark`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from agents.benchmark.suite import METHODS, TASKS, Protocol
from perceiver_obs.settings import Backend


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(Protocol):
    """Train and compare policies on contexts and on the baselines, and write tables and curves."""

    suite: Annotated[Positional[Literal["dmc100k"]], arg(metavar="[SUITE]")] = "dmc100k"
    """The suite: DMControl-100k, six tasks of dm_control. With --env that environment takes its place."""
    tasks: tuple[str, ...] = TASKS
    """Tasks of the suite to run."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods to run: "context" (the frozen model), "adapted" (the model, learning on from what the policy sees),
    "state" (the true state), "pixels" (a CNN on three stacked frames), "pca" (principal components of three stacked
    frames), "random" (a network with random weights) and "privileged" (the frozen model that was trained on states
    too)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to run. The first comes first on all tasks and methods."""
    model: str = "dmc-small"
    """Perceiver that is compared: bundled name, directory, or "hf://owner/name" of the hub."""
    privileged_model: str = "dmc-small-state"
    """Perceiver of the method "privileged", likewise."""
    data: tuple[str, ...] = ()
    """Rollout directories that "pca" is fitted on, that scale the contexts of "random" and that "adapted" mixes in.
    Frames of other tasks or other rendering are left aside. None named: some are collected."""
    out: Path = Path("runs/dmc100k")
    """Directory of the runs, each in METHOD/TASK/seed-N; finished ones are kept, others resumed.
    With --env it is runs/benchmark-ID unless it is given."""
    results: Path = Path("benchmarks/results/dmc100k.json")
    """File of all finished runs, also of those that other machines added. With --env it is results.json in `out`."""
    docs: Path = Path("docs")
    """Directory for the page and, in images/, the curves. With --env it is `out`."""
    report_only: bool = False
    """Train nothing; gather what is finished and write results, page and curves."""
    device: str = "auto"
    """Where the Perceiver and the policies run: "auto", "cpu", "cuda" ..."""
    backend: Backend = "auto"
    """What computes the contexts: "torch", "onnx" for ONNX Runtime on the CPU, or "auto", which takes that on a CPU."""
    progress_bar: bool = True
    """Show a progress bar for each run."""

    def placed(self) -> BenchmarkSettings:
        """With --env, the environment as the one task and the files where they belong, unless they are given."""
        if self.env is None:
            return self
        plain = BenchmarkSettings()
        out = self.out if self.out != plain.out else Path(f"runs/benchmark-{self.name}")
        own: dict[str, Any] = {"tasks": (self.name,), "out": out, "results": out / "results.json", "docs": out}
        return replace(self, **{name: v for name, v in own.items() if getattr(self, name) == getattr(plain, name)})

"""A model trained on a GPU machine for minutes: `make gpu` on a machine with one, with no network needed.

Renders the six tasks on all cores, by policies where `--policies` has some, trains the Perceiver on the GPU in
bfloat16 from the bundled tokenizer, and measures. Leaves the model (`model/`) and `gpu.json` with frames rendered,
steps trained and contexts computed a second.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from make_model import TASKS
from measure import machine, time_in_turns

from perceiver_obs import CausalPerceiverIO, ContextEncoder
from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.files import write_atomic
from perceiver_obs.reporting.metrics import read_lines

ROWS = (1, 16, 1024)


@dataclass(frozen=True)
class GpuSettings:
    """Minutes for each part; the defaults take about nine."""

    out: Path = Path("runs/gpu")
    """Directory of all that is made."""
    tasks: tuple[str, ...] = TASKS
    """Tasks of the dm_control suite."""
    policies: Path | None = None
    """Directory with a TASK.zip of `train-policy --observation state` for each task; random and correlated noise acts
    in the others."""
    collect_minutes: float = 2.5
    """For all tasks together."""
    train_minutes: float = 4.5
    """Of the Perceiver, at most."""
    train_steps: int = 12_000
    """Of the Perceiver; its learning rate falls over these, so choose as many as fit into the minutes."""
    batch_size: int = 128
    """Clips a step."""
    state_weight: float = 0.0
    """Weight of regressing the true state (privileged training)."""


def run(command: str, minutes: float | None = None) -> None:
    """Runs a command of `perceiver-obs`; one that its time limit ends leaves what is whole."""
    print(f"perceiver-obs {command}", flush=True)
    arguments = [sys.executable, "-m", "agents.cli", *command.split()]
    with subprocess.Popen(arguments) as process:
        try:
            code = process.wait(None if minutes is None else 60 * minutes)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            return
    if code:
        sys.exit(f"perceiver-obs {command} failed")


def collect(settings: GpuSettings) -> dict[str, float]:
    """Rollouts of all tasks: half of the time short episodes from random poses, half longer ones by a policy."""
    minutes = settings.collect_minutes / (2 * len(settings.tasks))
    frames = 0
    began = time.monotonic()
    for task in settings.tasks:
        zip_file = settings.policies and settings.policies / f"{task}.zip"
        acting = f"{zip_file},{zip_file},correlated" if zip_file and zip_file.exists() else "mixed"
        for kind, options in (
            ("random_init", "--policy mixed --max-steps 15 --seed 11"),
            ("competent", f"--policy {acting} --max-steps 100 --seed 21"),
        ):
            out = settings.out / "data" / f"{task}-{kind}"
            run(f"collect --task {task} --random-init --episodes 1000000 --out {out} {options}", minutes)
            frames += RolloutDataset(out).num_frames
    seconds = time.monotonic() - began
    return {"frames": frames, "seconds": round(seconds, 1), "frames_per_second": round(frames / seconds, 1)}


def train(settings: GpuSettings) -> dict[str, float]:
    """The Perceiver, on frames, for its minutes."""
    data = " ".join(str(path) for path in sorted((settings.out / "data").iterdir()))
    out = settings.out / "full"
    began = time.monotonic()
    run(
        f"train-predictor --data {data} --tokenizer dmc-small --out {out} --reads frames --keypoints None "
        f"--pixel-weight 1 --state-weight {settings.state_weight} --batch-size {settings.batch_size} "
        f"--steps {settings.train_steps} --max-minutes {settings.train_minutes} --evaluate-every {settings.train_steps}"
    )
    steps = max(row["step"] for row in read_lines(out / "metrics.jsonl"))
    seconds = time.monotonic() - began
    return {"steps": steps, "clips_a_step": settings.batch_size, "seconds_with_cache_and_report": round(seconds, 1)}


def contexts_per_second(model: CausalPerceiverIO) -> dict[str, float]:
    """Of one batched call a step, by rows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = {}
    for rows in ROWS:
        encoder = ContextEncoder(model, rows, device)
        frames = torch.randint(0, 256, (rows, 64, 64, 3), dtype=torch.uint8).numpy()
        steps[str(rows)] = lambda encoder=encoder, frames=frames: encoder.push(frames)
    timings = time_in_turns(steps, 20)
    return {rows: round(1e3 * int(rows) / timing["median_ms"], 1) for rows, timing in timings.items()}


def main(settings: GpuSettings) -> None:
    os.environ.setdefault("MUJOCO_GL", "egl")
    results = {"machine": machine(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    results["collect"] = collect(settings)
    results["train"] = train(settings)
    model = CausalPerceiverIO.from_pretrained(settings.out / "full")
    model.save_pretrained(settings.out / "model", half_precision=True)
    results["contexts_per_second"] = contexts_per_second(model)
    write_atomic(settings.out / "gpu.json", (json.dumps(results, indent=1) + "\n").encode())
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(tyro.cli(GpuSettings))

"""SIGKILLs at random moments, over the subcommands: what was finished stays, and the end is that of an unbroken run.

Each job runs once undisturbed, then in another directory with a SIGKILL at a random moment, again and again until it
has survived enough of them and ends. Collected episodes and trained models must then equal the unbroken ones bit for
bit; policies, which SB3 does not resume that exactly, must be whole. Writes `results/kills.json`; run it by
`make kills`, about ten minutes.
"""

import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measure import write_results

from agents.benchmark.results import Results
from agents.benchmark.suite import Protocol
from agents.training.policy_files import read_curve
from perceiver_obs.data.rollouts import RolloutDataset

KILLS = 8  # of each job
SEED = 0


@dataclass(frozen=True)
class Job:
    """A subcommand's options, given its directory, and what identifies its result."""

    name: str
    options: Callable[[Path], list[str]]
    result: Callable[[Path], str]


def episodes(out: Path) -> str:
    digest = hashlib.sha256()
    for episode in RolloutDataset(out):
        for array in (episode.pixels, episode.actions, episode.rewards, episode.states):
            digest.update(array.tobytes())
        digest.update(f"{episode.seed} {episode.policy} {episode.truncated}".encode())
    return digest.hexdigest()


def weights(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def policy(out: Path) -> str:
    assert (out / "policy.zip").is_file()
    return str([point.frames for point in read_curve(out / "curve.jsonl")])


def benchmark(out: Path) -> str:
    protocol = Protocol(total_frames=1600, eval_every=800, eval_episodes=1)
    results = Results.load(out / "results.json", "dmc100k", protocol)
    return str(sorted((run.method, run.task, run.seed, len(run.curve)) for run in results.runs))


def jobs(root: Path) -> list[Job]:
    data, tokenizer = str(root / "collect"), str(root / "train-tokenizer")
    training = ["--device", "cpu", "--batch-size", "4", "--checkpoint-every", "5", "--evaluate-every", "1000"]
    return [
        Job(
            "collect",
            lambda out: [
                *("--task", "cartpole-swingup", "--render-quality", "fast", "--out", str(out)),
                *("--episodes", "24", "--max-steps", "60", "--workers", "2"),
            ],
            episodes,
        ),
        Job(
            "train-tokenizer",
            lambda out: ["--data", data, "--out", str(out), "--steps", "80", "--base-channels", "8", *training],
            weights,
        ),
        Job(
            "train-predictor",
            lambda out: ["--data", data, "--tokenizer", tokenizer, "--out", str(out), "--steps", "120", *training],
            weights,
        ),
        Job(
            "train-policy",
            lambda out: [
                *("--task", "cartpole-swingup", "--render-quality", "fast", "--action-repeat", "planet"),
                *("--out", str(out), "--total-frames", "4800", "--eval-every", "800", "--eval-episodes", "1"),
                *("--learning-starts", "100", "--no-progress-bar"),
            ],
            policy,
        ),
        Job(
            "benchmark",
            lambda out: [
                *("dmc100k", "--methods", "state", "--tasks", "cartpole-swingup", "ball_in_cup-catch", "--seeds", "0"),
                *("--total-frames", "1600", "--eval-every", "800", "--eval-episodes", "1"),
                *("--out", str(out / "runs"), "--results", str(out / "results.json"), "--docs", str(out / "docs")),
            ],
            benchmark,
        ),
    ]


def run(job: Job, out: Path, kill_after: float | None = None) -> tuple[bool, float]:
    """Starts a job: whether it was killed, and its seconds. RuntimeError if it failed by itself."""
    began = time.monotonic()
    command = [sys.executable, "-m", "agents.cli", job.name, *job.options(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True, time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"{job.name} ended with {process.returncode}: {errors[-2000:]}")
    return False, time.monotonic() - began


def main() -> None:
    chance, figures = random.Random(SEED), {}
    with tempfile.TemporaryDirectory() as folder:
        root, broken = Path(folder), Path(folder) / "broken"
        for job in jobs(root):
            _, seconds = run(job, root / job.name)
            expected, kills, moments, ends = job.result(root / job.name), 0, [], 0
            while kills < KILLS:
                out = broken / f"{job.name}-{ends}"
                was_killed, lasted = run(job, out, chance.uniform(0.05, 0.9) * seconds)
                kills += was_killed
                if was_killed:
                    moments.append(round(lasted, 1))
                else:
                    assert job.result(out) == expected, job.name
                    ends += 1
            run(job, broken / f"{job.name}-{ends}")
            assert job.result(broken / f"{job.name}-{ends}") == expected, job.name
            figures[job.name] = {"kills": kills, "unbroken_seconds": round(seconds, 1), "killed_after": moments}
            print(job.name, figures[job.name], flush=True)
            shutil.rmtree(broken)
    write_results("kills", {"jobs": figures}, {"kills survived": sum(f["kills"] for f in figures.values())})


if __name__ == "__main__":
    main()

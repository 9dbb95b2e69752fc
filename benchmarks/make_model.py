"""Make a model of six tasks from nothing: data, tokenizer, Perceiver, probe. `make model` runs it.

Each stage is a command of `perceiver-obs`, printed before it runs. All of them go on from what is there, so a killed
run is simply started again. What each took is written to `times.json` beside the model.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from perceiver_obs import CausalPerceiverIO
from perceiver_obs.files import write_atomic

TASKS = (
    "ball_in_cup-catch",
    "cartpole-swingup",
    "cheetah-run",
    "finger-spin",
    "reacher-easy",
    "walker-walk",
)
TRAINED_ON = ("random_init", "exploration", "learning", "competent")


@dataclass(frozen=True)
class ModelSettings:
    """How much of everything; the defaults take a night on two cores."""

    out: Path = Path("runs/model")
    """Directory of all that is made; the model itself lies in `model`."""
    tasks: tuple[str, ...] = TASKS
    """Tasks of the dm_control suite."""
    random_init_episodes: int = 4000
    """Episodes a task of 15 steps from random poses in motion."""
    exploration_episodes: int = 200
    """Episodes a task of 125 steps from the task's own starts, by random and correlated actions."""
    policy_frames: int = 40_000
    """Control steps a task in which a policy on the true state learns while its episodes are recorded."""
    competent_episodes: int = 400
    """Episodes a task of 100 steps from random poses, two thirds of them by the policy that came of it, the others by
    correlated noise: what a good policy meets, and how it gets there."""
    expert_episodes: int = 20
    """Episodes a task of that policy: the on-policy part of the probe. Nothing is trained on them."""
    tokenizer_steps: int = 8000
    """Steps of the tokenizer."""
    predictor_steps: int = 60_000
    """Steps of the Perceiver."""
    state_weight: float = 0.0
    """Weight of regressing the true state: privileged training, for a model to be named so."""
    jobs: int = 0
    """Processes at once while policies learn; 0 for one on each core."""
    dry_run: bool = False
    """Print the commands and run none."""


def stages(settings: ModelSettings) -> dict[str, list[str]]:
    """The commands of each stage, in order; those of one stage do not depend on each other."""
    data, out = settings.out / "data", settings.out
    collect = "perceiver-obs collect --policy mixed"
    trained_on = " ".join(str(data / f"{task}-{kind}") for task in settings.tasks for kind in TRAINED_ON)
    experts = " ".join(str(data / f"{task}-expert") for task in settings.tasks)
    explored = " ".join(str(data / f"{task}-random_init") for task in settings.tasks)
    return {
        "exploration": [
            f"{collect} --task {task} --seed {seed} --out {data}/{task}-{kind} {options}"
            for task in settings.tasks
            for kind, seed, options in (
                ("random_init", 11, f"--random-init --max-steps 15 --episodes {settings.random_init_episodes}"),
                ("exploration", 1, f"--max-steps 125 --episodes {settings.exploration_episodes}"),
            )
        ],
        "policies": [
            f"perceiver-obs train-policy --task {task} --observation state --out {out}/policies/{task} "
            f"--total-frames {settings.policy_frames} --eval-every {settings.policy_frames} --eval-episodes 2 "
            f"--record {data}/{task}-learning"
            for task in settings.tasks
        ],
        "competent": [
            "perceiver-obs collect --policy {0},{0},correlated".format(out / "policies" / task / "policy.zip")
            + f" --task {task} --seed 21 --out {data}/{task}-competent --random-init --max-steps 100 "
            f"--episodes {settings.competent_episodes}"
            for task in settings.tasks
        ],
        "experts": [
            f"perceiver-obs evaluate --policy {out}/policies/{task} --episodes {settings.expert_episodes} "
            f"--no-deterministic --record {data}/{task}-expert"
            for task in settings.tasks
        ],
        "tokenizer": [
            f"perceiver-obs train-tokenizer --data {trained_on} --out {out}/tokenizer "
            f"--steps {settings.tokenizer_steps}"
        ],
        "predictor": [
            f"perceiver-obs train-predictor --data {trained_on} --tokenizer {out}/tokenizer --out {out}/full "
            f"--reads frames --keypoints None --pixel-weight 1 --state-weight {settings.state_weight} "
            f"--steps {settings.predictor_steps}"
        ],
        "probe": [
            f"perceiver-obs probe --model {out}/full --data {explored} --on-policy {experts} --out {out}/probe "
            "--supervised-steps 1000"
        ],
    }


def main(settings: ModelSettings) -> None:
    commands = stages(settings)
    if settings.dry_run:
        print("\n".join(line for lines in commands.values() for line in lines))
        return
    times_file = settings.out / "times.json"
    times = json.loads(times_file.read_text()) if times_file.exists() else {}
    for stage, lines in commands.items():
        began = time.monotonic()
        collecting = stage in ("exploration", "competent")  # by processes of its own on all cores
        at_once = 1 if collecting else settings.jobs or os.cpu_count() or 1
        if stage == "experts":
            lines = [line for line in lines if not _recorded(line, settings.expert_episodes)]
        _run(lines, at_once)
        times[stage] = round(times.get(stage, 0) + time.monotonic() - began)
        write_atomic(times_file, (json.dumps(times, indent=1) + "\n").encode())
        print(f"{stage}: {times[stage]} s", flush=True)
    CausalPerceiverIO.from_pretrained(settings.out / "full").save_pretrained(
        settings.out / "model", half_precision=True
    )
    for name in ("data.json", "settings.json", "objective.safetensors"):
        write_atomic(settings.out / "model" / name, (settings.out / "full" / name).read_bytes())
    print(f"the model: {settings.out / 'model'}; what its contexts carry: {settings.out / 'probe' / 'probe.md'}")


def _recorded(line: str, episodes: int) -> bool:
    """Whether an evaluation has recorded all its episodes, which it would add to."""
    directory = Path(line.split("--record ")[1]) / "episodes"
    return len(list(directory.glob("*.npz"))) >= episodes


def _run(lines: Sequence[str], at_once: int) -> None:
    def run(line: str) -> None:
        print(line, flush=True)
        subprocess.run([sys.executable, "-m", "agents.cli", *shlex.split(line)[1:]], check=True)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(run, lines))


if __name__ == "__main__":
    try:
        main(tyro.cli(ModelSettings))
    except subprocess.CalledProcessError as error:
        sys.exit(f"{shlex.join(error.cmd[2:])} failed; run this again to go on")

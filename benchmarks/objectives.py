"""What contexts learn from in the same time: tokens or frames read, and edges, pixels or the state as targets.

Trains each variant for some minutes from the same rollouts of one task, on one thread, and probes it on episodes of a
policy that none has seen. Writes `results/objectives.json`; run it by `make objectives` after `make model` has made
the rollouts. A variant that is there is not trained again.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from measure import write_results

from perceiver_obs import CausalPerceiverIO
from perceiver_obs.evaluation.probe import probe
from perceiver_obs.evaluation.probe_report import mean_r2
from perceiver_obs.evaluation.settings import ProbeSettings
from perceiver_obs.settings import parse_settings
from perceiver_obs.training.settings import TrainPredictorSettings
from perceiver_obs.training.train_predictor import train_predictor

FRAMES = ("--reads", "frames", "--keypoints", "None")
ALONE = ("--cross-entropy-weight", "0", "--edge-weight", "0", "--contrastive-weight", "0", "--clip-length", "10")
# Steps that took a minute of a core where this was measured, so that every schedule ends after about equal time.
STEPS_PER_MINUTE = {"tokens, edges": 195, "frames, edges": 130, "frames, pixels": 160, "frames, state": 285}
VARIANTS: dict[str, tuple[str, ...]] = {
    "tokens, edges": (),
    "frames, edges": FRAMES,
    "frames, pixels": (*FRAMES, *ALONE, "--pixel-weight", "1", "--latent-horizon", "3", "--samples", "3"),
    "frames, state": (*FRAMES, *ALONE, "--state-weight", "1", "--reward-weight", "0", "--latent-horizon", "1"),
}


@dataclass(frozen=True)
class ObjectivesSettings:
    """Which rollouts, and how long."""

    data: tuple[str, ...]
    """Rollouts to train on; the first directory is what is probed as exploration."""
    on_policy: str
    """Episodes of a policy, for the probe alone."""
    minutes: float = 8.0
    """Of training, for each variant and seed."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the trainings."""
    out: Path = Path("runs/objectives")
    """Directory of the trained models."""


def main(settings: ObjectivesSettings) -> None:
    torch.set_num_threads(1)
    tokenizer = settings.out / "tokenizer"
    CausalPerceiverIO.from_pretrained("dmc-small").tokenizer.save_pretrained(tokenizer)
    variants: dict[str, dict[str, dict]] = {}
    for seed in settings.seeds:
        for name, options in VARIANTS.items():
            out = settings.out / f"{name.replace(', ', '-')}-{seed}"
            common = ["--data", *settings.data, "--tokenizer", str(tokenizer), "--out", str(out), "--device", "cpu"]
            limits = ["--seed", str(seed), "--steps", str(round(settings.minutes * STEPS_PER_MINUTE[name]))]
            rare = ["--evaluate-every", "100000", "--checkpoint-every", "100000"]
            if not (out / "model.safetensors").exists():
                train_predictor(
                    parse_settings(TrainPredictorSettings, [*common, *limits, *rare, *options], "train-predictor")
                )
            steps = round(settings.minutes * STEPS_PER_MINUTE[name])
            r2 = scores(str(out), settings, baselines=False)
            variants.setdefault(name, {})[str(seed)] = {"steps": steps, "mean_r2": r2}
            # After each, as a run takes long.
            write_results("objectives", {"minutes": settings.minutes, "variants": variants}, {})
    variants["dmc-small"] = {"0": {"mean_r2": scores("dmc-small", settings, baselines=True)}}
    write_results("objectives", {"minutes": settings.minutes, "variants": variants}, {})


def scores(model: str, settings: ObjectivesSettings, baselines: bool) -> dict[str, dict[str, float]]:
    """Mean R² of positions and of velocities, by episodes, features and regression."""
    results = probe(
        ProbeSettings(
            model=model,
            data=settings.data[:1],
            on_policy=(settings.on_policy,),
            out=str(settings.out / "probes" / Path(model).name),
            baselines=baselines,
        )
    )
    return {
        f"{each.episodes}, {each.features}, {each.regression}": {
            "positions": round(mean_r2(each, "position"), 3),
            "velocities": round(mean_r2(each, "velocity"), 3),
        }
        for each in results
    }


if __name__ == "__main__":
    main(tyro.cli(ObjectivesSettings))

"""What a size costs and what its contexts carry: presets trained for as many steps, and probed.

Writes `results/presets.json`; run it by `make presets`, about half an hour on one core. Too short for good contexts,
long enough to compare sizes. `base` is timed and not trained: a step of its training takes minutes here.
"""

import tempfile
import time
from pathlib import Path

import torch
from measure import time_in_turns, write_results
from steps import push_step, step_flops

from envs.collection.collect import collect
from envs.collection.settings import CollectSettings
from perceiver_obs import CausalPerceiverIO
from perceiver_obs.evaluation.probe import probe
from perceiver_obs.evaluation.probe_report import mean_r2
from perceiver_obs.evaluation.settings import ProbeSettings
from perceiver_obs.presets import PRESETS
from perceiver_obs.settings import parse_settings
from perceiver_obs.training.settings import TrainPredictorSettings, TrainTokenizerSettings
from perceiver_obs.training.train_predictor import train_predictor
from perceiver_obs.training.train_tokenizer import train_tokenizer

TASK = "cartpole-swingup"
EPISODES, EPISODE_STEPS = 400, 40
STEPS = {"tokenizer": 1000, "predictor": 2000}
TRAINED = ("tiny", "small")


def train(preset: str, data: Path, folder: Path) -> dict[str, object]:
    """Trains a preset, and says how long it took and what its contexts carry."""
    seconds = {}

    def options(stage: str) -> list[str]:
        return [
            *("--data", str(data), "--preset", preset, "--out", str(folder / stage), "--device", "cpu"),
            *("--steps", str(STEPS[stage]), "--evaluate-every", str(STEPS[stage])),
        ]

    began = time.monotonic()
    train_tokenizer(parse_settings(TrainTokenizerSettings, options("tokenizer"), "tokenizer"))
    seconds["tokenizer"] = round(time.monotonic() - began)
    predictor = [*options("predictor"), "--tokenizer", str(folder / "tokenizer")]
    train_predictor(parse_settings(TrainPredictorSettings, predictor, "predictor"))
    seconds["predictor"] = round(time.monotonic() - began) - seconds["tokenizer"]
    results = probe(ProbeSettings(model=str(folder / "predictor"), data=(str(data),), out=str(folder / "probe")))
    scores = {
        f"{result.features}, {result.regression}": {
            "positions": round(mean_r2(result, "position"), 3),
            "velocities": round(mean_r2(result, "velocity"), 3),
        }
        for result in results
    }
    return {"seconds": seconds, "probe_r2": scores}


def main() -> None:
    torch.set_num_threads(1)
    models = {name: CausalPerceiverIO.from_preset(name, action_dim=6).eval() for name in PRESETS}
    timings = time_in_turns(
        {f"{name}, {b}": push_step(models[name], 1, b, 30) for name in TRAINED for b in ("torch", "onnx")}, 100
    ) | time_in_turns({"base, torch": push_step(models["base"], 1, "torch", 2)}, 10)
    trained = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        collect(
            CollectSettings(
                task=TASK,
                out=str(data),
                episodes=EPISODES,
                max_steps=EPISODE_STEPS,
                action_repeat="planet",
                render_quality="fast",
                random_init=True,
                workers=1,
            )
        )
        for name in TRAINED:
            trained[name] = train(name, data, Path(folder) / name)
    sizes = {
        name: {
            "parameters": sum(p.numel() for p in model.parameters()),
            "step_megaflops": round(step_flops(model) / 1e6, 1),
            "context_dim": model.context_dim,
        }
        for name, model in models.items()
    }
    ms = {name: float(timing["median_ms"]) for name, timing in timings.items()}
    results = {
        "task": TASK,
        "frames": EPISODES * (EPISODE_STEPS + 1),
        "steps": STEPS,
        "seed": 0,
        "sizes": sizes,
        "trained": trained,
        "timings": timings,
    }
    ratios = {f"{name} / tiny, torch": ms[f"{name}, torch"] / ms["tiny, torch"] for name in PRESETS}
    write_results("presets", results, ratios)


if __name__ == "__main__":
    main()

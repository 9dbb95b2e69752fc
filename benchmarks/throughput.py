"""Frames a second of rendering and collection, and clips a second of training beside a plain loop of the same model.

Writes `results/throughput.json`; run it by `make bench`, on an otherwise idle machine: workers share its cores.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import time_in_turns, write_results
from torch.utils.flop_counter import FlopCounterMode

from agents.benchmark.suite import TASKS
from envs import make_dmc
from envs.collection.collect import collect
from envs.collection.process_worker import num_cores
from envs.collection.settings import CollectSettings
from envs.dmc.environment import RENDER_QUALITIES as QUALITIES
from perceiver_obs import CausalPerceiverIO
from perceiver_obs.data.rollouts import RolloutDataset, RolloutWriter
from perceiver_obs.objectives.motion import CLIP_LENGTH
from perceiver_obs.training.checkpoint import RunDirectory
from perceiver_obs.training.loop import Stage, make_accelerator, make_optimizer
from perceiver_obs.training.settings import RunSettings, TrainPredictorSettings, TrainTokenizerSettings
from perceiver_obs.training.train_predictor import PredictorStage
from perceiver_obs.training.train_tokenizer import TokenizerStage

EPISODES, EPISODE_STEPS = 8, 100


def env_step(task: str, quality: str) -> Callable[[], object]:
    env = make_dmc(task, action_repeat=2, render_quality=quality)
    env.reset(seed=0)
    env.action_space.seed(0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()

    return step


def collected_per_second(out: Path, quality: str, workers: int) -> float:
    """Frames a second without the start of the workers, which a first episode each stands for."""

    def settings(episodes: int) -> CollectSettings:
        return CollectSettings(
            out=str(out),
            episodes=episodes,
            max_steps=EPISODE_STEPS,
            action_repeat=2,
            render_quality=quality,
            workers=workers,
        )

    collect(settings(workers), progress=False)
    began = time.perf_counter()
    collect(settings(workers), progress=False)
    idle = time.perf_counter() - began
    began = time.perf_counter()
    collect(settings(workers + EPISODES), progress=False)
    return EPISODES * (EPISODE_STEPS + 1) / (time.perf_counter() - began - idle)


def training_step(stage: Stage, settings: RunSettings) -> Callable[[], object]:
    optimizer = make_optimizer(stage.module, settings)
    stage.module.train()
    number = [0]

    def step() -> None:
        losses = stage.module(**stage.batch(number[0], 0))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        number[0] += 1

    return step


def gigaflop(step: Callable[[], object]) -> float:
    """Of one step, forward and backward; two floating-point operations for a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        step()
    return round(counter.get_total_flops() / 1e9, 1)


def bytes_a_frame(path: Path, folder: Path) -> dict[str, float]:
    """What a frame and its share of all else takes on disk, as it is and compressed."""
    data = RolloutDataset(path)
    writer = RolloutWriter(folder, data.meta, compress=True)
    for number, episode in enumerate(data):
        writer.write_episode(number, **vars(episode))
    return {
        name: round(sum(file.stat().st_size for file in (each / "episodes").iterdir()) / data.num_frames, 1)
        for name, each in (("as it is", path), ("compressed", folder))
    }


def plain_step(model: CausalPerceiverIO, stage: PredictorStage, settings: TrainPredictorSettings) -> Callable:
    """A plain loop: frames through the tokenizer at every step, and all tokens of all frames to come predicted."""
    model.train()
    model.tokenizer.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], settings.learning_rate)
    seen, number = settings.clip_length - settings.sequence_length, [0]  # as many to come as a model predicts

    def step() -> None:
        places = stage.clips.index.draw(settings.batch_size, settings.seed, number[0])
        frames, actions = (torch.from_numpy(of(places)) for of in (stage.clips.frames, stage.clips.actions))
        loss = model(frames, seen, actions)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        number[0] += 1

    return step


def main() -> None:
    torch.set_num_threads(1)
    steps = {f"{task}, {quality}": env_step(task, quality) for task in TASKS for quality in QUALITIES}
    rendering = time_in_turns(steps, rounds=100)
    ms = {name: float(timing["median_ms"]) for name, timing in rendering.items()}
    with tempfile.TemporaryDirectory() as folder:
        workers = sorted({1, num_cores()})
        collected = {
            f"{quality}, {n} workers": collected_per_second(Path(folder) / f"{quality}-{n}", quality, n)
            for quality in QUALITIES
            for n in workers
        }
        data = (str(Path(folder) / "fast-1"),)
        tokenizer = TrainTokenizerSettings(data=data, out=f"{folder}/tokenizer", device="cpu")
        tokenizer_stage = TokenizerStage(tokenizer)
        tokenizer_stage.tokenizer.save_pretrained(tokenizer.out)
        predictor = TrainPredictorSettings(data=data, tokenizer=tokenizer.out, out=f"{folder}/model", device="cpu")
        run = RunDirectory(predictor.out, predictor)
        stage = PredictorStage(predictor, run, make_accelerator(predictor))
        plain = CausalPerceiverIO(**stage.model.config())
        training_steps = {
            "tokenizer": training_step(tokenizer_stage, tokenizer),
            "predictor": training_step(stage, predictor),
            "predictor, plain loop": plain_step(plain, stage, predictor),
        }
        frames_a_step = {
            "tokenizer": tokenizer.batch_size * (tokenizer.clip_length + CLIP_LENGTH),
            "predictor": predictor.batch_size * predictor.clip_length,
        }
        sizes = {
            name: {"frames_a_step": frames, "gigaflop_a_step": gigaflop(training_steps[name])}
            for name, frames in frames_a_step.items()
        }
        training = time_in_turns(training_steps, rounds=20)
        stored = bytes_a_frame(Path(data[0]), Path(folder) / "compressed")
    train_ms = {name: float(timing["median_ms"]) for name, timing in training.items()}
    ratios = {
        **{
            f"standard / {quality}, {task}": ms[f"{task}, standard"] / ms[f"{task}, {quality}"]
            for quality in QUALITIES[1:]
            for task in TASKS
        },
        "plain loop / predictor training": train_ms["predictor, plain loop"] / train_ms["predictor"],
    }
    if len(workers) > 1:
        one, many = (collected[f"fast, {n} workers"] for n in workers)
        ratios[f"{workers[1]} workers / 1, frames collected a second, fast"] = many / one
    results = {
        "env_steps": rendering,
        "frames_per_second_with_action_repeat_2": {name: round(1e3 / value, 1) for name, value in ms.items()},
        "collected_frames_per_second": {name: round(value, 1) for name, value in collected.items()},
        "training_steps": training,
        "training": sizes,
        "bytes_a_frame": stored,
        "clips_of_a_training_step": predictor.batch_size,
        "mean_of_fast_over_standard": round(float(np.mean([v for k, v in ratios.items() if "/ fast," in k])), 2),
    }
    write_results("throughput", results, ratios)


if __name__ == "__main__":
    main()

"""`fit`: from an environment to a Perceiver of its own in a given time, by the other commands."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from agents.training.settings import FitSettings
from envs.collection.collect import collect
from envs.collection.settings import CollectSettings
from envs.env_settings import EnvSettings
from perceiver_obs.data.rollouts import RolloutDataset, whole_episodes
from perceiver_obs.data.splits import data_paths, open_datasets, split_episodes
from perceiver_obs.evaluation.probe import probe
from perceiver_obs.evaluation.settings import ProbeSettings
from perceiver_obs.files import write_atomic
from perceiver_obs.hub import find_pretrained
from perceiver_obs.objectives.motion import CLIP_LENGTH
from perceiver_obs.reporting.metrics import read_lines
from perceiver_obs.reporting.report import FIT_FILE, NEXT_COMMAND, ReportSettings, report
from perceiver_obs.settings import check_same_settings, read_json, settings_to_dict
from perceiver_obs.training.checkpoint import RunDirectory
from perceiver_obs.training.settings import RunSettings, TrainPredictorSettings, TrainTokenizerSettings
from perceiver_obs.training.train_predictor import train_predictor
from perceiver_obs.training.train_tokenizer import train_tokenizer

COLLECTING, TOKENIZER, PREDICTOR = 0.2, 0.25, 0.45  # shares of the time; probe and report have the rest
MOST_STEPS = 1_000_000
WARMUP_STEPS = 20  # a short training may have no more than a few hundred
TOKENIZER_BEGINS_WITH = "dmc-small"  # Pendulum-v1 after 110 steps: 24.2 dB, 20.4 from random weights
TRIAL, LEAST_TRIAL = 0.1, 0.2  # share of a training's time in which its rate is measured, and minutes
FIRST_EPISODES = 4  # their rate says how many there will be
PROBE_FRAMES, PROBE_EPISODES = 6000, 8  # about so many frames are fitted on, and no fewer episodes


def fit(settings: FitSettings) -> Path:
    """Collects, trains and judges a Perceiver for an environment, and returns the model's directory.

    In `out` it leaves `data/`, `tokenizer/`, `model/`, `probe/` and `report.html`. Run again,
    it goes on where it was stopped; what is finished is not made again.

    Raises:
        ValueError: a setting is not valid or another than the directory was begun with, or there is no such
            environment.
    """
    plan = _Plan(settings)
    if settings.begin_with is not None:
        find_pretrained(settings.begin_with)  # named before any work
    data = [*map(str, settings.data)] or [str(_collected(settings, plan))]
    model = settings.out / "model"
    to_train, held_out = _longest_clips(data)
    predictor = TrainPredictorSettings(
        data=tuple(data),
        out=str(model),
        clip_length=min(TrainPredictorSettings.clip_length, to_train, held_out),
        warmup_steps=WARMUP_STEPS,
        seed=settings.seed,
    )
    share = PREDICTOR
    if settings.begin_with is not None:
        predictor = replace(predictor, begin_with=settings.begin_with)
        share += TOKENIZER
    else:
        tokenizer = TrainTokenizerSettings(
            data=tuple(data),
            out=str(settings.out / "tokenizer"),
            begin_with=TOKENIZER_BEGINS_WITH,
            warmup_steps=WARMUP_STEPS,
            motion_weight=TrainTokenizerSettings.motion_weight if to_train >= CLIP_LENGTH else 0.0,
            seed=settings.seed,
        )
        _train(train_tokenizer, tokenizer, "tokenizer", TOKENIZER * settings.minutes, plan)
        predictor = replace(predictor, tokenizer=tokenizer.out)
    _train(train_predictor, predictor, "model", share * settings.minutes, plan)
    judged = settings.out / "probe"
    if not (judged / "probe.json").is_file():
        print(f"fit: {judged}: what the contexts carry", flush=True)
        paths = data_paths(data)
        lengths = [length for path in paths for length in RolloutDataset(path).lengths]
        episodes = max(PROBE_EPISODES, PROBE_FRAMES * len(lengths) // sum(lengths))
        probe(ProbeSettings(str(model), tuple(paths), out=str(judged), max_episodes=episodes, seed=settings.seed))
    report(ReportSettings(out=str(settings.out), title=settings.env_name))
    print(f"fit: {model}. Wrap the environment:\n    {wrapping_line(settings, model)}")
    print(f"or train a policy in it:\n    {policy_command(settings, model)}")
    return model


def _longest_clips(data: Sequence[str]) -> tuple[int, int]:
    """Frames of the longest clip that every dataset has to train on, and of the longest that is held out of each."""
    datasets, _ = open_datasets(data)
    splits = [(each.lengths, split_episodes(each, RunSettings.held_out_fraction)) for each in datasets]
    training, held_out = (min(max(lengths[i] for i in parts[side]) for lengths, parts in splits) for side in (0, 1))
    return training, held_out


def policy_command(settings: FitSettings, model: Path) -> str:
    """The command that trains a policy on the model's contexts; `--total-frames` may be raised later."""
    length = ["--total-frames", "20000", "--eval-every", "2000"]
    out = ["--out", str(settings.out / "policy")]
    return shlex.join(["perceiver-obs", "train-policy", *settings.options, "--model", str(model), *out, *length])


def wrapping_line(settings: FitSettings, model: Path) -> str:
    """The line of Python that makes contexts of the environment's frames."""
    names: tuple[str, ...] = ("size", "action_repeat", "render_quality", "camera")
    making = f'make_dmc("{settings.task}"'
    if settings.env is not None:
        names = ("size", "frames_from", "fit", "action_repeat")
        making = f'make_env("{settings.env}"' + (f", {list(settings.env_kwargs)}" if settings.env_kwargs else "")
    given = [
        f"{name}={getattr(settings, name)!r}" for name in names if getattr(settings, name) != getattr(EnvSettings, name)
    ]
    return f'env = PerceiverContextWrapper({", ".join([making, *given])}), "{model}")'


class _Plan:
    """What the time allows, by stage: decided once, so that a run that was stopped goes on with the same."""

    def __init__(self, settings: FitSettings) -> None:
        self._file = settings.out / FIT_FILE
        self._content: dict[str, Any] = {
            "settings": settings_to_dict(settings),
            NEXT_COMMAND: policy_command(settings, settings.out / "model"),
            "plan": {},
        }
        if self._file.is_file():
            self._content = read_json(self._file)
            check_same_settings(self._content["settings"], settings, str(settings.out))

    def get(self, stage: str) -> int | None:
        return self._content["plan"].get(stage)

    def set(self, stage: str, amount: int) -> int:
        self._content["plan"][stage] = amount
        write_atomic(self._file, (json.dumps(self._content, indent=1) + "\n").encode())
        return amount


def _collected(settings: FitSettings, plan: _Plan) -> Path:
    """The directory of as many episodes as fit into the time."""
    out = settings.out / "data"
    shared: dict[str, Any] = {field.name: getattr(settings, field.name) for field in fields(EnvSettings)}
    arguments: dict[str, Any] = {
        "policy": settings.policy,
        "max_steps": settings.max_steps,
        "seed": settings.seed,
        "out": str(out),
    }

    def collect_up_to(episodes: int, max_minutes: float | None = None) -> int:
        return len(collect(CollectSettings(**shared, **arguments, episodes=episodes, max_minutes=max_minutes)))

    if (planned := plan.get("episodes")) is not None:
        collect_up_to(planned)
        return out
    print(f"fit: {out}: {COLLECTING * settings.minutes:.3g} minutes of episodes", flush=True)
    left, further, max_minutes = 60 * COLLECTING * settings.minutes, FIRST_EPISODES, None
    episodes = len(whole_episodes(out))
    while further >= FIRST_EPISODES:
        began, before = time.monotonic(), episodes
        episodes = collect_up_to(episodes + further, max_minutes)
        seconds = time.monotonic() - began
        left -= seconds
        further, max_minutes = int(left * (episodes - before) / seconds), left / 60
    plan.set("episodes", episodes)
    return out


def _train(training: Callable[[Any], object], settings: RunSettings, stage: str, minutes: float, plan: _Plan) -> None:
    """Trains for so many minutes: the learning rate falls over the steps that a trial shows to fit into them."""
    run = RunDirectory(settings.out, settings)
    steps = plan.get(stage)
    if steps is None:
        began, trial = time.monotonic(), min(max(TRIAL * minutes, LEAST_TRIAL), minutes / 2)
        print(
            f"fit: {run.path}: {minutes:.3g} minutes, {trial:.2g} of them to see how many steps that makes", flush=True
        )
        training(replace(settings, steps=MOST_STEPS, max_minutes=trial, evaluation_clips=16))
        aside = (time.monotonic() - began) / 60 - trial  # encoding frames, evaluations, pictures
        left = max(minutes / 2, minutes - trial - aside)
        done = max(row["step"] for row in read_lines(run.metrics))
        steps = plan.set(stage, done + max(1, int(done * left / trial)))
    print(f"fit: {run.path}: {steps:,} steps", flush=True)
    training(replace(settings, steps=steps, max_minutes=1.2 * minutes))

"""Fixtures for the tests that train: a few short rendered episodes, and models trained on them for a moment."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_models import SIZE
from tiny_runs import predictor_settings, tokenizer_settings

import perceiver_obs.training.train_predictor
from envs.collection.collect import collect
from envs.collection.settings import CollectSettings
from perceiver_obs.training.train_predictor import train_predictor
from perceiver_obs.training.train_tokenizer import train_tokenizer

EPISODES, STEPS = 6, 24


def made_once(name: str, tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path], object]) -> Path:
    """A directory that the first of pytest's workers to ask for it makes, and that all of them read."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    path, made = root / "shared" / name, root / "shared" / f"{name}.made"
    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not made.exists():
            make(path)
            made.touch()
    return path


@pytest.fixture(scope="session", autouse=True)
def _statistics_of_few_clips() -> Iterator[None]:
    """A quarter of a training of a moment went into the scale of its contexts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceiver_obs.training.train_predictor, "STATISTICS_BATCHES", 4)
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 6 episodes of 25 rendered frames, with states."""

    def collect_episodes(path: Path) -> None:
        settings = CollectSettings(
            task="cartpole-swingup",
            out=str(path),
            episodes=EPISODES,
            max_steps=STEPS,
            size=SIZE,
            action_repeat=2,
            render_quality="fast",
            workers=1,
        )
        collect(settings, progress=False)

    return made_once("data", tmp_path_factory, collect_episodes)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tokenizer trained for a moment on `tiny_data`."""
    return made_once("tokenizer", tmp_path_factory, lambda out: train_tokenizer(tokenizer_settings(tiny_data, out)))


@pytest.fixture(scope="session")
def tiny_model(tiny_data: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a whole model trained for a moment on `tiny_data`."""

    def train(out: Path) -> None:
        train_predictor(predictor_settings(tiny_data, tiny_tokenizer, out))

    return made_once("predictor", tmp_path_factory, train)

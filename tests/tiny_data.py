"""Fixtures for the tests that train: a few short rendered episodes, and models trained on them for a moment."""

from pathlib import Path

import pytest
from tiny_models import SIZE
from tiny_runs import predictor_settings, tokenizer_settings

from envs.collection.collect import collect
from envs.collection.settings import CollectSettings
from perceiver_obs.training.train_predictor import train_predictor
from perceiver_obs.training.train_tokenizer import train_tokenizer

EPISODES, STEPS = 6, 24


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 6 episodes of 25 rendered frames, with states."""
    path = tmp_path_factory.mktemp("tiny") / "data"
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
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tokenizer trained for a moment on `tiny_data`."""
    out = tmp_path_factory.mktemp("tiny") / "tokenizer"
    train_tokenizer(tokenizer_settings(tiny_data, out))
    return out


@pytest.fixture(scope="session")
def tiny_model(tiny_data: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a whole model trained for a moment on `tiny_data`."""
    out = tmp_path_factory.mktemp("tiny") / "predictor"
    train_predictor(predictor_settings(tiny_data, tiny_tokenizer, out))
    return out

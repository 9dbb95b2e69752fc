"""Real frames for everyone, reports without pictures for those that do not look, and how long to search."""

import io
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model

from perceiver_obs import CausalPerceiverIO
from perceiver_obs.reporting import plots

torch.set_num_threads(1)
hypothesis.settings.register_profile("quick", max_examples=10, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=100, deadline=None)  # for `make test-all`


@pytest.fixture(scope="session")
def action_model() -> CausalPerceiverIO:
    """A model that reads actions."""
    return tiny_model(action_dim=6)


@pytest.fixture(scope="session")
def real_frames() -> np.ndarray:
    """uint8 `[60, 64, 64, 3]`: an episode of walker-walk under random actions."""
    from envs import make_dmc

    env = make_dmc("walker-walk", render_quality="fast")
    env.action_space.seed(1)
    frames = [env.reset(seed=1)[0]]
    while len(frames) < 60:
        frames.append(env.step(env.action_space.sample())[0])
    env.close()
    return np.stack(frames)


@pytest.fixture(scope="session")
def real_video(real_frames) -> torch.Tensor:
    """The same as uint8 `[1, 60, 3, 64, 64]`."""
    return torch.from_numpy(real_frames).permute(0, 3, 1, 2)[None].contiguous()


@pytest.fixture
def no_pictures():
    """Reports show a dot for each picture: to draw them takes longer than to train for a moment."""
    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, "png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_png", lambda figure: dot.getvalue())
        yield

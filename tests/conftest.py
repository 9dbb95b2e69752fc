"""Real frames for everyone, reports without pictures for those that do not look, and how long to search.

What takes seconds to import is imported in fixtures: not in the process that only hands out tests to others.
"""

import io
import multiprocessing
import os

os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import numpy as np
import pytest
from PIL import Image

# Processes of "forkserver" begin with these imported: once for all of them.
multiprocessing.set_forkserver_preload(["agents.training.train_policy", "perceiver_obs.training.train_predictor"])
hypothesis.settings.register_profile("quick", max_examples=10, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=100, deadline=None)  # for `make test-all`


@pytest.fixture(scope="session")
def action_model():
    """A model that reads actions."""
    from tiny_models import tiny_model

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
def real_video(real_frames):
    """The same as uint8 `[1, 60, 3, 64, 64]`."""
    import torch

    return torch.from_numpy(real_frames).permute(0, 3, 1, 2)[None].contiguous()


@pytest.fixture(scope="session", autouse=True)
def _reports_without_pictures():
    """Reports show a dot for each picture: to draw them takes longer than to train for a moment."""
    from perceiver_obs.reporting import plots

    dot, drawn = io.BytesIO(), plots._png
    Image.new("RGB", (1, 1)).save(dot, "png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_png", lambda figure: dot.getvalue())
        yield drawn


@pytest.fixture(scope="module")
def pictures(_reports_without_pictures):
    """Reports with their pictures, for the tests of a module."""
    from perceiver_obs.reporting import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_png", _reports_without_pictures)
        yield

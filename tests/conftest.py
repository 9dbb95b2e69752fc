"""Real frames for everyone."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from perceiver_obs import CausalPerceiverIO
from perceiver_obs.step_graph import OnnxStep

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_directory(tmp_path_factory) -> Iterator[Path]:
    """Exported graphs stay out of the user's cache; the workers of a run share them."""
    directory = tmp_path_factory.getbasetemp()
    path = (directory.parent if "PYTEST_XDIST_WORKER" in os.environ else directory) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path))
        yield path


@pytest.fixture(scope="session")
def exported_model(cache_directory) -> CausalPerceiverIO:
    """A model whose graph for ONNX Runtime lies in the cache: an export takes ten seconds."""
    model = tiny_model(action_dim=6)
    OnnxStep(model)
    return model


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

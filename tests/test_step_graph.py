"""Steps by ONNX Runtime: the contexts of PyTorch, exported once, and clear words where that cannot be."""

import json
import os
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from global_state import untouched
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_models import tiny_model

from agents import VecPerceiverContext
from envs import make_dmc
from perceiver_obs import ContextEncoder, PerceiverContextVectorWrapper, PerceiverContextWrapper
from perceiver_obs.step_graph import OnnxStep

VARIANTS = {
    "3d-actions-timescales": dict(use_3d_conv=True, action_dim=2, timescales=("fast", "slow"), token_time_kernel=2),
    "frames": dict(reads="frames", inputs_per_frame=3, token_time_kernel=1, action_dim=2),
    "keypoints-fsq-window-of-one": dict(inputs_per_frame=3, keypoints=5, quantizer="fsq", video_shape=(1, 3, 64, 64)),
}


def kept_graphs(cache, model):
    return list((cache / "perceiver_obs").glob(f"{model.fingerprint}-*"))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_streaming_equals_offline(cache_directory, variant):
    model = tiny_model(**variant)
    random = np.random.default_rng(0)
    video = random.integers(0, 256, (3, 40, 64, 64, 3), dtype=np.uint8)
    actions = random.normal(size=(3, 40, model.action_dim)).astype(np.float32) if model.action_dim else None
    with untouched():
        encoder = ContextEncoder(model, 3, backend="onnx")
    steps = [encoder.push(video[:, t], None if actions is None else actions[:, t]) for t in range(40)]
    pixels = torch.from_numpy(video).permute(0, 1, 4, 2, 3)
    expected = model.extract_context(pixels, None if actions is None else torch.from_numpy(actions)).numpy()
    np.testing.assert_allclose(np.stack(steps, axis=1), expected, atol=1e-4, rtol=0)
    assert not kept_graphs(cache_directory, model), "whoever gave the model may go on changing it"


def test_the_shells_pass_the_backend_on(exported_model, tmp_path):
    exported_model.save_pretrained(tmp_path)
    contexts = {}
    for backend in ("torch", "onnx"):
        env = PerceiverContextWrapper(make_dmc("walker-walk", render_quality="fast"), str(tmp_path), backend=backend)
        assert env.encoder.backend == backend
        assert json.loads(env.spec.to_json())["additional_wrappers"][-1]["kwargs"]["backend"] == backend
        env.reset(seed=0)
        contexts[backend] = np.stack([env.step(np.full(6, 0.5, np.float32))[0] for _ in range(8)])
        env.close()
    np.testing.assert_allclose(contexts["onnx"], contexts["torch"], atol=1e-4, rtol=0)

    def make():
        return make_dmc("walker-walk", render_quality="fast")

    vector = PerceiverContextVectorWrapper(gym.vector.SyncVectorEnv([make]), str(tmp_path), backend="onnx")
    sb3 = VecPerceiverContext(DummyVecEnv([make]), str(tmp_path), backend="onnx")
    assert vector.encoder.backend == sb3.encoder.backend == "onnx"
    vector.close()
    sb3.close()


def test_a_graph_is_exported_once(exported_model, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("exported again"))
    assert OnnxStep(exported_model).init_state(2).seen.tolist() == [0, 0]


def test_a_damaged_graph_is_made_anew(exported_model, cache_directory, monkeypatch, tmp_path):
    # Another worker of the tests may be writing the same one, under a name that ends otherwise.
    (undamaged,) = (path for path in kept_graphs(cache_directory, exported_model) if path.suffix == ".onnx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, whole = tmp_path / "perceiver_obs" / undamaged.name, undamaged.read_bytes()
    path.parent.mkdir()
    path.write_bytes(whole[: len(whole) // 2])
    assert OnnxStep(exported_model).init_state(1).seen.tolist() == [0]
    assert path.read_bytes()[:100] == whole[:100]
    assert len(path.read_bytes()) == len(whole)


@pytest.mark.parametrize("home", [True, False], ids=["not-a-directory", "no-home"])
def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path, home):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") if home else "")
    if not home:  # as for a user without an entry in /etc/passwd
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
        with pytest.raises(RuntimeError):
            Path.home()
    tiny_model().save_pretrained(tmp_path / "model")
    encoder = ContextEncoder(tmp_path / "model", backend="onnx")
    assert encoder.push(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 32)


def test_the_graph_of_an_adopted_model_is_not_kept(exported_model, cache_directory):
    encoder = ContextEncoder(exported_model, backend="onnx")
    other = tiny_model(action_dim=6, seed=4)
    encoder.adopt(other)
    assert not kept_graphs(cache_directory, other)
    frame = np.full((1, 64, 64, 3), 9, np.uint8)
    expected = other.extract_context(torch.from_numpy(frame).permute(0, 3, 1, 2)[None])[0].numpy()
    np.testing.assert_allclose(encoder.push(frame), expected, atol=1e-4, rtol=0)


def test_what_cannot_be_is_said(exported_model, monkeypatch):
    with pytest.raises(ValueError, match=r"backend must be one of .*, got 'tensorrt'"):
        ContextEncoder(tiny_model(), backend="tensorrt")
    with pytest.raises(ValueError, match="'onnx' computes on the CPU, got device 'meta'"):
        ContextEncoder(tiny_model(), device="meta", backend="onnx")
    with pytest.raises(ValueError, match="NaN"):
        ContextEncoder(exported_model, backend="onnx").push(
            np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 6), np.nan, np.float32)
        )
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="perceiver-obs\\[onnx\\]"):
        ContextEncoder(tiny_model(), backend="onnx")

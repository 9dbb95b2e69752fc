"""Steps by ONNX Runtime: the contexts of PyTorch, by default on a CPU, and clear words where that cannot be."""

import json
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from global_state import untouched
from moving_square import MovingSquare
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_models import tiny_model
from torch import nn

from agents import VecPerceiverContext
from agents.training.policy_env import make_policy_env
from agents.training.settings import PolicyEnvSettings
from envs import make_dmc
from perceiver_obs import CausalPerceiverIO, ContextEncoder, PerceiverContextVectorWrapper, PerceiverContextWrapper

VARIANTS = {
    "3d-actions-timescales": dict(use_3d_conv=True, action_dim=2, timescales=("fast", "slow"), token_time_kernel=2),
    "frames": dict(reads="frames", inputs_per_frame=3, token_time_kernel=1, action_dim=2),
    "keypoints-fsq-window-of-one": dict(inputs_per_frame=3, keypoints=5, quantizer="fsq", video_shape=(1, 3, 64, 64)),
    "keypoints-actions-time-kernel": dict(inputs_per_frame=3, keypoints=5, action_dim=2, token_time_kernel=3),
    "grid-actions": dict(inputs_per_frame=2, action_dim=1, token_time_kernel=1),
    "grid-time-kernel-wide-frames": dict(inputs_per_frame=2, token_time_kernel=2, video_shape=(4, 1, 32, 48)),
    "tokens-actions-strided-stem": dict(action_dim=3, token_time_kernel=1, stem_stride=4),
    "context-dim-medium-deeper": dict(
        context_dim=24, timescales=("medium",), num_self_attention_layers=2, num_latents=5
    ),
    "slow-then-fast": dict(
        timescales=("slow", "fast"), context_dim=5, num_self_attention_layers=0, num_quantizers=1, action_dim=1
    ),
    "all-timescales-window-of-one": dict(timescales=("medium", "fast", "slow"), video_shape=(1, 3, 64, 64)),
}


def with_trained_values(model: CausalPerceiverIO) -> CausalPerceiverIO:
    """The model with norms, statistics and biases that no longer are ones and zeros."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    adapter = model.predictor.token_adapter
    adapter.mean.normal_(std=0.3)
    adapter.scale.uniform_(0.5, 1.5)
    model.context_mean.normal_(std=0.3)
    model.context_scale.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_streaming_equals_offline(variant):
    model = with_trained_values(tiny_model(**variant))
    _, channels, height, width = model.video_shape
    random = np.random.default_rng(0)
    video = random.integers(0, 256, (3, 20, height, width, channels), dtype=np.uint8)
    video[:, 5:8] = 200  # frames of one colour
    actions = random.uniform(-1, 1, (3, 20, model.action_dim)).astype(np.float32) if model.action_dim else None
    with untouched():
        encoder = ContextEncoder(model, 3, backend="onnx")
    steps = [encoder.push(video[:, t], None if actions is None else actions[:, t]) for t in range(20)]
    pixels = torch.from_numpy(video).permute(0, 1, 4, 2, 3)
    expected = model.extract_context(pixels, None if actions is None else torch.from_numpy(actions)).numpy()
    np.testing.assert_allclose(np.stack(steps, axis=1), expected, atol=1e-5, rtol=1e-5)


def test_the_shells_pass_the_backend_on(action_model, tmp_path):
    action_model.save_pretrained(tmp_path)
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


def test_by_default_steps_are_those_of_onnx_runtime(action_model, tmp_path, recwarn):
    action_model.save_pretrained(tmp_path)
    assert ContextEncoder(action_model, device="cpu").backend == "onnx"
    env = PerceiverContextWrapper(MovingSquare(length=20), str(tmp_path), device="cpu")
    vector = PerceiverContextVectorWrapper(gym.vector.SyncVectorEnv([MovingSquare]), str(tmp_path), device="cpu")
    sb3 = VecPerceiverContext(DummyVecEnv([MovingSquare]), str(tmp_path), device="cpu")
    policy = make_policy_env(
        PolicyEnvSettings(task="cartpole-swingup", model=str(tmp_path), render_quality="fast", device="cpu")
    )
    for shell in (env, vector, sb3, policy):
        assert shell.encoder.backend == "onnx"
        shell.close()
    assert not [w for w in recwarn if "PyTorch" in str(w.message)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_steps_are_those_of_pytorch(action_model):
    assert ContextEncoder(action_model, device="cuda").backend == "torch"


def flat_frame(brightness: int) -> np.ndarray:
    return np.full((1, 64, 64, 3), brightness, np.uint8)


def first_context(model: CausalPerceiverIO, frame: np.ndarray) -> np.ndarray:
    return model.extract_context(torch.from_numpy(frame).permute(0, 3, 1, 2)[None])[0].numpy()


def test_a_model_set_later_computes_by_its_own_weights(action_model):
    encoder = ContextEncoder(action_model, device="cpu")
    other = tiny_model(action_dim=6, seed=4)
    encoder.set_model(other)
    assert encoder.backend == "onnx"
    np.testing.assert_allclose(encoder.push(flat_frame(9)), first_context(other, flat_frame(9)), atol=1e-5)
    with torch.no_grad():
        other.predictor.encoder.latents.add_(1)
    assert np.abs(first_context(other, flat_frame(9)) - encoder.push(flat_frame(9))).max() > 0.01, "a frozen copy"


def unknown_layer() -> CausalPerceiverIO:
    model = tiny_model()
    model.tokenizer.encoder.layers.insert(1, nn.Tanh())
    return model


def test_where_onnx_runtime_cannot_pytorch_steps_in_with_one_warning(monkeypatch, recwarn):
    def warned() -> list[str]:
        lines = [str(warning.message) for warning in recwarn if "computed by PyTorch" in str(warning.message)]
        recwarn.clear()
        return lines

    encoder = ContextEncoder(unknown_layer(), device="cpu")
    (line,) = warned()
    assert "no graph of Tanh" in line
    assert "\n" not in line
    assert encoder.backend == "torch"
    np.testing.assert_allclose(encoder.push(flat_frame(9)), first_context(unknown_layer(), flat_frame(9)), atol=1e-6)
    with pytest.raises(NotImplementedError, match="Tanh"):
        ContextEncoder(unknown_layer(), backend="onnx")

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    encoder = ContextEncoder(tiny_model(), device="cpu")
    (line,) = warned()
    assert "needs onnxruntime: pip install onnx onnxruntime" in line
    encoder.set_model(tiny_model(seed=4))
    assert not warned(), "once is enough"
    np.testing.assert_allclose(encoder.push(flat_frame(9)), first_context(tiny_model(seed=4), flat_frame(9)), atol=1e-6)
    ContextEncoder(tiny_model(), device="cpu", backend="torch")
    assert not warned(), "what was asked for needs no warning"


def test_what_cannot_be_is_said(action_model, monkeypatch):
    with pytest.raises(ValueError, match=r"backend must be one of .*'auto'.*, got 'tensorrt'"):
        ContextEncoder(tiny_model(), backend="tensorrt")
    with pytest.raises(ValueError, match="'onnx' computes on the CPU, got device 'meta'"):
        ContextEncoder(tiny_model(), device="meta", backend="onnx")
    with pytest.raises(ValueError, match="NaN"):
        ContextEncoder(action_model, backend="onnx").push(flat_frame(0), np.full((1, 6), np.nan, np.float32))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="backend 'onnx' needs onnxruntime: pip install onnx onnxruntime"):
        ContextEncoder(tiny_model(), backend="onnx")

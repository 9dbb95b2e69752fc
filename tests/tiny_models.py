"""Models with random weights that build in milliseconds."""

import numpy as np
import torch

from perceiver_obs import CausalPerceiverIO

SIZE = 32  # of the frames of `tiny_data`
TINY = dict(
    num_latents=8,
    num_latent_channels=32,
    num_codes=64,
    downsample=8,
    base_channels=16,
    code_dim=16,
    num_quantizers=2,
    num_self_attention_layers=1,
    num_cross_attention_heads=4,
    use_3d_conv=False,
)


def tiny_model(action_dim: int | None = None, seed: int = 0, **changes) -> CausalPerceiverIO:
    """A model with random weights whose contexts vary well above rounding errors."""
    torch.manual_seed(seed)
    return CausalPerceiverIO(**{"video_shape": (4, 3, 64, 64), "action_dim": action_dim, **TINY, **changes}).eval()


def small_frames_model(action_dim: int | None = 1, **changes) -> CausalPerceiverIO:
    """A tiny model of the frames of `tiny_data`."""
    return tiny_model(action_dim, **{"video_shape": (4, 3, SIZE, SIZE), **changes})


def offline_contexts(model, frames, actions):
    """`extract_context` of an episode so far, `[T + 1, D]`."""
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[None]
    led = torch.from_numpy(np.stack([np.zeros_like(np.stack(actions)[0]), *actions]))[None] if actions else None
    return model.extract_context(video, led if model.action_dim else None)[0].numpy()

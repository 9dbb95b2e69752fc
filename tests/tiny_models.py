"""Models with random weights that build in milliseconds."""

import torch

from perceiver_obs import CausalPerceiverIO

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

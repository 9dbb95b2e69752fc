"""Sizes of models by name: what `CausalPerceiverIO.from_preset` and `--preset` of the trainings take."""

from typing import Any

# What `dmc-small` is, and the trainings' defaults.
_SMALL: dict[str, Any] = dict(
    sequence_length=6,
    downsample=8,
    stem_stride=4,
    base_channels=24,
    use_3d_conv=False,
    code_dim=32,
    num_codes=256,
    num_quantizers=4,
    inputs_per_frame=8,
    keypoints=64,
    token_time_kernel=1,
    num_latents=8,
    num_latent_channels=128,
    num_cross_attention_heads=4,
    num_self_attention_layers=1,
    widening_factor=2,
    num_decoder_layers=1,
    dropout=0.0,
)
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _SMALL
    | dict(
        base_channels=16,
        code_dim=16,
        inputs_per_frame=4,
        keypoints=32,
        num_latents=4,
        num_latent_channels=64,
    ),
    "small": _SMALL,
    # The size that has been published for world models of this kind; for a GPU.
    "base": dict(
        sequence_length=16,
        downsample=4,
        stem_stride=2,
        base_channels=64,
        use_3d_conv=False,
        code_dim=256,
        num_codes=1024,
        num_quantizers=4,
        inputs_per_frame=None,
        keypoints=None,
        token_time_kernel=2,
        num_latents=128,
        num_latent_channels=256,
        num_cross_attention_heads=8,
        num_self_attention_layers=6,
        widening_factor=4,
        num_decoder_layers=2,
        dropout=0.1,
    ),
}


def preset(name: str) -> dict[str, Any]:
    """The sizes of a preset; ValueError for an unknown one."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return dict(PRESETS[name])

"""What every model accepts as video, checked in one place."""

import math

from torch import Tensor, uint8

LARGEST_FLOAT = 10.0  # decoded frames leave [0, 1] somewhat; pixels that nobody divided by 255 leave this


def check_tensor(value: Tensor, name: str) -> None:
    """Raises TypeError for whatever is no tensor, NumPy arrays among them."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def as_float_video(video: Tensor, channels: int, downsample: int, name: str = "video") -> Tensor:
    """Check a video `[B, T, C, H, W]` and convert it to float.

    uint8 is divided by 255; float passes as it is (nominally in [0, 1]).

    Raises:
        TypeError: no tensor.
        ValueError: wrong rank, no frames, wrong channel count, a size that `downsample` does not divide,
            a dtype that is neither uint8 nor floating, or values that are NaN, infinite or far outside of [0, 1].
    """
    check_tensor(video, name)
    if video.ndim != 5:
        raise ValueError(f"{name} must have shape [B, T, C, H, W], got {video.ndim} axes: {tuple(video.shape)}")
    _, frames, got_channels, height, width = video.shape
    if frames < 1:
        raise ValueError(f"{name} must hold at least one frame, got shape {tuple(video.shape)}")
    if got_channels != channels:
        hint = " (channels come before height and width)" if width == channels else ""
        raise ValueError(f"{name} must have {channels} channels, got {got_channels} in {tuple(video.shape)}{hint}")
    if height % downsample or width % downsample or not height or not width:
        raise ValueError(f"{name} height and width must be multiples of {downsample}, got {height}x{width}")
    # Contiguous, because group normalisation of channels-last tensors loses digits on frames of one colour.
    if video.dtype == uint8:
        return video.contiguous().float() / 255
    if not video.is_floating_point():
        raise ValueError(f"{name} must be uint8 or floating point, got {video.dtype}")
    largest = float(video.abs().max()) if video.numel() else 0.0
    if not math.isfinite(largest):
        raise ValueError(f"{name} holds NaN or infinite values")
    if largest > LARGEST_FLOAT:
        raise ValueError(f"{name} in floating point must lie in [0, 1], got values up to {largest:g}")
    return video.contiguous().float()

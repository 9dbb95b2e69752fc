"""What every model accepts as video, checked in one place."""

from torch import Tensor, uint8


def as_float_video(video: Tensor, channels: int, downsample: int, name: str = "video") -> Tensor:
    """Check a video `[B, T, C, H, W]` and convert it to float.

    uint8 is divided by 255; float passes as it is (nominally in [0, 1]).

    Raises:
        ValueError: wrong rank, no frames, wrong channel count, a size that `downsample` does not divide,
            a dtype that is neither uint8 nor floating, or values that are NaN or infinite.
    """
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
    if not video.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return video.contiguous().float()

"""`PerceiverFeaturesExtractor`: contexts inside an SB3 policy, from replay buffers that hold pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import torch
from einops import rearrange
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from agents.policies.frozen_perceiver import FrozenPerceiver, check_fingerprint
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.context_encoder import ModelLike
from perceiver_obs.frame_contract import check_pixel_range
from perceiver_obs.hub import directory_name

Layout = Literal["HWC", "CHW"]


class PerceiverFeaturesExtractor(BaseFeaturesExtractor):
    """Reads frames stacked along the channels, oldest first, and returns the context of the newest.

    Use it as `policy_kwargs={"features_extractor_class": PerceiverFeaturesExtractor,
    "features_extractor_kwargs": {"model": "dmc-small"}}` with `"CnnPolicy"` or `"MlpPolicy"` over a
    `VecFrameStack`. The context reaches back as far as the stack does: stack `receptive_field` frames for the
    whole of it. Timescales count their strides from the oldest frame of a stack, as if an episode began there.
    With the policy's `normalize_images` frames arrive in [0, 1], without it as 0 to 255; both are read, the
    second told by a value above 1 in the batch. Actions are not in a frame stack, so a model that reads them is
    given none.

    Frozen (the default), the pretrained weights are one copy a process, in eval mode, that SB3 neither
    initialises, optimises, averages, copies nor saves; a saved policy holds their fingerprint, and loading it
    with other weights raises. Trainable, they are ordinary parameters of this policy, saved with it;
    SB3's orthogonal initialisation leaves them alone, and the Perceiver stays in eval mode, so that codebooks
    and statistics stay put (`extractor.perceiver.tokenizer.adapt_codebook` moves them when asked).

    Args:
        observation_space: `Box` of uint8, `(H, W, n·C)` or `(n·C, H, W)` for n frames of the model's size.
        model: a bundled name, a directory, "hf://owner/name" of the hub, or a `CausalPerceiverIO`. SB3
            pickles `policy_kwargs` into its zip files, so a string keeps those small.
        trainable: whether gradients reach the Perceiver.
        layout: `"HWC"` or `"CHW"`, for the sizes where the shape alone does not tell.

    Raises:
        TypeError: the space is not a `Box` of uint8.
        ValueError: the space is no stack of the model's frames, or fits both layouts.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        model: ModelLike = "dmc-small",
        trainable: bool = False,
        *,
        layout: Layout | None = None,
    ) -> None:
        frozen = FrozenPerceiver(directory_name(model) if isinstance(model, Path) else model)
        pretrained = frozen.on(torch.device("cpu"))
        _, channels, height, width = pretrained.video_shape
        stack_layout = _stack_layout(observation_space, (height, width, channels), layout)
        super().__init__(observation_space, features_dim=pretrained.context_dim)
        self._layout = stack_layout
        self._channels = channels
        self._frozen: FrozenPerceiver | None = None
        if trainable:
            self.perceiver = copy.deepcopy(pretrained).requires_grad_(True)
        else:
            self._frozen = frozen

    @property
    def model(self) -> CausalPerceiverIO:
        """The Perceiver: the shared frozen copy on the CPU, or the one that this policy trains."""
        return self._frozen.on(torch.device("cpu")) if self._frozen is not None else self.perceiver

    @property
    def fingerprint(self) -> str:
        """Names the weights that make the contexts; changes as a trainable Perceiver learns."""
        return self._frozen.fingerprint if self._frozen is not None else self.perceiver.fingerprint

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Contexts `[B, D]` of the newest frames of `observations` (`[B, H, W, n·C]` or `[B, n·C, H, W]`)."""
        videos = self._videos(observations)
        valid = _since_first_frame(videos)
        if self._frozen is None:
            return self.perceiver.contexts(videos, valid=valid)[:, -1]
        with torch.no_grad():
            return self._frozen.on(videos.device).contexts(videos, valid=valid)[:, -1]

    def _videos(self, observations: torch.Tensor) -> torch.Tensor:
        pattern = "b h w (t c) -> b t c h w" if self._layout == "HWC" else "b (t c) h w -> b t c h w"
        videos = rearrange(observations, pattern, c=self._channels)
        if videos.dtype == torch.uint8:
            return videos.float() / 255.0
        return videos / torch.where(videos.amax() > 1.0, 255.0, 1.0)

    def train(self, mode: bool = True) -> Self:
        """Sets the policy's mode, but not the Perceiver's, which stays in eval mode."""
        super().train(mode)
        if self._frozen is None:
            self.perceiver.eval()
        return self

    def apply(self, fn: Callable[[torch.nn.Module], None]) -> Self:
        """Does nothing: `apply` is how SB3 re-initialises modules, and these weights are pretrained."""
        return self

    def get_extra_state(self) -> torch.Tensor:
        """The fingerprint, as bytes, for `state_dict`; empty where the weights themselves are saved."""
        fingerprint = self._frozen.fingerprint if self._frozen is not None else ""
        return torch.tensor(list(fingerprint.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Checks that a saved policy meets the Perceiver it was trained with.

        Raises:
            WrongPerceiver: it does not.
        """
        if self._frozen is not None:
            saved = bytes(state.tolist()).decode()
            check_fingerprint(self._frozen.fingerprint, saved, "the saved policy")


def _since_first_frame(videos: torch.Tensor) -> torch.Tensor:
    """Which frames of `[B, T, C, H, W]` exist: all from the first that is not all zeros, and always the
    newest."""
    shown = videos.flatten(2).any(dim=2)
    shown[:, -1] = True
    return shown.long().cumsum(dim=1) > 0


def _stack_layout(space: spaces.Space, frame_shape: tuple[int, int, int], layout: Layout | None) -> Layout:
    height, width, channels = frame_shape
    expected = f"uint8 stacks of frames {frame_shape}: ({height}, {width}, n·{channels}), or channels first"
    if not isinstance(space, spaces.Box) or space.dtype != "uint8":
        raise TypeError(f"PerceiverFeaturesExtractor reads {expected}, got {space}")
    check_pixel_range(space, "the observation")
    shape: tuple[Any, ...] = space.shape
    fits: list[Layout] = []
    if len(shape) == 3 and shape[:2] == (height, width) and shape[2] % channels == 0:
        fits.append("HWC")
    if len(shape) == 3 and shape[1:] == (height, width) and shape[0] % channels == 0:
        fits.append("CHW")
    if layout is not None and layout in fits:
        return layout
    if layout is not None or not fits:
        raise ValueError(f"PerceiverFeaturesExtractor reads {expected}, got shape {shape} (layout={layout!r})")
    if len(fits) == 2:
        raise ValueError(f"shape {shape} fits both HWC and CHW; say which with layout=")
    return fits[0]

"""What an objective draws from clips and asks of it: weights, samples, and the predictions of tokens that follow."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossWeights:
    """Weights of the objectives; those of weight 0 are not computed."""

    cross_entropy: float = 1.0
    perceptual: float = 0.0
    edge: float = 0.0
    contrastive: float = 0.0
    reward: float = 0.0
    pixel: float = 0.0
    state: float = 0.0

    @property
    def heads(self) -> tuple[str, ...]:
        """Those that ask something of contexts and of what latent dynamics predict from them."""
        of_tokens = ("cross_entropy", "perceptual")
        return tuple(each.name for each in fields(self) if each.name not in of_tokens and getattr(self, each.name) > 0)


@dataclass(frozen=True)
class ClipSampling:
    """Which frames of clips contexts are made of, and which tokens these predict.

    Attributes:
        samples: frames of each clip whose contexts are trained, at most as many as have frames enough after them.
        horizons: steps ahead to predict tokens over, drawn evenly.
        token_predictions: predictions of tokens a batch, drawn from the samples of all clips; None predicts from each.
        foreground_weight: how much more a position counts that moves as much as the average one of its clip.
        quantized_input: share of the clips that are read as looked-up codes, as generation does.
        without_actions: share of the batches that are read without their actions, for users who have none.
        perceptual_samples: predictions whose perceptual distance is computed.
        hidden: share of the clips whose contexts see, at the fast timescale, none of some frames before their own, so
            that others are needed; for models that have others.
    """

    samples: int = 8
    horizons: tuple[int, ...] = (1, 2, 3)
    token_predictions: int | None = None
    foreground_weight: float = 0.0
    quantized_input: float = 0.25
    without_actions: float = 0.2
    perceptual_samples: int = 4
    hidden: float = 1 / 3


@dataclass(frozen=True)
class TokenClips:
    """Clips as the tokenizer sees them: `vectors` and after quantisation `codes` `[B, T, h, w, code_dim]`, `tokens`
    `[B, T, h, w, Q]`."""

    vectors: Tensor
    codes: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class TokenTargets:
    """What X predictions begin with and are to give.

    Attributes:
        last: codes of the context's own frame, `[X, h, w, code_dim]`.
        codes: of the frame to come, of the same shape.
        tokens: of the frame to come, `[X, h, w, Q]`.
        weights: what each of its positions counts, `[X, h, w]`.
    """

    last: Tensor
    codes: Tensor
    tokens: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Starts:
    """`X` predictions of tokens: the clip and frame int64 `[X]` of each, its context `[X, D]` and the steps ahead.

    Towards goals, with a condition `[X, D]`; NaN where there is none.
    """

    row: Tensor
    anchor: Tensor
    contexts: Tensor
    horizon: Tensor
    condition: Tensor | None = None

    @property
    def target(self) -> Tensor:
        """The frames that are predicted."""
        return self.anchor + self.horizon


def random_visible(count: int, grid: Sequence[int], device: torch.device) -> Tensor:
    """Which tokens to show, bool `[count, h, w]`: none for one half, MaskGIT's cosine schedule for the other."""
    places = grid[0] * grid[1]
    masked = torch.cos(torch.rand(count, 1, device=device) * torch.pi / 2)
    masked = torch.where(torch.rand(count, 1, device=device) < 0.5, 1.0, masked)
    order = torch.rand(count, places, device=device).argsort(-1).argsort(-1)
    return (order >= (masked * places).ceil().clamp_min(1)).view(count, *grid)

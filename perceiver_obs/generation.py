"""Continuing a clip: draw the tokens of the next frame, feed them back, go on for as long as asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from perceiver_obs.modules.sampling import Sampling

if TYPE_CHECKING:
    from perceiver_obs.predictor import PerceiverTokenPredictor

GenerationMode = Literal["autoregressive", "maskgit"]
Visible = tuple[Tensor, Tensor] | None


@torch.no_grad()
def generate(
    predictor: PerceiverTokenPredictor,
    videos: Tensor,
    num_frames: int,
    mode: GenerationMode,
    actions: Tensor | None,
    sampling: Sampling,
    steps: int,
    condition: Tensor | None,
) -> Tensor:
    """Continue clips `[B, T, C, H, W]` by `num_frames` frames, each fed back before the next.

    The window slides along, so any number of frames can follow, also past `sequence_length`.

    Args:
        mode: how the tokens of one frame are drawn: "autoregressive" all at once, given the frames so far;
            "maskgit" in `steps` rounds, surest first, each round given what is already drawn
            (Chang et al. 2022, arXiv:2202.04200).
        actions: `[B, T + num_frames, A]`, the action that led or leads to each frame.
        steps: rounds a frame for "maskgit".
        condition: `[B, condition_dim]`.

    Returns:
        the new frames `[B, num_frames, C, H, W]`, in [0, 1].

    Raises:
        ValueError: an unknown mode, or a count, shape or sampling setting out of range.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if mode not in ("autoregressive", "maskgit"):
        raise ValueError(f"mode must be 'autoregressive' or 'maskgit', got {mode!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    tokenizer = predictor.tokenizer
    vectors = tokenizer.encode_vectors(videos)
    batch, given, height, width = vectors.shape[:4]
    condition = predictor.check_condition(condition, batch)
    if actions is not None and actions.shape[:2] != (batch, given + num_frames):
        raise ValueError(f"actions must have shape [{batch}, {given + num_frames}, A], got {list(actions.shape)}")

    def taken(start: int, stop: int) -> Tensor | None:
        return None if actions is None else actions[:, start:stop]

    contexts, state = predictor.encode(predictor.observe(videos)[0], taken(0, given), predictor.init_state(batch))
    codes = tokenizer.quantize(vectors)[0]
    last = codes[:, -1]
    one_ahead = torch.ones(batch, dtype=torch.long, device=vectors.device)
    for t in range(given, given + num_frames):

        def draw(
            visible: Visible, context: Tensor = contexts[:, -1], last: Tensor = last, t: int = t
        ) -> tuple[Tensor, Tensor]:
            hidden = predictor.predict(context, last, one_ahead, taken(t, t + 1), condition, visible)
            drawn, confidence = predictor.head.sample(hidden, tokenizer.quantizer, sampling)
            return drawn.unflatten(1, (height, width)), confidence

        drawn = _draw_frame(draw, tokenizer.quantizer.lookup, 1 if mode == "autoregressive" else steps)
        codes = torch.cat([codes, tokenizer.quantizer.lookup(drawn)[:, None]], dim=1)
        last = codes[:, -1]
        contexts, state = predictor.encode(predictor.observe_codes(codes), taken(t, t + 1), state)
    video = tokenizer.decode_vectors(codes)
    return video[:, given:].clamp(0, 1)


def _draw_frame(
    draw: Callable[[Visible], tuple[Tensor, Tensor]], lookup: Callable[[Tensor], Tensor], rounds: int
) -> Tensor:
    """Tokens `[B, h, w, Q]` of one frame: after each round the surest stay, the rest is masked and drawn again."""
    tokens, confidence = draw(None)
    count = confidence.shape[1]
    for done in range(1, rounds):
        keep = max(1, count - int(count * math.cos(done / rounds * math.pi / 2)))
        surest = confidence.topk(keep, dim=1).indices
        kept = torch.zeros_like(confidence, dtype=torch.bool).scatter(1, surest, True)
        kept_places = kept.view(tokens.shape[:3])
        fresh, fresh_confidence = draw((lookup(tokens), kept_places))
        tokens = torch.where(kept_places[..., None], tokens, fresh)
        confidence = torch.where(kept, float("inf"), fresh_confidence)
    return tokens

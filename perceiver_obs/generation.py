"""Continuing a clip: draw the tokens of the next frame, feed them back, go on for as long as asked."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from perceiver_obs.frame_reader import ContextState, FrameReader

GenerationMode = Literal["autoregressive", "maskgit"]
# Code vectors `[B, h, w, code_dim]` and bool `[B, h, w]` that is True where they are given.
Visible = tuple[Tensor, Tensor] | None
# From contexts `[B, D]`, codes `[B, h, w, code_dim]` of their frames, the action `[B, 1, A]` to come and what is
# visible of the next frame: its tokens `[B, h * w, Q]` and their log-probabilities `[B, h * w]`.
DrawTokens = Callable[[Tensor, Tensor, Tensor | None, Visible], tuple[Tensor, Tensor]]


@torch.no_grad()
def generate(
    reader: FrameReader,
    draw_tokens: DrawTokens,
    videos: Tensor,
    num_frames: int,
    mode: GenerationMode,
    actions: Tensor | None,
    steps: int,
) -> Tensor:
    """New frames `[B, num_frames, C, H, W]` after clips `[B, T, C, H, W]`; see `PerceiverTokenPredictor.generate`."""
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if mode not in ("autoregressive", "maskgit"):
        raise ValueError(f"mode must be 'autoregressive' or 'maskgit', got {mode!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    tokenizer = reader.tokenizer
    codes, _ = tokenizer.quantize(tokenizer.encode_vectors(videos))
    batch, given, height, width = codes.shape[:4]
    if actions is not None and actions.shape[:2] != (batch, given + num_frames):
        raise ValueError(f"actions must have shape [{batch}, {given + num_frames}, A], got {list(actions.shape)}")

    def actions_of(start: int, stop: int) -> Tensor | None:
        return None if actions is None else actions[:, start:stop]

    state: ContextState | None
    contexts, state = reader.advance(videos, reader.init_state(batch, videos.shape[-2:]), actions_of(0, given))
    rounds = 1 if mode == "autoregressive" else steps
    for t in range(given, given + num_frames):
        action = actions_of(t, t + 1)
        draw = partial(draw_tokens, contexts[:, -1], codes[:, -1], action)
        drawn = _draw_frame(draw, tokenizer.quantizer.lookup, (height, width), rounds)
        codes = torch.cat([codes, drawn], dim=1)
        contexts, state = reader.encode(reader.observe_codes(codes), action, state)
    return tokenizer.decode_vectors(codes)[:, given:].clamp(0, 1)


def _draw_frame(
    draw: Callable[[Visible], tuple[Tensor, Tensor]],
    lookup: Callable[[Tensor], Tensor],
    grid: tuple[int, int],
    rounds: int,
) -> Tensor:
    """Codes `[B, 1, h, w, code_dim]` of one frame: after each round the surest tokens stay, the others are redrawn."""
    tokens, confidence = draw(None)
    count = confidence.shape[1]
    for done in range(1, rounds):
        keep = max(1, count - int(count * math.cos(done / rounds * math.pi / 2)))
        surest = confidence.topk(keep, dim=1).indices
        kept = torch.zeros_like(confidence, dtype=torch.bool).scatter(1, surest, True)
        visible = lookup(tokens).unflatten(1, grid), kept.unflatten(1, grid)
        redrawn, new_confidence = draw(visible)
        tokens = torch.where(kept[..., None], tokens, redrawn)
        confidence = torch.where(kept, float("inf"), new_confidence)
    return lookup(tokens).unflatten(1, grid)[:, None]

"""What a model makes of an episode, frame by frame: frames through the tokens, and frames predicted from contexts."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.clips import leading_actions
from perceiver_obs.data.rollouts import Episode
from perceiver_obs.modules.sampling import GREEDY
from perceiver_obs.training.quality import to_uint8

FRAMES_AT_ONCE = 32

Frames = NDArray[np.uint8]


def through_tokens(model: CausalPerceiverIO, episode: Episode, device: torch.device) -> Frames:
    """The frames uint8 `[T, H, W, C]` of an episode, encoded to tokens and decoded from these alone."""
    return to_uint8(model.reconstruct(_video(episode, device))[0])


@torch.inference_mode()
def predict(model: CausalPerceiverIO, episode: Episode, horizon: int, device: torch.device) -> Frames:
    """Frames predicted: entry t, of `[T - horizon, H, W, C]`, is frame t + horizon as frame t and its context have it.

    Each is predicted in one go, with the actions taken in between, by the most likely tokens; no prediction is fed
    back. Empty for episodes of no more than `horizon` frames.

    Raises ValueError for a horizon that the model does not reach.
    """
    check_horizon(model, horizon)
    predictor, tokenizer = model.predictor, model.tokenizer
    video, actions = _video(episode, device), _actions(model, episode, device)
    contexts, last = _contexts_and_codes(model, video, actions)
    contexts, last = contexts[:-horizon], last[:-horizon]
    if not len(contexts):
        return np.zeros((0, *episode.pixels.shape[1:]), np.uint8)
    between = None if actions is None else actions[0, 1:].unfold(0, horizon, 1).transpose(1, 2)
    tokens = []
    for start in range(0, len(contexts), FRAMES_AT_ONCE):
        rows = slice(start, start + FRAMES_AT_ONCE)
        horizons = torch.full((len(contexts[rows]),), horizon, device=device)
        hidden = predictor.predict(contexts[rows], last[rows], horizons, None if between is None else between[rows])
        tokens.append(predictor.head.sample(hidden, tokenizer.quantizer, GREEDY)[0].unflatten(1, last.shape[1:3]))
    vectors = tokenizer.quantizer.lookup(torch.cat(tokens)[None])
    return to_uint8(tokenizer.decode_vectors(vectors)[0])


def check_horizon(model: CausalPerceiverIO, horizon: int) -> None:
    """Raises ValueError unless the model can predict so many steps ahead in one go."""
    longest = model.predictor.sequence_length
    if not 1 <= horizon <= longest:
        raise ValueError(f"horizon must lie in 1 to {longest}, the model's sequence_length, got {horizon}")


def _contexts_and_codes(model: CausalPerceiverIO, video: Tensor, actions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Contexts `[T, D]` as the predictor reads them, not normalised, and looked-up codes `[T, h, w, code_dim]`."""
    past, state = None, model.predictor.init_state(1, video.shape[-2:])
    contexts, codes = [], []
    for start in range(0, video.shape[1], FRAMES_AT_ONCE):
        span = slice(start, start + FRAMES_AT_ONCE)
        raw, state = model.predictor.advance(video[:, span], state, None if actions is None else actions[:, span])
        contexts.append(raw[0])
        vectors, past = model.tokenizer.stream_vectors(video[:, span], past)
        codes.append(model.tokenizer.quantize(vectors)[0][0])
    return torch.cat(contexts), torch.cat(codes)


def _video(episode: Episode, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(episode.pixels.transpose(0, 3, 1, 2)))[None].to(device)


def _actions(model: CausalPerceiverIO, episode: Episode, device: torch.device) -> Tensor | None:
    if model.action_dim is None:
        return None
    return torch.from_numpy(leading_actions(episode.actions, model.action_dim))[None].to(device)

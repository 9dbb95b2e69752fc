"""Contexts of online episodes anew: in the replay buffer, and in the running state of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer

from agents.adaptation.online_episodes import OnlineEpisode
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.context_encoder import ContextEncoder
from perceiver_obs.data.clips import leading_actions
from perceiver_obs.evaluation.features import batched, encode_equal_length

FRAMES_AT_ONCE = 4096


@dataclass(frozen=True)
class Span:
    """Where the last transitions of an episode lie in the replay buffer: `places` `[K]` of a row, in order."""

    episode: OnlineEpisode
    row: int
    places: NDArray[np.int64]


def reencode_buffer(
    buffer: ReplayBuffer, rows: Sequence[Sequence[OnlineEpisode]], model: CausalPerceiverIO, device: torch.device
) -> None:
    """Replaces all observations in a replay buffer by the contexts that `model` gives.

    Args:
        buffer: its newest transition of each row is the last of the row's last episode, and so on backwards.
        rows: for each row its episodes in order.
        model: on `device`, in eval mode.
        device: where the model runs.

    Raises:
        ValueError: the buffer holds transitions whose episodes were not kept.
    """
    spans = [span for row, episodes in enumerate(rows) for span in find_spans(buffer, row, episodes)]
    spans.sort(key=lambda span: len(span.episode.pixels))
    for length, alike in groupby(spans, key=lambda span: len(span.episode.pixels)):
        for batch in batched(list(alike), max(1, FRAMES_AT_ONCE // length)):
            episodes = [span.episode for span in batch]
            for span, contexts in zip(batch, encode_equal_length(model, episodes, device)):
                count = len(span.places)
                buffer.observations[span.places, span.row] = contexts[-1 - count : -1]
                buffer.next_observations[span.places, span.row] = contexts[-count:]


def find_spans(buffer: ReplayBuffer, row: int, episodes: Sequence[OnlineEpisode]) -> list[Span]:
    """Where the transitions of a row's episodes lie, newest episode first; those that were overwritten are left out.

    Raises ValueError if the buffer holds more transitions than the episodes have.
    """
    spans, newer, stored = [], 0, buffer.size()
    for episode in reversed(episodes):
        count = min(episode.steps, stored - newer)
        if count > 0:
            first = buffer.pos - newer - count
            spans.append(Span(episode, row, np.arange(first, first + count) % buffer.buffer_size))
        newer += count
    if newer < stored:
        raise ValueError(
            f"the replay buffer holds {stored} transitions of each row, but the frames of only {newer} were kept: "
            "give AdaptContext to the first call of learn, and to every one after it"
        )
    return spans


def catch_up(encoder: ContextEncoder, running: Sequence[OnlineEpisode]) -> NDArray[np.float32]:
    """Takes an encoder through the last frames of the running episodes of its rows, as if it had seen all of them.

    Args:
        encoder: reset in all rows.
        running: the episode of each row.

    Returns:
        the contexts `[N, D]` of the newest frames.
    """
    contexts = np.zeros((encoder.num_rows, encoder.context_dim), np.float32)
    size = encoder.action_dim or 0
    led = [leading_actions(episode.actions, size) for episode in running]
    # One frame more than a context depends on, as an action counts only where a frame came before; and from a frame on
    # that begins a stride of every timescale.
    needed, period = encoder.model.receptive_field + 1, encoder.model.period
    backs = [len(e.pixels) - max(0, len(e.pixels) - needed) // period * period for e in running]
    for back in range(max(backs), 0, -1):
        rows = np.array([row for row, farthest in enumerate(backs) if back <= farthest], np.int64)
        frames = np.array([running[row].pixels[-back] for row in rows], np.uint8)
        if rows.size:
            actions = np.stack([led[row][-back] for row in rows]) if encoder.action_dim is not None else None
            contexts[rows] = encoder.push(frames, actions, rows)
    return contexts

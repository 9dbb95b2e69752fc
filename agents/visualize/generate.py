"""Continuing an episode: what the model expects to see, beside what happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agents.visualize.episodes import play_at_random
from agents.visualize.settings import GenerateSettings
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.clips import leading_actions
from perceiver_obs.data.rollouts import Episode, RolloutDataset
from perceiver_obs.devices import choose_device
from perceiver_obs.frame_contract import warn_of_unfamiliar_frames
from perceiver_obs.isolation import isolated
from perceiver_obs.reporting import plots
from perceiver_obs.reporting.page import Figure, Section
from perceiver_obs.reporting.sections import save_section
from perceiver_obs.training.quality import to_uint8

STRIP_COLUMNS = 16


def generate(settings: GenerateSettings) -> NDArray[np.uint8]:
    """Continues an episode and writes the pictures; returns the predicted frames uint8 `[N, H, W, C]`.

    Raises ValueError if the episode is too short for what is asked, or the environment is none or does not fit the
    model, FileNotFoundError for an unknown model.
    """
    device = choose_device(settings.device)
    model = CausalPerceiverIO.from_pretrained(settings.model).to(device)
    if settings.goal and model.predictor.condition_dim != model.context_dim:
        raise ValueError(f"goal needs a model trained with --condition goal; {settings.model} was trained without")
    length = settings.num_context_frames + settings.num_frames
    episode = _episode(settings, model, settings.start + length)
    if settings.start + length > len(episode.pixels):
        raise ValueError(
            f"frames {settings.start} to {settings.start + length - 1} were asked for, "
            f"but the episode has {len(episode.pixels)}"
        )
    happened = np.ascontiguousarray(episode.pixels[settings.start : settings.start + length])
    seen = torch.from_numpy(happened[: settings.num_context_frames].transpose(0, 3, 1, 2).copy())[None].to(device)
    actions = None
    if model.action_dim is not None:
        led = leading_actions(episode.actions, model.action_dim)[settings.start :][:length]
        actions = torch.from_numpy(led)[None].to(device)
    condition = None
    if settings.goal:
        shown = torch.from_numpy(happened.transpose(0, 3, 1, 2).copy())[None].to(device)
        condition, actions = model.extract_context(shown, actions)[:, -1], None
    with isolated(settings.seed, device):
        future = model.generate(
            seen,
            settings.num_frames,
            mode=settings.mode,
            actions=actions,
            condition=condition,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            steps=settings.steps,
        )
    predicted = to_uint8(future[0])
    _write(settings, happened, predicted)
    return predicted


def _episode(settings: GenerateSettings, model: CausalPerceiverIO, num_frames: int) -> Episode:
    if settings.data is None:
        return play_at_random(settings, model, num_frames)
    dataset = RolloutDataset(settings.data)
    if not 0 <= settings.episode < len(dataset):
        raise ValueError(f"episode must lie in 0 to {len(dataset) - 1}, got {settings.episode}")
    warn_of_unfamiliar_frames([dataset.frame_contract], model)
    return dataset[settings.episode]


def _write(settings: GenerateSettings, happened: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
    out = Path(settings.out)
    every = -(-len(predicted) // STRIP_COLUMNS)
    given = "the last frame as its goal" if settings.goal else "the actions that follow"
    strip = Figure(
        "future",
        "A continued episode",
        f"The model saw {settings.num_context_frames} frames, the last of which is shown, and {given}.",
        plots.filmstrip(happened, predicted, every),
    )
    facts = {"mode": settings.mode, "temperature": f"{settings.temperature:g}", "frames": f"{len(predicted)}"}
    save_section(out, Section("Generated future", f"Continued by {settings.model}.", facts, (strip,)))
    plots.write_gif(out / "future.gif", happened, predicted, settings.frames_per_second)
    print(f"generate: {out / 'figures' / 'future.png'}, {out / 'future.gif'}")

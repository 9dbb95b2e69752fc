"""Continuing an episode: what the model expects to see, beside what happened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from envs.rollouts import Episode, RolloutDataset
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.devices import choose_device
from perceiver_obs.frame_contract import SETTINGS, FrameContract, warn_of_unfamiliar_frames
from perceiver_obs.isolation import isolated
from perceiver_obs.training import pictures
from perceiver_obs.training.data import leading_actions
from perceiver_obs.training.evaluation import to_uint8
from perceiver_obs.training.report import Figure, Section, save_section

STRIP_COLUMNS = 16


@dataclass
class GenerateSettings:
    """Let a trained model continue an episode, told the actions that were taken; writes a picture and a GIF."""

    model: str = "runs/predictor"
    """Bundled name or directory of the model, or "hf://owner/name" of the hub."""
    data: str | None = "runs/data"
    """Rollout directory that the episode comes from. None: a fresh one of `task`, under random actions."""
    task: str = "walker-walk"
    """Task to play a fresh episode of, rendered as the model was trained. Only without `data`."""
    out: str = "runs/generate"
    """Directory for future.gif, figures/future.png and a report."""
    episode: int = 0
    """Which episode of the data."""
    start: int = 0
    """First frame to show the model."""
    num_context_frames: int = 8
    """Frames that the model sees."""
    num_frames: int = 32
    """Frames to continue by."""
    mode: Literal["autoregressive", "maskgit"] = "autoregressive"
    """How the tokens of a frame are drawn: all at once, or in rounds with the surest first."""
    steps: int = 8
    """Rounds of mode maskgit."""
    temperature: float = 0.0
    """0 takes the most likely tokens; 1 draws them as likely as the model holds them to be."""
    top_k: int | None = None
    """Draw from the k most likely tokens only."""
    top_p: float | None = None
    """Draw from the smallest set of tokens of this probability only."""
    seed: int = 0
    """Seed of the draws and of a fresh episode."""
    frames_per_second: float = 20.0
    """Speed of the GIF."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("num_context_frames", 1), ("num_frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def generate(settings: GenerateSettings) -> NDArray[np.uint8]:
    """Continues an episode and writes the pictures; returns the predicted frames uint8 `[N, H, W, C]`.

    Raises ValueError if the episode is too short for what is asked, FileNotFoundError for an unknown model.
    """
    device = choose_device(settings.device)
    model = CausalPerceiverIO.from_pretrained(settings.model).to(device)
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
    with isolated(settings.seed, device):
        future = model.generate(
            seen,
            settings.num_frames,
            mode=settings.mode,
            actions=actions,
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
        return _play(settings, model, num_frames)
    dataset = RolloutDataset(settings.data)
    if not 0 <= settings.episode < len(dataset):
        raise ValueError(f"episode must lie in 0 to {len(dataset) - 1}, got {settings.episode}")
    warn_of_unfamiliar_frames([dataset.frame_contract], model)
    return dataset[settings.episode]


def _play(settings: GenerateSettings, model: CausalPerceiverIO, num_frames: int) -> Episode:
    """An episode under uniformly random actions, rendered by the model's frame contract."""
    from envs import make_dmc

    contract = FrameContract.of(model.frame_contract)
    variant = vars(contract.commonest(settings.task))
    known: dict[str, Any] = {name: variant[name] for name in SETTINGS if variant[name] is not None}
    env = make_dmc(settings.task, size=model.video_shape[2], **known)
    env.action_space.seed(settings.seed)
    pixels = [env.reset(seed=settings.seed)[0]]
    actions: list[NDArray[np.float32]] = []
    rewards: list[float] = []
    ended = (False, False)
    while len(pixels) < num_frames and not any(ended):
        actions.append(env.action_space.sample())
        frame, reward, terminated, truncated, _ = env.step(actions[-1])
        pixels.append(frame)
        rewards.append(float(reward))
        ended = (terminated, truncated)
    env.close()
    arrays = (np.stack(pixels), np.stack(actions), np.array(rewards, np.float32))
    return Episode(*arrays, *ended, seed=settings.seed, policy="random")


def _write(settings: GenerateSettings, happened: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
    out = Path(settings.out)
    every = -(-len(predicted) // STRIP_COLUMNS)
    strip = Figure(
        "future",
        "A continued episode",
        f"The model saw {settings.num_context_frames} frames, the last of which is shown, and the actions that follow.",
        pictures.filmstrip(happened, predicted, every),
    )
    facts = {"mode": settings.mode, "temperature": f"{settings.temperature:g}", "frames": f"{len(predicted)}"}
    save_section(out, Section("Generated future", f"Continued by {settings.model}.", facts, (strip,)))
    pictures.write_gif(out / "future.gif", happened, predicted, settings.frames_per_second)
    print(f"generate: {out / 'figures' / 'future.png'}, {out / 'future.gif'}")

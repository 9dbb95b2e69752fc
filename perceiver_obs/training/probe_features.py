"""What a probe reads: features of every frame of an episode, from contexts or from baselines."""

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from envs.rollouts import Episode, RolloutDataset
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.training.data import Recorded, RolloutClips, leading_actions
from perceiver_obs.training.frame_pca import FramePCA, stack_frames

Item = TypeVar("Item")
Features = list[NDArray[np.float32]]
FeatureMaker = Callable[[Sequence[Episode]], Features]

EPISODES_AT_ONCE = 16
SUPERVISED_BATCH = 16
SUPERVISED_LEARNING_RATE = 3e-4


def context_features(model: CausalPerceiverIO, device: torch.device, label: str) -> FeatureMaker:
    """Contexts `[T + 1, D]` of whole episodes, as a policy gets them frame by frame."""
    model = copy.deepcopy(model).eval().to(device)

    def make(episodes: Sequence[Episode]) -> Features:
        contexts: Features = []
        with tqdm(total=sum(len(e.pixels) for e in episodes), unit="frame", desc=label) as bar:
            for _, alike in groupby(episodes, key=lambda episode: len(episode.pixels)):
                for batch in batched(list(alike), EPISODES_AT_ONCE):
                    contexts += list(contexts_of_alike(model, batch, device))
                    bar.update(sum(len(e.pixels) for e in batch))
        return contexts

    return make


def contexts_of_alike(
    model: CausalPerceiverIO, episodes: Sequence[Recorded], device: torch.device
) -> NDArray[np.float32]:
    """Contexts `[N, T + 1, D]` of episodes of one length."""
    frames = np.stack([episode.pixels for episode in episodes])
    videos = torch.from_numpy(frames).to(device).permute(0, 1, 4, 2, 3)
    actions = None
    if model.action_dim is not None:
        led = np.stack([leading_actions(episode.actions, model.action_dim) for episode in episodes])
        actions = torch.from_numpy(led).to(device)
    return model.extract_context(videos, actions).cpu().numpy()


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive parts of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def pca_features(training: Sequence[Episode], num_components: int, seed: int) -> FeatureMaker:
    """Principal components of three stacked frames, fitted on training episodes."""
    pca = FramePCA.fit(training, num_components, seed)

    def make(episodes: Sequence[Episode]) -> Features:
        return [pca(stack_frames(e.pixels, range(len(e.pixels)))) for e in tqdm(episodes, "PCA of stacked frames")]

    return make


def random_model(model: CausalPerceiverIO, seed: int) -> CausalPerceiverIO:
    """A model of the same shape whose weights were never trained."""
    torch.manual_seed(seed)
    return type(model)(**model.config()).eval()


def supervised_model(
    model: CausalPerceiverIO,
    dataset: RolloutDataset,
    episodes: Sequence[int],
    steps: int,
    device: torch.device,
    seed: int,
) -> CausalPerceiverIO:
    """The model after training all its weights to tell the state: how much of it the pixels hold."""
    model = copy.deepcopy(model).to(device).eval().requires_grad_(True)
    clips = RolloutClips([dataset], [episodes], min(2 * model.receptive_field, min(dataset.lengths)))
    states = {e: np.asarray(dataset[e].states, np.float32) for e in episodes}
    every = np.concatenate(list(states.values()))
    mean, scale = every.mean(axis=0), np.maximum(every.std(axis=0), 1e-6)
    torch.manual_seed(seed)
    head = nn.Linear(model.context_dim, every.shape[1]).to(device)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=SUPERVISED_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, SUPERVISED_LEARNING_RATE, total_steps=steps)
    bar = tqdm(range(steps), "training with supervision on the state")
    for step in bar:
        places = clips.index.draw(SUPERVISED_BATCH, seed, step)
        video = torch.from_numpy(clips.frames(places)).to(device)
        actions = torch.from_numpy(clips.actions(places)).to(device) if model.action_dim else None
        target = np.stack([states[p.episode][p.start :][: clips.index.clip_length] for p in places])
        error = head(model.contexts(video, actions)) - torch.from_numpy((target - mean) / scale).to(device)
        loss = error.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.requires_grad_(False)

"""What a probe reads: features of every frame of an episode, from contexts or from baselines."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.clips import Recorded, leading_actions
from perceiver_obs.data.rollouts import Episode
from perceiver_obs.evaluation.frame_pca import FramePCA, stack_frames
from perceiver_obs.isolation import isolated

Item = TypeVar("Item")
Features = list[NDArray[np.float32]]
FeatureMaker = Callable[[Sequence[Episode]], Features]

EPISODES_AT_ONCE = 16
STATISTICS_EPISODES = 16
SMALLEST_DEVIATION = 1e-4  # of a random network's contexts; below are rounding errors


def context_features(model: CausalPerceiverIO, device: torch.device, label: str) -> FeatureMaker:
    """Contexts `[T + 1, D]` of whole episodes, as a policy gets them frame by frame."""
    model = copy.deepcopy(model).eval().to(device)

    def make(episodes: Sequence[Episode]) -> Features:
        contexts: Features = []
        with tqdm(total=len(episodes), unit="episode", desc=label) as bar:
            for batch in _equal_length_batches(episodes):
                contexts += list(encode_equal_length(model, batch, device))
                bar.update(len(batch))
        return contexts

    return make


def _equal_length_batches(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    """Neighbours of one length, no more at a time than `EPISODES_AT_ONCE`: each open episode holds a file."""
    batch: list[Episode] = []
    for episode in episodes:
        if batch and (len(batch) == EPISODES_AT_ONCE or len(batch[0].pixels) != len(episode.pixels)):
            yield batch
            batch = []
        batch.append(episode)
    if batch:
        yield batch


def encode_equal_length(
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
    with isolated(seed):
        return type(model)(**model.config()).eval()


def standardised_random_model(
    model: CausalPerceiverIO, seed: int, episodes: Sequence[Episode], device: torch.device
) -> CausalPerceiverIO:
    """A random model whose contexts have mean 0 and deviation 1 on the first of the episodes, much as training ends
    with, so that a policy is not put off by their scale."""
    untrained = random_model(model, seed)
    make = context_features(untrained, device, "contexts of random weights")
    contexts = torch.from_numpy(np.concatenate(make(episodes[:STATISTICS_EPISODES])))
    # Not by set_context_statistics: its lower bound suits trained contexts, these vary ten times less.
    untrained.context_mean.copy_(contexts.mean(0))
    untrained.context_scale.copy_(contexts.std(0).clamp_min(SMALLEST_DEVIATION))
    return untrained

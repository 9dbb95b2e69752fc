"""A copy of a model trained to regress the true state: what a model of this shape can read from the frames."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.clips import RolloutClips
from perceiver_obs.evaluation.probe_data import EpisodeList, ProbeTask
from perceiver_obs.evaluation.regression import Standardizer
from perceiver_obs.isolation import isolated
from perceiver_obs.training.checkpoint import RunDirectory
from perceiver_obs.training.loop import Evaluation, Stage, make_accelerator, seed_step, train
from perceiver_obs.training.settings import RunSettings

WARMUP_FRACTION = 0.1


class StateRegressor(nn.Module):
    """Contexts, and one linear map of them to states of mean 0 and deviation 1."""

    def __init__(self, model: CausalPerceiverIO, num_coordinates: int):
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.context_dim, num_coordinates)

    def forward(self, video: Tensor, states: Tensor, actions: Tensor | None = None) -> dict[str, Tensor]:
        """The squared error of states `[B, T, K]` from videos `[B, T, C, H, W]` and actions `[B, T, A]`."""
        return {"loss": (self.head(self.model.contexts(video, actions)) - states).square().mean()}


class Supervision(Stage):
    """Trains all weights between frames and contexts, tokenizer included; the sets of episodes get equal shares."""

    def __init__(self, model: CausalPerceiverIO, task: ProbeTask, settings: RunSettings):
        sets = [each.supervision for each in task.sets]
        assert task.state is not None
        self.settings = settings
        seed_step(settings.seed, 0, 0)
        self.model = copy.deepcopy(model).requires_grad_(True)
        self.module = StateRegressor(self.model, len(task.state.coordinates))
        self.clips: RolloutClips[EpisodeList] = RolloutClips(
            sets, [range(len(each)) for each in sets], _clip_length(model, sets)
        )
        states = [[task.state.read(episode) for episode in each] for each in sets]
        standardize = Standardizer.fit(np.concatenate([state for of_set in states for state in of_set]))
        self.states = [[standardize(state).astype(np.float32) for state in of_set] for of_set in states]
        self.inputs = {"model": model.fingerprint, "data": " ".join(each.fingerprint for each in sets)}

    def batch(self, step: int, rank: int) -> dict[str, Tensor]:
        places = self.clips.index.draw(self.settings.batch_size, self.settings.seed, step, rank)
        length = self.clips.index.clip_length
        states = [self.states[p.dataset][p.episode][p.start : p.start + length] for p in places]
        batch = {"video": self.clips.frames(places), "states": np.stack(states)}
        if self.model.action_dim is not None:
            batch["actions"] = self.clips.actions(places)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def evaluate(self, device: torch.device) -> Evaluation:
        return Evaluation({}, {})  # the probe that follows is the evaluation


def supervised_model(model: CausalPerceiverIO, task: ProbeTask, settings: RunSettings) -> CausalPerceiverIO:
    """A copy of `model` after `settings.steps` steps of supervision; killed, it goes on when called again.

    The run lies in a directory of its own for each model and data, within `settings.out`.
    """
    with isolated(device=settings.device):
        stage = Supervision(model, task, settings)
        key = hashlib.sha256(repr((stage.inputs, settings.steps, settings.seed)).encode()).hexdigest()[:12]
        run = RunDirectory(Path(settings.out) / key, settings)
        train(stage, settings, run, make_accelerator(settings))
    return stage.model.cpu().eval().requires_grad_(False)


def supervision_settings(
    data: tuple[str, ...], out: Path, steps: int, batch_size: int, seed: int, device: torch.device
) -> RunSettings:
    """Settings of a run of supervision within `out`."""
    return RunSettings(
        data=data,
        out=str(out),
        steps=steps,
        batch_size=batch_size,
        warmup_steps=round(WARMUP_FRACTION * steps),
        evaluate_every=steps,
        seed=seed,
        device=device.type,
    )


def _clip_length(model: CausalPerceiverIO, sets: list[EpisodeList]) -> int:
    """Twice what a context reads, and no longer than half of the episodes of every set."""
    return min(2 * model.receptive_field, *(int(np.median(each.lengths)) for each in sets))

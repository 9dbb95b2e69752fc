"""Adaptation: a trained Perceiver goes on learning, on episodes that a policy meets and on offline rollouts."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.clips import ClipPlace, Recorded, RolloutClips
from perceiver_obs.data.splits import open_datasets, split_episodes, task_groups
from perceiver_obs.data.state_coordinates import StateCoordinates
from perceiver_obs.files import write_atomic
from perceiver_obs.isolation import isolated
from perceiver_obs.objectives.saved_heads import save_heads, take_up_heads
from perceiver_obs.objectives.states import HasStates, StateTargets
from perceiver_obs.settings import check_same_inputs, read_json, settings_to_dict
from perceiver_obs.training.checkpoint import load_checkpoint, save_checkpoint, state_digest
from perceiver_obs.training.loop import OptimizerSteps, make_accelerator, make_optimizer, seed_step
from perceiver_obs.training.objective import clip_batch, make_objective, training_contract
from perceiver_obs.training.settings import TrainPredictorSettings, current_settings
from perceiver_obs.training.token_cache import Codes, TokenCache, clip_codes, encode_frames

SETTINGS_FILE = "settings.json"
OFFLINE, ONLINE = 0, 1  # streams of random numbers


class OnlineEpisode(Recorded, HasStates, Protocol):
    """What a policy has met: frames, actions, rewards, and where they are known true states."""


@dataclass(frozen=True)
class OnlineData:
    """What online episodes are of.

    Attributes:
        task: as frame contracts name it; None where unknown.
        share: of the clips of each batch, 0 to 1; all of them where there are no offline rollouts.
        state_names: of the entries of their states; None where they have none.
    """

    task: str | None = None
    share: float = 0.5
    state_names: Sequence[str] | None = None


class Adaptation:
    """Trains a copy of a Perceiver in parts, each on more episodes than the one before.

    The objective is the one that `settings` describe. Tokenizer and statistics (of tokens and of contexts) stay as
    they are, so that contexts shift no more than learning makes them. Heads that are learned anew, because no run
    before has left them or because the task is new to them, learn alone for as many steps in the first part, before
    the Perceiver joins in.

    Args:
        model: the Perceiver; a copy is trained.
        data: directories of offline rollouts, with sampling weights as `open_datasets` reads them; none learns from
            online episodes alone.
        settings: objective, batch size, seed and learning rate, which stays constant; their `data` are not read.
        online: what the online episodes are of.
        token_cache: directory for the tokens of the offline rollouts.
        device: where to train.
        heads: directory of the model, beside which a run may have left the objective's heads; None learns them anew.

    Attributes:
        model: the copy.
        steps: gradient steps done.
        datasets: the offline rollouts.
        heads: a line that says which heads were taken up.

    Raises:
        ValueError: offline rollouts that do not fit the model, or settings that do not.
    """

    def __init__(
        self,
        model: CausalPerceiverIO,
        data: Sequence[str],
        settings: TrainPredictorSettings,
        online: OnlineData,
        token_cache: Path,
        device: torch.device,
        heads: Path | None = None,
    ):
        self.settings, self.device, self.steps = settings, device, 0
        self.model = copy.deepcopy(model).to(device).requires_grad_(True).eval()
        self.model.tokenizer.requires_grad_(False)
        self.model.frame_contract = training_contract(model.frame_contract, settings, model)
        self.datasets, self._weights = open_datasets(data)
        for dataset in self.datasets:
            if (shape := dataset.frame_contract.frame_shape) != model.video_shape[1:]:
                raise ValueError(
                    f"{dataset.path} has frames {shape} (C, H, W), the model reads {model.video_shape[1:]}"
                )
        self._online_clips = round(online.share * settings.batch_size) if self.datasets else settings.batch_size
        tasks, self._groups = task_groups(self.datasets)
        # A task of which there are no rollouts has a scene of its own.
        if online.task not in tasks:
            tasks.append(online.task or "")
        self._online_group = tasks.index(online.task or "") if online.task in tasks else len(tasks) - 1
        self._codes: WeakKeyDictionary[Recorded, Codes] = WeakKeyDictionary()
        self._inputs = {"model": state_digest(model), "data": "+".join(d.fingerprint for d in self.datasets)}
        names = online.state_names
        self._coordinates = None if names is None else StateCoordinates(names, online.task)
        self._states = StateTargets.of(self.datasets)
        num_states = max(self._states.size, 0 if self._coordinates is None else len(self._coordinates.coordinates))
        with isolated(device=device):
            seed_step(settings.seed, 0, 0)
            self._objective = make_objective(self.model, settings, tasks, num_states, device).to(device)
            self.heads = self._take_up(heads)
            accelerator = make_accelerator(replace(settings, device="cuda" if device.type == "cuda" else "cpu"))
            self._optimizer = make_optimizer(self._objective, settings)
            self._optimizer_steps = OptimizerSteps(self._objective, self._optimizer, settings, accelerator, device)
            if self.datasets:
                self._fit(token_cache)

    def _take_up(self, directory: Path | None) -> str:
        if directory is None or self._objective.latent is None:
            return "objective heads: all are learned anew"
        return take_up_heads(self._objective.latent, directory)

    def _fit(self, token_cache: Path) -> None:
        settings = self.settings
        training = [split_episodes(dataset, settings.held_out_fraction)[0] for dataset in self.datasets]
        self._offline = RolloutClips(self.datasets, training, settings.clip_length, self._weights)
        self._cache = TokenCache(token_cache, copy.deepcopy(self.model.tokenizer), self.datasets)
        if settings.reads == "tokens":
            self._cache.fill(self._optimizer_steps.accelerator)
        self._objective.fit(self._offline, self._groups, settings.seed, self._states)

    def learn(self, episodes: Sequence[OnlineEpisode], steps: int) -> dict[str, float]:
        """Takes `steps` gradient steps, and returns the mean of each objective over them.

        The result depends on what was learned before, the episodes and the seed alone; the random numbers of others
        are left as they were.

        Raises:
            ValueError: no episode is long enough for a clip.
            FloatingPointError: a loss is not finite.
        """
        longest = max((len(episode.pixels) for episode in episodes), default=0)
        if longest < self.settings.clip_length:
            raise ValueError(
                f"a clip takes {self.settings.clip_length} frames, the longest online episode has {longest} so far: "
                "adapt less often, or in environments with longer episodes"
            )
        online = RolloutClips([episodes], [range(len(episodes))], self.settings.clip_length)
        states = StateTargets([episodes], [self._coordinates])
        with isolated(device=self.device):
            if self.steps == 0:
                self._begin(online, states, steps)
            return self._train(online, states, steps)

    def _begin(self, online: RolloutClips, states: StateTargets, steps: int) -> None:
        """Fits to the online episodes what the offline rollouts do not hold, and trains heads that are new."""
        latent = self._objective.latent
        if latent is None:
            return
        of_task = [dataset for dataset, group in zip(self.datasets, self._groups) if group == self._online_group]
        if not of_task:
            latent.fit(online, [self._online_group], self.settings.seed, states)
        elif all(dataset.meta["state_names"] is None for dataset in of_task):
            latent.fit(online, [self._online_group], self.settings.seed, states, parts=("states",))
        if latent.learned_anew(self._online_group):
            self._let_contexts_learn(False)
            self._train(online, states, steps)
            self._let_contexts_learn(True)

    def save(self, path: Path, **progress: int) -> None:
        """Writes all that `load` needs to go on, and numbers of the caller's."""
        save_checkpoint(path, self._objective, self._optimizer, self.steps, progress, self._inputs)

    def save_model(self, directory: Path) -> None:
        """Writes the model, the settings of its objective and that one's heads, as `train-predictor` does."""
        self.model.save_pretrained(directory)
        write_atomic(directory / SETTINGS_FILE, json.dumps(settings_to_dict(self.settings), indent=2).encode())
        if self._objective.latent is not None:
            save_heads(directory, self._objective.latent)

    def load(self, path: Path) -> dict[str, int]:
        """Goes on from what `save` wrote, and returns the caller's numbers.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or was written with another model or other data.
        """
        checkpoint = load_checkpoint(path)
        check_same_inputs(checkpoint.inputs, self._inputs, str(path))
        checkpoint.restore(self._objective, self._optimizer)
        self.steps = checkpoint.step
        return checkpoint.settings

    def _let_contexts_learn(self, learn: bool) -> None:
        predictor = self.model.predictor
        reads = (predictor.frame_adapter, predictor.token_adapter, predictor.action_adapter)
        for module in (*reads, predictor.encoder, predictor.to_context):
            if module is not None:
                module.requires_grad_(learn)

    def _train(self, online: RolloutClips, states: StateTargets, steps: int) -> dict[str, float]:
        totals: dict[str, float] = {}
        self._objective.train()
        self.model.tokenizer.eval()
        for _ in range(steps):
            batch = self._batch(online, states)
            try:
                scalars = self._optimizer_steps.take(self.steps, self.settings.learning_rate, batch)
            except FloatingPointError as error:
                raise FloatingPointError(f"{error} of adaptation; a lower learning rate may help") from None
            for name, value in scalars.items():
                totals[name] = totals.get(name, 0.0) + value
            self.steps += 1
        self._objective.eval()
        return {name: total / steps for name, total in totals.items()}

    def _batch(self, online: RolloutClips, states: StateTargets) -> dict[str, Tensor]:
        settings, length = self.settings, self.settings.clip_length
        parts = []
        if count := settings.batch_size - self._online_clips:
            places = self._offline.index.draw(count, settings.seed, self.steps, OFFLINE)
            codes = partial(self._cache.clips, places, length)
            parts.append(clip_batch(self._offline, places, codes, self._groups, self._objective, self._states))
        if count := self._online_clips:
            places = online.index.draw(count, settings.seed, self.steps, ONLINE)
            codes = partial(self._online_codes, online, places)
            parts.append(clip_batch(online, places, codes, [self._online_group], self._objective, states))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _online_codes(self, online: RolloutClips, places: Sequence[ClipPlace]) -> tuple[Tensor, Tensor]:
        codes = [self._codes_of(online.datasets[0][place.episode]) for place in places]
        return clip_codes(codes, places, self.settings.clip_length)

    def _codes_of(self, episode: Recorded) -> Codes:
        """Encoded once, and forgotten with the episode."""
        if episode not in self._codes:
            self._codes[episode] = encode_frames(self.model.tokenizer, np.asarray(episode.pixels))
        return self._codes[episode]


def training_settings(model_directory: Path) -> TrainPredictorSettings | None:
    """The settings that a model was trained with, None where its directory does not hold them.

    Those of earlier versions are read by their names of today; what this version does not know is left aside.

    Raises:
        ValueError: the file is damaged.
    """
    path = model_directory / SETTINGS_FILE
    if not path.is_file():
        return None
    known = {field.name for field in fields(TrainPredictorSettings)}
    values = {name: value for name, value in current_settings(read_json(path)).items() if name in known}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    try:
        return TrainPredictorSettings(**{**values, **lists})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold settings of train-predictor: {error}") from error

"""Adaptation: a trained Perceiver goes on learning, on episodes that a policy meets and on offline rollouts."""

import copy
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.clips import Recorded, RolloutClips
from perceiver_obs.data.splits import open_datasets, split_episodes, task_groups
from perceiver_obs.isolation import isolated
from perceiver_obs.modules.adapters import pad_actions
from perceiver_obs.objectives.states import StateTargets
from perceiver_obs.settings import check_same_inputs, read_json
from perceiver_obs.training.checkpoint import load_checkpoint, save_checkpoint, state_digest
from perceiver_obs.training.loop import make_accelerator, make_optimizer, seed_step
from perceiver_obs.training.settings import TrainPredictorSettings
from perceiver_obs.training.token_cache import Codes, TokenCache, clip_codes, encode_frames
from perceiver_obs.training.train_predictor import make_edge_targets, make_objective

SETTINGS_FILE = "settings.json"
OFFLINE, ONLINE = 0, 1  # streams of random numbers


class Adaptation:
    """Trains a copy of a Perceiver in parts, each on more episodes than the one before.

    The objective is the one that `settings` describe. Tokenizer and statistics (of tokens and of contexts) stay as
    they are, so that contexts shift no more than learning makes them. What predicts from contexts is only partly
    saved with a model; in the first part it therefore learns alone for as many steps, before the Perceiver joins in.

    Args:
        model: the Perceiver; a copy is trained.
        data: directories of offline rollouts; none learns from online episodes alone.
        settings: objective, batch size, seed and learning rate, which stays constant; their `data` are not read.
        task: of the online episodes, as frame contracts name it; None where unknown.
        online_share: of the clips of each batch, 0 to 1; all of them where there are no offline rollouts.
        token_cache: directory for the tokens of the offline rollouts.
        device: where to train.

    Attributes:
        model: the copy.
        steps: gradient steps done.
        datasets: the offline rollouts.

    Raises:
        ValueError: offline rollouts that do not fit the model, or settings that do not.
    """

    def __init__(
        self,
        model: CausalPerceiverIO,
        data: Sequence[str],
        settings: TrainPredictorSettings,
        task: str | None,
        online_share: float,
        token_cache: Path,
        device: torch.device,
    ):
        self.settings, self.device, self.steps = settings, device, 0
        self.model = copy.deepcopy(model).to(device).requires_grad_(True).eval()
        self.model.tokenizer.requires_grad_(False)
        self.datasets = open_datasets(data)
        for dataset in self.datasets:
            if (shape := dataset.frame_contract.frame_shape) != model.video_shape[1:]:
                raise ValueError(
                    f"{dataset.path} has frames {shape} (C, H, W), the model reads {model.video_shape[1:]}"
                )
        self._online_clips = round(online_share * settings.batch_size) if self.datasets else settings.batch_size
        known, self._groups = task_groups(self.datasets)
        # A task of which there are no rollouts has a scene of its own.
        self._online_group = known.index(task) if task in known else len(known)
        self._codes: WeakKeyDictionary[Recorded, Codes] = WeakKeyDictionary()
        self._inputs = {"model": state_digest(model), "data": "+".join(d.fingerprint for d in self.datasets)}
        with isolated(device=device):
            seed_step(settings.seed, 0, 0)
            edge_targets = make_edge_targets(self.model, settings, max([*self._groups, self._online_group]) + 1)
            self._states = StateTargets(self.datasets) if settings.state_weight else None
            num_states = None if self._states is None else self._states.size
            self._objective = make_objective(self.model.predictor, settings, edge_targets, device, num_states).to(
                device
            )
            self._optimizer = make_optimizer(self._objective, settings)
            if self.datasets:
                self._fit(token_cache)

    def _fit(self, token_cache: Path) -> None:
        settings = self.settings
        training = [split_episodes(dataset, settings.held_out_fraction)[0] for dataset in self.datasets]
        self._offline = RolloutClips(self.datasets, training, settings.clip_length)
        self._cache = TokenCache(token_cache, copy.deepcopy(self.model.tokenizer), self.datasets)
        self._cache.fill(make_accelerator(replace(settings, device=self.device.type)))
        self._objective.fit(self._offline, self._groups, settings.seed, self._states)

    def learn(self, episodes: Sequence[Recorded], steps: int) -> dict[str, float]:
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
        with isolated(device=self.device):
            if self.steps == 0:
                if self._online_group not in self._groups:
                    self._objective.fit(online, [self._online_group], self.settings.seed)
                self._let_contexts_learn(False)
                self._train(online, steps)
                self._let_contexts_learn(True)
            return self._train(online, steps)

    def save(self, path: Path, **progress: int) -> None:
        """Writes all that `load` needs to go on, and numbers of the caller's."""
        save_checkpoint(path, self._objective, self._optimizer, self.steps, progress, self._inputs)

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
        for module in (predictor.token_adapter, predictor.action_adapter, predictor.encoder, predictor.to_context):
            if module is not None:
                module.requires_grad_(learn)

    def _train(self, online: RolloutClips, steps: int) -> dict[str, float]:
        totals: dict[str, float] = {}
        self._objective.train()
        self.model.tokenizer.eval()
        for _ in range(steps):
            seed_step(self.settings.seed, self.steps, 0)
            batch = {name: tensor.to(self.device) for name, tensor in self._batch(online).items()}
            losses = self._objective(**batch)
            self._optimizer.zero_grad()
            losses["loss"].backward()
            norm = nn.utils.clip_grad_norm_(self._objective.parameters(), self.settings.max_grad_norm)
            for name, tensor in {**losses, "gradient_norm": norm}.items():
                value = float(tensor.detach())
                if not math.isfinite(value):
                    raise FloatingPointError(f"{name} became {value} in adaptation; a lower learning rate may help")
                totals[name] = totals.get(name, 0.0) + value
            self._optimizer.step()
            self.steps += 1
        self._objective.eval()
        return {name: total / steps for name, total in totals.items()}

    def _batch(self, online: RolloutClips) -> dict[str, Tensor]:
        settings, length = self.settings, self.settings.clip_length
        parts = []
        if count := settings.batch_size - self._online_clips:
            places = self._offline.index.draw(count, settings.seed, self.steps, OFFLINE)
            groups = [self._groups[place.dataset] for place in places]
            parts.append(self._part(self._offline, places, self._cache.clips(places, length), groups))
            if self._states is not None:
                parts[-1]["states"] = self._states.clips(places, length)
        if count := self._online_clips:
            places = online.index.draw(count, settings.seed, self.steps, ONLINE)
            codes = clip_codes([self._codes_of(online.datasets[0][p.episode]) for p in places], places, length)
            parts.append(self._part(online, places, codes, [self._online_group] * count))
            if self._states is not None:
                parts[-1]["states"] = self._states.unknown(count, length)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _part(
        self, clips: RolloutClips, places: Sequence, codes: tuple[Tensor, Tensor], groups: Sequence[int]
    ) -> dict[str, Tensor]:
        part = dict(zip(("vectors", "tokens"), codes))
        if self.model.action_dim is not None:
            actions = torch.from_numpy(clips.actions(places))
            part["actions"] = pad_actions(actions, self.model.action_dim, actions.shape[:2])
        if self.settings.needs_frames:
            part["frames"] = torch.from_numpy(clips.frames(places))
            part["groups"] = torch.tensor(groups)
        if self.settings.reward_weight:
            part["rewards"] = torch.from_numpy(clips.rewards(places))
        return part

    def _codes_of(self, episode: Recorded) -> Codes:
        """Encoded once, and forgotten with the episode."""
        if episode not in self._codes:
            self._codes[episode] = encode_frames(self.model.tokenizer, np.asarray(episode.pixels))
        return self._codes[episode]


def training_settings(model_directory: Path) -> TrainPredictorSettings | None:
    """The settings that a model was trained with, None where its directory does not hold them.

    Settings of another version that this one does not know are left aside.

    Raises:
        ValueError: the file is damaged.
    """
    path = model_directory / SETTINGS_FILE
    if not path.is_file():
        return None
    known = {field.name for field in fields(TrainPredictorSettings)}
    values = {name: value for name, value in read_json(path).items() if name in known}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    try:
        return TrainPredictorSettings(**{**values, **lists})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold settings of train-predictor: {error}") from error

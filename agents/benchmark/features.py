"""What the policies of a benchmark read instead of frames, made once and kept beside the runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from agents.benchmark.suite import Protocol
from envs.collection.collect import collect
from envs.collection.settings import CollectSettings
from envs.dmc.tasks import PLANET_ACTION_REPEAT, split_task
from envs.env_settings import EnvSettings
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.data_record import describe_datasets, read_data_record, write_data_record
from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.devices import choose_device
from perceiver_obs.evaluation.features import random_model, standardised_random_model
from perceiver_obs.evaluation.frame_pca import FramePCA
from perceiver_obs.frame_contract import FrameContract, Variant

COLLECTED_EPISODES, COLLECTED_STEPS = 60, 125


class BenchmarkFeatures:
    """Makes the features of the baselines.

    Args:
        model: the Perceiver that is compared; the baselines take its width.
        data: rollout directories. Each is used for the task it shows, if its frames are those of the protocol.
            Where none are given, some are collected.
        out: directory of the benchmark's runs.
        device: where the Perceiver runs.
        progress: show a progress bar while rollouts are collected.
        protocol: whose environments they are.
        privileged_model: a Perceiver that was trained on states too.

    Raises:
        ValueError: one of `data` holds no dataset.
    """

    def __init__(
        self,
        model: str,
        data: Sequence[str],
        out: Path,
        device: str,
        progress: bool,
        protocol: Protocol = Protocol(),  # noqa: B008 (it is frozen)
        privileged_model: str = "dmc-small-state",
    ) -> None:
        self.model, self.privileged_model = model, privileged_model
        self._given = [RolloutDataset(path) for path in data]
        self._out = out
        self._device = device
        self._progress = progress
        self._protocol = protocol

    @cached_property
    def perceiver(self) -> CausalPerceiverIO:
        """The model; FileNotFoundError or ValueError where there is none, or a broken one."""
        return CausalPerceiverIO.from_pretrained(self.model)

    def context(self, task: str, seed: int) -> str:
        """The model itself, for every task and seed."""
        return self.model

    def privileged(self, task: str, seed: int) -> str:
        """The model that was trained on states too, for every task and seed."""
        return self.privileged_model

    def pca(self, task: str, seed: int) -> str:
        """A directory with the PCA of three stacked frames of the task, as wide as the contexts."""
        directory = self._out / "features" / "pca" / task
        rollouts = self.rollouts(task)
        if not _is_there(directory, rollouts):
            episodes = [episode for dataset in rollouts for episode in dataset]
            FramePCA.fit(episodes, self.perceiver.context_dim, seed=0).save(directory)
            write_data_record(directory, rollouts)
        width = FramePCA.load(directory).num_components
        if width != (wanted := self.perceiver.context_dim):
            raise ValueError(f"{directory} has {width} components, the contexts have {wanted}; {_ADVICE}")
        return str(directory)

    def random(self, task: str, seed: int) -> str:
        """A directory with a network like the Perceiver whose weights are random, another one for each seed."""
        directory = self._out / "features" / "random" / task / f"seed-{seed}"
        rollouts = self.rollouts(task)
        if not _is_there(directory, rollouts):
            episodes = [episode for dataset in rollouts for episode in dataset]
            device = choose_device(self._device)
            standardised_random_model(self.perceiver, seed, episodes, device).save_pretrained(directory)
            write_data_record(directory, rollouts)
        if CausalPerceiverIO.from_pretrained(directory).config() != random_model(self.perceiver, seed).config():
            raise ValueError(f"{directory} holds a network unlike {self.model}; {_ADVICE}")
        return str(directory)

    def rollouts(self, task: str) -> list[RolloutDataset]:
        """The rollouts of a task with frames as in the protocol: those given, or collected here.

        Raises:
            ValueError: some were given, but none for this task.
        """
        if self._given:
            return self.given_rollouts(task)
        settings = CollectSettings(
            **self._protocol.env_settings(task),
            out=str(self._out / "rollouts" / task),
            policy="mixed",
            random_init=self._protocol.env is None,
            episodes=COLLECTED_EPISODES,
            max_steps=COLLECTED_STEPS,
        )
        return [collect(settings, progress=self._progress)]

    def given_rollouts(self, task: str) -> list[RolloutDataset]:
        """Those of the rollouts given that show a task as in the protocol; ValueError if some were, but none such."""
        wanted = self._shown(task)
        fitting = [each for each in self._given if not wanted.differences(each.frame_contract)]
        if self._given and not fitting:
            raise ValueError(
                f"none of the {len(self._given)} datasets holds frames of the protocol ({wanted.to_json()}); "
                "give one, or none at all to have rollouts collected"
            )
        return fitting

    def _shown(self, task: str) -> FrameContract:
        """How frames of a task are made in the protocol."""
        if self._protocol.env is None:  # camera 0 is the customary one of all six tasks
            variant = Variant(task, PLANET_ACTION_REPEAT[split_task(task)[0]], camera=0, render_quality="smooth")
            return FrameContract(self._protocol.size, 3, (variant,))
        env = EnvSettings(**self._protocol.env_settings(task)).make_env(state_in_info=False)
        env.close()
        return FrameContract.of(env.frame_contract)


_ADVICE = "remove it and the runs on it, or choose another out directory"


def _is_there(directory: Path, rollouts: Sequence[RolloutDataset]) -> bool:
    """Whether features were made here before, `data.json` being written last; ValueError if from other rollouts."""
    found = read_data_record(directory)
    if found is not None and found != describe_datasets(rollouts):
        raise ValueError(f"{directory} was made from other rollouts; {_ADVICE}")
    return found is not None

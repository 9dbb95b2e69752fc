"""Policies of `train-policy`, loaded to act: in environments of SB3, or frame by frame as `envs` plays episodes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.policies.frozen_perceiver import check_fingerprint
from agents.training.policy_env import make_policy_env
from agents.training.policy_files import RECORD_FILE, PolicyRecord, find_policy
from agents.training.settings import PolicyEnvSettings
from envs.collection.named_policies import make_policy
from envs.collection.policies import Policy, PolicyContext
from envs.collection.sb3_policy import Sb3Policy, load_sb3
from perceiver_obs.actions import readable_actions
from perceiver_obs.context_encoder import ContextEncoder


def load_policy(
    path: str | Path,
    *,
    num_envs: int = 1,
    model: str | None = None,
    device: str = "auto",
    record: Path | None = None,
) -> tuple[BaseAlgorithm, VecEnv, PolicyRecord]:
    """A trained policy to act with, the environments it acts in, and its record.

    Args:
        path: a directory that `train_policy` wrote, or the `policy.zip` in it.
        num_envs: environments to make.
        model: where the Perceiver's checkpoint lies now, if not where it lay in training.
        device: where the Perceiver and the policy run.
        record: directory that whole episodes are written to as rollouts.

    Raises:
        FileNotFoundError: there is no policy, or its `policy.json` is missing.
        ValueError: a file is damaged.
        WrongPerceiver: the Perceiver is not the one that the policy was trained with.
    """
    path, saved = find_policy(path)
    known = {entry.name for entry in fields(PolicyEnvSettings)}
    settings = {name: value for name, value in saved.settings.items() if name in known} | {"device": device}
    settings["model"] = model if model is not None else saved.perceiver(path.parent)
    venv = make_policy_env(PolicyEnvSettings(**settings), num_envs, record, recorded_as="policy")
    try:
        if saved.fingerprint is not None:
            found = venv.encoder.fingerprint  # type: ignore[attr-defined]  # as it reads features
            check_fingerprint(found, saved.fingerprint, f"the policy in {path.parent}")
        return load_sb3(path, device, venv), venv, saved
    except BaseException:
        venv.close()
        raise


def find_record(policy: str) -> PolicyRecord | None:
    """The record of a policy given as a directory that train-policy wrote, or the zip in it; None of any other.

    Raises:
        FileNotFoundError: a directory without a record, or the training has not finished.
        ValueError: the record is not whole.
    """
    path = Path(policy)
    if path.is_dir() or (path.suffix == ".zip" and (path.parent / RECORD_FILE).is_file()):
        return find_policy(path)[1]
    return None


def make_any_policy(
    policy: str,
    context: PolicyContext,
    *,
    deterministic: bool = True,
    device: str = "auto",
    model: str | None = None,
) -> Policy:
    """What `policy` names: whatever `envs.make_policy` takes, or a directory or zip of train-policy.

    Args:
        policy: as above.
        context: what it will act in.
        deterministic: have SB3 policies take their most likely action instead of a sample.
        device: where a policy on contexts and its Perceiver run.
        model: another place to look for that Perceiver, where it is not where it lay in training.

    Raises:
        ValueError: there is no such policy, or it acts in something else.
        FileNotFoundError: its training has not finished, or its Perceiver is gone.
        WrongPerceiver: the Perceiver is not the one that the policy was trained with.
    """
    if find_record(policy) is None:
        return make_policy(policy, context, deterministic)
    path, record = find_policy(policy)
    if record.settings["observation"] != "context":
        return make_policy(str(path), context, deterministic)
    try:
        encoder = ContextEncoder(record.perceiver(path.parent), device=device)
    except FileNotFoundError:
        if model is None:
            raise
        encoder = ContextEncoder(model, device=device)
    check_fingerprint(encoder.fingerprint, record.fingerprint, f"the policy in {path.parent}")
    return ContextPolicy(path, context, encoder, deterministic, device)


class ContextPolicy(Sb3Policy):
    """Acts by a policy that was trained on contexts, which `encoder` makes of the frames; all else as `Sb3Policy`."""

    def __init__(
        self, path: Path, context: PolicyContext, encoder: ContextEncoder, deterministic: bool, device: str = "auto"
    ) -> None:
        self._encoder = encoder
        super().__init__(path, context, deterministic, device)
        self._tag = f"sb3:{path.parent.name}"

    def _look(self, path: str | Path) -> None:
        self._encoding = readable_actions(self._policy, self._encoder.action_dim, type(self).__name__)

    def begin(self, rng: np.random.Generator) -> str:
        """Starts an episode, whose samples `rng` decides."""
        self._rng = rng
        self._encoder.reset()
        self._led_here: np.ndarray | None = None
        return self._tag

    def _observe(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        return self._encoder.push(frame[None], self._led_here)[0]

    def _choose(self, observation: np.ndarray) -> np.ndarray:
        action = super()._choose(observation)
        if self._encoding is not None:
            self._led_here = self._encoding.encode(action)
        return action

"""Policies of `train-policy`, on contexts too, in the form in which `envs` plays episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agents.policies.algorithms import load_to_act
from agents.policies.frozen_perceiver import check_fingerprint
from agents.training.policy_files import POLICY_FILE, RECORD_FILE, PolicyRecord
from envs.collection.policies import Policy, PolicyContext, make_policy
from perceiver_obs.actions import readable_actions
from perceiver_obs.context_encoder import ContextEncoder


def find_record(policy: str) -> PolicyRecord | None:
    """The record of a policy given as a directory that train-policy wrote, or the zip in it; None of any other.

    Raises:
        FileNotFoundError: a directory without a record.
        ValueError: the record is not whole.
    """
    path = Path(policy)
    if path.is_dir():
        return PolicyRecord.load(path)
    if path.suffix == ".zip" and (path.parent / RECORD_FILE).is_file():
        return PolicyRecord.load(path.parent)
    return None


def make_any_policy(policy: str, context: PolicyContext, device: str = "auto", model: str | None = None) -> Policy:
    """What `policy` names: whatever `envs.make_policy` takes, or a directory or zip of train-policy.

    Args:
        policy: as above.
        context: what it will act in.
        device: where the Perceiver of a policy on contexts runs.
        model: another place to look for that Perceiver, where it is not where it lay in training.

    Raises:
        ValueError: there is no such policy, or it acts in something else.
        FileNotFoundError: its training has not finished, or its Perceiver is gone.
        WrongPerceiver: the Perceiver is not the one that the policy was trained with.
    """
    record = find_record(policy)
    if record is None:
        return make_policy(policy, context)
    path = Path(policy) / POLICY_FILE if Path(policy).is_dir() else Path(policy)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the training has not finished")
    if record.settings["observation"] == "context":
        return ContextPolicy(path, record, context, device, model)
    return make_policy(str(path), context)


class ContextPolicy:
    """Acts by a policy that was trained on contexts, by its most likely action.

    Args:
        path: its `policy.zip`.
        record: what is known of it.
        context, device, model: as for `make_any_policy`.
    """

    def __init__(
        self, path: Path, record: PolicyRecord, context: PolicyContext, device: str = "auto", model: str | None = None
    ) -> None:
        try:
            self._encoder = ContextEncoder(record.perceiver(path.parent), device=device)
        except FileNotFoundError:
            if model is None:
                raise
            self._encoder = ContextEncoder(model, device=device)
        check_fingerprint(self._encoder.fingerprint, record.fingerprint, f"the policy in {path.parent}")
        self._policy = load_to_act(record.algorithm, path, device)
        self._context, self._actions = context, context.check_actions(self._policy.action_space, path)
        self._tag = f"sb3:{path.parent.name}"
        self._encoding = readable_actions(self._policy, self._encoder.action_dim, type(self).__name__)
        self._led_here: np.ndarray | None = None

    def begin(self, rng: np.random.Generator) -> str:
        """Starts an episode; nothing in it is random."""
        self._encoder.reset()
        self._led_here = None
        return self._tag

    def act(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The most likely action `[A]` after the frames so far, of which `frame`, uint8 `[H, W, 3]`, is the last."""
        context = self._encoder.push(frame[None], self._led_here)
        action = self._policy.predict(context[0], deterministic=True)[0]
        if self._encoding is not None:
            self._led_here = self._encoding.encode(action)
        return self._context.as_taken(action, self._actions)

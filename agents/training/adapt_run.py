"""Adaptation as a part of `train_policy`: from its settings, to its record."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from stable_baselines3.common.vec_env import VecEnv

from agents.adaptation.adapt_context import AdaptContext, FrameBudget
from agents.training.policy_files import PolicyRecord
from perceiver_obs.data.data_record import offline_frames
from perceiver_obs.hub import find_pretrained
from perceiver_obs.training.adaptation import training_settings
from perceiver_obs.training.objective import PRIVILEGED

if TYPE_CHECKING:
    from agents.training.settings import TrainPolicySettings


def make_adapt(settings: TrainPolicySettings, evaluation_venv: VecEnv, action_repeat: int) -> AdaptContext:
    """The callback that settings with `adapt_every` ask for; evaluations follow the Perceiver."""
    assert settings.adapt_every is not None
    model = find_pretrained(settings.model)
    return AdaptContext(
        settings.adapt_data,
        every=max(1, settings.adapt_every // action_repeat),
        steps=settings.adapt_steps,
        learning_rate=settings.adapt_learning_rate,
        prior_data=settings.prior_data,
        training=training_settings(model),
        heads=model,
        token_cache=settings.out / "token_cache",
        evaluation_envs=[evaluation_venv],
        seed=settings.seed,
    )


def adapts_to_states(settings: TrainPolicySettings) -> bool:
    """Whether adaptations regress the true state, as the training of the model did."""
    training = None if settings.adapt_every is None else training_settings(find_pretrained(settings.model))
    return training is not None and training.state_weight > 0


def adapted_record(record: PolicyRecord, adapt: AdaptContext) -> PolicyRecord:
    """The record with the Perceiver as it is now, and the frames that it and the policy have cost."""
    online, offline = adapt.frames.online, record.offline_data
    if offline is None:
        frames = f"unknown offline + {online:,} online"
    else:
        frames = str(FrameBudget(offline_frames(offline).control_steps, online))
    adaptation = {
        "began_with": record.began_with,
        "adaptations": adapt.adaptations,
        "gradient_steps": adapt.gradient_steps,
        "online_frames": online,
        "frames": f"{frames}; all frames that the policy met are also trained on",
    }
    privileged = adapt.perceiver.frame_contract.get(PRIVILEGED)
    return replace(record, fingerprint=adapt.perceiver.fingerprint, adaptation=adaptation, privileged=privileged)

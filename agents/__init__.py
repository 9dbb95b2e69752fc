"""Stable-Baselines3 policies on contexts: environments, features extractor, training and evaluation.

Names are imported when first used, so that `perceiver-obs --help` need not wait for Stable-Baselines3.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.adaptation.adapt_context import AdaptContext
    from agents.adaptation.prior_rollouts import add_rollouts
    from agents.policies.features_extractor import PerceiverFeaturesExtractor
    from agents.policies.frozen_perceiver import WrongPerceiver
    from agents.training.evaluate import Evaluation, evaluate
    from agents.training.policy_env import make_policy_env
    from agents.training.settings import EvaluateSettings, PolicyEnvSettings, TrainPolicySettings
    from agents.training.train_policy import train_policy
    from agents.training.trained_policy import load_policy
    from agents.wrappers.vec_context import VecPerceiverContext

_MODULES = {
    "AdaptContext": "adaptation.adapt_context",
    "EvaluateSettings": "training.settings",
    "Evaluation": "training.evaluate",
    "PerceiverFeaturesExtractor": "policies.features_extractor",
    "PolicyEnvSettings": "training.settings",
    "TrainPolicySettings": "training.settings",
    "VecPerceiverContext": "wrappers.vec_context",
    "WrongPerceiver": "policies.frozen_perceiver",
    "add_rollouts": "adaptation.prior_rollouts",
    "evaluate": "training.evaluate",
    "load_policy": "training.trained_policy",
    "make_policy_env": "training.policy_env",
    "train_policy": "training.train_policy",
}

__all__ = [
    "AdaptContext",
    "EvaluateSettings",
    "Evaluation",
    "PerceiverFeaturesExtractor",
    "PolicyEnvSettings",
    "TrainPolicySettings",
    "VecPerceiverContext",
    "WrongPerceiver",
    "add_rollouts",
    "evaluate",
    "load_policy",
    "make_policy_env",
    "train_policy",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

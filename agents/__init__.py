"""Stable-Baselines3 policies on contexts: environments, features extractor, training and evaluation."""

from agents.adapt_context import AdaptContext
from agents.evaluate import EvaluateSettings, Evaluation, evaluate, load_policy
from agents.features_extractor import PerceiverFeaturesExtractor
from agents.fingerprint import WrongPerceiver
from agents.policy_env import PolicyEnvSettings, make_policy_env
from agents.prior_rollouts import add_rollouts
from agents.train_policy import TrainPolicySettings, train_policy
from agents.vec_context import VecPerceiverContext

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

"""A memory of what a policy sees: pixels in, one context vector per step out, by a causal Perceiver.

Names are imported when first used, so that `perceiver-obs --help` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perceiver_obs.actions import ActionEncoding
    from perceiver_obs.causal_perceiver import CausalPerceiverIO
    from perceiver_obs.context_encoder import ContextEncoder
    from perceiver_obs.frame_reader import ContextState
    from perceiver_obs.hub import bundled_models
    from perceiver_obs.predictor import PerceiverTokenPredictor
    from perceiver_obs.tokenizer import TokenizerOutput, VQPTTokenizer
    from perceiver_obs.wrappers import PerceiverContextVectorWrapper, PerceiverContextWrapper

_MODULES = {
    "ActionEncoding": "actions",
    "CausalPerceiverIO": "causal_perceiver",
    "ContextEncoder": "context_encoder",
    "ContextState": "frame_reader",
    "PerceiverContextVectorWrapper": "wrappers",
    "PerceiverContextWrapper": "wrappers",
    "PerceiverTokenPredictor": "predictor",
    "TokenizerOutput": "tokenizer",
    "VQPTTokenizer": "tokenizer",
    "bundled_models": "hub",
}

__all__ = [
    "ActionEncoding",
    "CausalPerceiverIO",
    "ContextEncoder",
    "ContextState",
    "PerceiverContextVectorWrapper",
    "PerceiverContextWrapper",
    "PerceiverTokenPredictor",
    "TokenizerOutput",
    "VQPTTokenizer",
    "bundled_models",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

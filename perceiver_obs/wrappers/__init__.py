"""Gymnasium shells over `ContextEncoder`: frames in, contexts out."""

from perceiver_obs.wrappers.context_wrapper import PerceiverContextWrapper
from perceiver_obs.wrappers.vector_context_wrapper import PerceiverContextVectorWrapper

__all__ = ["PerceiverContextVectorWrapper", "PerceiverContextWrapper"]

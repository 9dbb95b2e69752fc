"""Drawing tokens from logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to draw from a distribution; ValueError for settings that name none.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep only the k most likely tokens.
        top_p: keep the smallest set of most likely tokens whose probability reaches p (nucleus sampling,
            Holtzman et al. 2019, arXiv:1904.09751).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be finite and at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[...]` int64 from logits `[..., K]`, and their log-probabilities before filtering `[...]`."""
        log_probs = logits.log_softmax(-1)
        if self.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            probabilities = self._filtered(log_probs / self.temperature).softmax(-1)
            tokens = torch.multinomial(probabilities.flatten(0, -2), 1).view(logits.shape[:-1])
        return tokens, log_probs.gather(-1, tokens[..., None])[..., 0]

    def _filtered(self, scaled: Tensor) -> Tensor:
        if self.top_k is not None:
            threshold = scaled.topk(min(self.top_k, scaled.shape[-1]), dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < threshold, float("-inf"))
        if self.top_p is not None:
            ordered, order = scaled.softmax(-1).sort(-1, descending=True)
            beyond = ordered.cumsum(-1) - ordered >= self.top_p
            scaled = scaled.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), float("-inf"))
        return scaled


GREEDY = Sampling(temperature=0.0)

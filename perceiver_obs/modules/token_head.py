"""Logits of the Q tokens of a position, each codebook given the ones before it."""

import torch
from torch import Tensor, nn

from perceiver_obs.modules.quantizer import Quantizer
from perceiver_obs.modules.sampling import Sampling


class ResidualTokenHead(nn.Module):
    """Codebook q codes what codebooks 0 … q-1 left over, so its logits also read what those add up to."""

    def __init__(self, channels: int, num_quantizers: int, num_codes: int, inner_dim: int):
        super().__init__()
        self.partial = nn.ModuleList(nn.Linear(inner_dim, channels, bias=False) for _ in range(num_quantizers))
        self.heads = nn.ModuleList(nn.Linear(channels, num_codes) for _ in range(num_quantizers))

    def forward(self, hidden: Tensor, partial_sums: Tensor) -> Tensor:
        """Logits `[..., Q, K]` of hidden `[..., C]` and the true partial sums `[..., Q, inner_dim]`."""
        return torch.stack([self._logits(q, hidden, partial_sums[..., q, :]) for q in range(len(self.heads))], dim=-2)

    def sample(self, hidden: Tensor, quantizer: Quantizer, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Draw tokens `[..., Q]`, codebook by codebook, with the sum of their log-probabilities `[...]`."""
        table = quantizer.code_table()
        partial = hidden.new_zeros(*hidden.shape[:-1], table.shape[-1])
        tokens, confidence = [], hidden.new_zeros(hidden.shape[:-1])
        for q in range(len(self.heads)):
            drawn, log_prob = sampling.draw(self._logits(q, hidden, partial))
            partial = partial + table[q][drawn]
            confidence = confidence + log_prob
            tokens.append(drawn)
        return torch.stack(tokens, dim=-1), confidence

    def _logits(self, q: int, hidden: Tensor, partial: Tensor) -> Tensor:
        return self.heads[q](hidden + self.partial[q](partial))

"""From one context and its frame to a later frame: queries that see nothing else of the past."""

import torch
from einops import rearrange
from torch import Tensor, nn

from perceiver_obs.modules.attention import BlockSizes
from perceiver_obs.modules.perceiver import PerceiverDecoder
from perceiver_obs.modules.quantizer import Quantizer
from perceiver_obs.modules.sampling import Sampling


class FutureDecoder(nn.Module):
    """One query for each position of a frame reads the context, the actions in between and a condition.

    A query starts from the context's own frame at its position, so that appearance need not be predicted and the
    context is asked for what moves. It is expanded to `num_memory_vectors` vectors for the queries to attend to.
    """

    def __init__(
        self,
        context_dim: int,
        code_dim: int,
        max_horizon: int,
        condition_dim: int | None,
        num_memory_vectors: int,
        num_layers: int,
        sizes: BlockSizes,
    ):
        super().__init__()
        channels = sizes.channels
        self.num_memory_vectors = num_memory_vectors
        self.expand = nn.Linear(context_dim, num_memory_vectors * channels)
        self.condition = nn.Linear(condition_dim, channels) if condition_dim else None
        self.horizon = nn.Embedding(max_horizon + 1, channels)
        self.mask_token = nn.Parameter(torch.randn(channels) * 0.02)
        self.visible_token = nn.Linear(code_dim, channels)
        self.last_token = nn.Linear(code_dim, channels)
        self.decoder = PerceiverDecoder(num_layers, sizes)

    def forward(
        self,
        contexts: Tensor,
        last: Tensor,
        horizons: Tensor,
        positions: Tensor,
        actions: Tensor | None = None,
        condition: Tensor | None = None,
        visible: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Hidden vectors `[X, P, C]` of the frames `horizons` steps after the contexts.

        Args:
            contexts: `[X, context_dim]`.
            last: standardised code vectors `[X, P, code_dim]` of the contexts' own frames.
            horizons: int64 `[X]`, 0 (the context's own frame) to `max_horizon`.
            positions: `[P, C]`, one for each query.
            actions: adapted actions `[X, K, C]` after the context, in order; those past the horizon are masked.
            condition: `[X, condition_dim]`; rows of NaN have none.
            visible: standardised code vectors `[X, P, code_dim]`, and bool `[X, P]` that is True where they are
                given; the other positions get the mask token.
        """
        memory = [rearrange(self.expand(contexts), "x (m c) -> x m c", m=self.num_memory_vectors)]
        known = [torch.ones(memory[0].shape[:2], dtype=torch.bool, device=contexts.device)]
        if actions is not None and actions.shape[1]:
            steps = torch.arange(1, actions.shape[1] + 1, device=contexts.device)
            memory.append(actions + self.horizon(steps))
            known.append(steps <= horizons[:, None])
        if self.condition is not None and condition is not None:
            memory.append(self.condition(condition.nan_to_num())[:, None])
            known.append(~condition.isnan().any(-1, keepdim=True))
        queries = self.mask_token.expand(len(contexts), len(positions), -1)
        if visible is not None:
            queries = torch.where(visible[1][..., None], self.visible_token(visible[0]), queries)
        queries = queries + self.last_token(last) + positions + self.horizon(horizons)[:, None]
        return self.decoder(queries, torch.cat(memory, dim=1), torch.cat(known, dim=1))

    @torch.no_grad()
    def standardize_condition(self, mean: Tensor, scale: Tensor) -> None:
        """Predict as before for conditions that come as `(condition - mean) / scale` from now on, both `[D]`."""
        assert self.condition is not None
        self.condition.bias.add_(self.condition.weight @ mean)
        self.condition.weight.mul_(scale)


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

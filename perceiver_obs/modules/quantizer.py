"""Vector quantisation with several codebooks, around vector-quantize-pytorch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualFSQ, ResidualVQ

QuantizerKind = Literal["vq", "fsq"]

# Levels whose product comes close to a codebook size (Mentzer et al. 2023, arXiv:2309.15505, table 1).
FSQ_LEVELS = {16: [5, 3], 64: [8, 8], 256: [8, 6, 5], 512: [8, 8, 8], 1024: [8, 5, 5, 5], 4096: [7, 5, 5, 5, 5]}


class Quantizer(nn.Module):
    """Residual quantisation: each codebook codes what the ones before it left over.

    `kind="vq"` learns codebooks by exponential moving averages with revival of dead codes, gradients passing
    by the rotation trick (arXiv:2410.06424); `kind="fsq"` rounds to a fixed grid (arXiv:2309.15505), whose
    size is the largest in `FSQ_LEVELS` that does not exceed `num_codes`.

    Attributes:
        num_codes: codes in each codebook.
        inner_dim: width of the codes themselves.
    """

    def __init__(
        self, kind: QuantizerKind, dim: int, num_codes: int, num_quantizers: int, decay: float, diversity_weight: float
    ):
        super().__init__()
        self.num_quantizers = num_quantizers
        self.diversity_weight = diversity_weight
        if kind == "vq":
            self.layers = ResidualVQ(
                dim=dim,
                num_quantizers=num_quantizers,
                codebook_size=num_codes,
                decay=decay,
                commitment_weight=1.0,
                threshold_ema_dead_code=1,
            )
            self.inner_dim = dim
        elif kind == "fsq":
            sizes = [size for size in FSQ_LEVELS if size <= num_codes]
            if not sizes:
                raise ValueError(f"num_codes must be at least {min(FSQ_LEVELS)} for quantizer 'fsq', got {num_codes}")
            levels = FSQ_LEVELS[max(sizes)]
            with torch.device("cpu"):  # its constructor reads tensors, so it cannot be sketched on the meta device
                self.layers = ResidualFSQ(dim=dim, levels=levels, num_quantizers=num_quantizers)
            num_codes = math.prod(levels)
            self.inner_dim = len(levels)
        else:
            raise ValueError(f"quantizer must be 'vq' or 'fsq', got {kind!r}")
        self.kind = kind
        self.num_codes = num_codes

    def forward(self, vectors: Tensor, learn: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantise with losses.

        Args:
            vectors: `[..., dim]`.
            learn: let the codebooks follow the vectors (in training mode).

        Returns:
            quantised vectors `[..., dim]` that carry gradients to `vectors`, tokens int64 `[..., Q]`, the
            commitment loss (mean squared distance, summed over codebooks) and the diversity loss.
        """
        quantized, tokens, losses = self._run(vectors, learn)
        commitment = losses.sum() if self.kind == "vq" else vectors.new_zeros(())
        return quantized, tokens, commitment, self._diversity_loss(vectors, tokens)

    @torch.no_grad()
    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised vectors and tokens of `vectors`; the codebooks stay as they are, in any mode."""
        with _evaluating(self.layers):
            quantized, tokens, _ = self._run(vectors, learn=False)
        return quantized, tokens

    def lookup(self, tokens: Tensor) -> Tensor:
        """Vectors `[..., dim]` of tokens `[..., Q]`."""
        codes = F.embedding_bag(self._rows(tokens).flatten(0, -2), self.code_table().flatten(0, 1), mode="sum")
        return self.layers.project_out(codes).unflatten(0, tokens.shape[:-1])

    def expected_vectors(self, probabilities: Tensor) -> Tensor:
        """Mean vectors `[..., dim]` under code probabilities `[..., Q, num_codes]`; differentiable."""
        codes = torch.einsum("...qk,qkd->...d", probabilities, self.code_table())
        return self.layers.project_out(codes)

    def code_table(self) -> Tensor:
        """All codes `[Q, num_codes, inner_dim]`, as they add up."""
        every = torch.arange(self.num_codes, device=next(self.buffers()).device)
        return self.layers.get_codes_from_indices(every[None, :, None].expand(1, -1, self.num_quantizers))[:, 0]

    def partial_sums(self, tokens: Tensor) -> Tensor:
        """What the codebooks before each one add up to: `[..., Q, inner_dim]` for tokens `[..., Q]`."""
        codes = F.embedding(self._rows(tokens), self.code_table().flatten(0, 1))
        return codes.cumsum(-2) - codes

    def _rows(self, tokens: Tensor) -> Tensor:
        """Where tokens `[..., Q]` lie in the flattened code table, several times faster than one book at a time."""
        return tokens + self.num_codes * torch.arange(self.num_quantizers, device=tokens.device)

    def _run(self, vectors: Tensor, learn: bool) -> tuple[Tensor, Tensor, Tensor]:
        options = {"freeze_codebook": not learn} if self.kind == "vq" else {}
        quantized, tokens, *losses = self.layers(vectors.flatten(0, -2)[None], **options)
        return (
            quantized[0].unflatten(0, vectors.shape[:-1]),
            tokens[0].long().unflatten(0, vectors.shape[:-1]),
            losses[0] if losses else vectors.new_zeros(()),
        )

    def _diversity_loss(self, vectors: Tensor, tokens: Tensor, sample: int = 1024) -> Tensor:
        """1 - normalised entropy of the mean soft code usage (as in MaskGIT's VQGAN and LFQ), in [0, 1]."""
        if self.kind != "vq" or self.diversity_weight == 0:
            return vectors.new_zeros(())
        stride = max(1, tokens[..., 0].numel() // sample)
        flat, sums = vectors.flatten(0, -2)[::stride], self.partial_sums(tokens).flatten(0, -3)[::stride]
        residuals = (flat[:, None] - sums).transpose(0, 1)
        distances = torch.cdist(residuals, self.layers.codebooks).square()
        temperature = distances.detach().amin(-1).mean().clamp_min(1e-6)
        usage = (-distances / temperature).softmax(-1).mean(1)
        entropy = -(usage * usage.clamp_min(1e-9).log()).sum(-1)
        return 1 - (entropy / math.log(self.num_codes)).mean()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def perplexity(tokens: Tensor, num_codes: int) -> Tensor:
    """Perplexity of the code usage of tokens `[..., Q]`, averaged over codebooks: 1 (one code) to `num_codes`."""
    usage = code_usage(tokens, num_codes)
    return (-(usage * usage.clamp_min(1e-9).log()).sum(-1)).exp().mean()


def code_usage(tokens: Tensor, num_codes: int) -> Tensor:
    """How often each code occurs in tokens `[..., Q]`, as fractions `[Q, num_codes]`."""
    per_codebook = tokens.flatten(0, -2).T
    counts = torch.stack([torch.bincount(t, minlength=num_codes) for t in per_codebook])
    return counts / counts.sum(-1, keepdim=True)

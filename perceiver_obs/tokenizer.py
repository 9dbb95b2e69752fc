"""Video to discrete tokens and back."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from perceiver_obs.hub import Pretrained
from perceiver_obs.modules.causal_conv import CausalDecoder, CausalEncoder, Past, TemporalDownsample, TemporalUpsample
from perceiver_obs.modules.quantizer import Quantizer, QuantizerKind, perplexity
from perceiver_obs.modules.video import as_float_video, check_tensor

TIME_KERNEL = 3  # frames that a spatio-temporal convolution reads: this one and two before


@dataclass(frozen=True)
class TokenizerOutput:
    """A training pass: `loss` = reconstruction + commitment_weight · commitment + diversity_weight · diversity."""

    reconstruction: Tensor
    tokens: Tensor
    loss: Tensor
    reconstruction_loss: Tensor
    commitment_loss: Tensor
    diversity_loss: Tensor
    perplexity: Tensor


class VQPTTokenizer(nn.Module, Pretrained):
    """Residual convolutions around a residual vector quantiser.

    Nothing passes from encoder to decoder but the tokens' code vectors. The convolutions are causal in time,
    and no layer mixes statistics over frames, so tokens of frame t depend on frames up to t only.

    Args:
        in_channels: channels C of the frames.
        code_dim: width of the code vectors.
        num_codes: codes in each codebook (for `fsq` the nearest grid below).
        downsample: pixels of a token's side; a power of two.
        base_channels: channels after the first convolution; doubled at each further halving.
        use_3d_conv: spatio-temporal convolutions (the current frame and two before in each block) instead of
            frame by frame.
        temporal_downsample: halve the time axis of the tokens; the last of an odd number of frames counts twice.
        num_quantizers: codebooks Q.
        commitment_weight: weight β of the commitment loss (van den Oord et al. 2017, arXiv:1711.00937).
        diversity_weight: weight of the loss that asks for even code usage.
        quantizer: "vq" (learned codebooks) or "fsq" (a fixed grid).
        codebook_decay: decay of the codebooks' moving averages, for "vq".
        stem_stride: pixels that the first convolution steps over, a power of two up to `downsample`; the further
            ones halve. 4 makes an encoder several times cheaper than 2.
    """

    def __init__(
        self,
        in_channels: int = 3,
        code_dim: int = 256,
        num_codes: int = 1024,
        downsample: int = 4,
        base_channels: int = 64,
        use_3d_conv: bool = True,
        temporal_downsample: bool = False,
        num_quantizers: int = 4,
        commitment_weight: float = 0.05,
        diversity_weight: float = 0.01,
        quantizer: QuantizerKind = "vq",
        codebook_decay: float = 0.95,
        stem_stride: int = 2,
    ):
        super().__init__()
        if downsample < 2 or downsample & (downsample - 1):
            raise ValueError(f"downsample must be a power of two and at least 2, got {downsample}")
        if not 2 <= stem_stride <= downsample or stem_stride & (stem_stride - 1):
            raise ValueError(f"stem_stride must be a power of two, 2 to downsample={downsample}, got {stem_stride}")
        for name, value in {
            "in_channels": in_channels,
            "code_dim": code_dim,
            "base_channels": base_channels,
            "num_quantizers": num_quantizers,
        }.items():
            if not 1 <= value <= 8192:
                raise ValueError(f"{name} must lie in 1 to 8192, got {value}")
        if num_codes < 2:
            raise ValueError(f"num_codes must be at least 2, got {num_codes}")
        self.in_channels = in_channels
        self.code_dim = code_dim
        self.downsample = downsample
        self.temporal_downsample = temporal_downsample
        self.num_quantizers = num_quantizers
        self.commitment_weight = commitment_weight
        self.diversity_weight = diversity_weight
        time_kernel = TIME_KERNEL if use_3d_conv else 1
        strides = [stem_stride, *[2] * ((downsample // stem_stride).bit_length() - 1)]
        self.encoder = CausalEncoder(in_channels, code_dim, strides, base_channels, time_kernel)
        self.decoder = CausalDecoder(code_dim, in_channels, strides, base_channels, time_kernel)
        self.halve_time = TemporalDownsample(code_dim) if temporal_downsample else nn.Identity()
        self.double_time = TemporalUpsample(code_dim) if temporal_downsample else nn.Identity()
        self.quantizer = Quantizer(quantizer, code_dim, num_codes, num_quantizers, codebook_decay, diversity_weight)
        self.num_codes = self.quantizer.num_codes
        self.float()  # whatever torch's default dtype is: frames are read as float32

    @property
    def lookback(self) -> int:
        """How many frames before the current one a token depends on: 0 for 2D convolutions."""
        return self.encoder.lookback

    def forward(self, video: Tensor, pixel_weights: Tensor | None = None) -> TokenizerOutput:
        """Reconstruct a video `[B, T, C, H, W]` through its tokens, with losses.

        The codebooks learn in training mode with gradients on, and only then.

        Args:
            video: uint8, or float in [0, 1].
            pixel_weights: `[B, T, 1, H, W]` weights of the squared error; none counts every pixel alike.
        """
        video = self.check(video)
        vectors = self._encode(video)[0]
        quantized, tokens, commitment, diversity = self.quantizer(
            vectors, learn=self.training and torch.is_grad_enabled()
        )
        reconstruction = self.decode_vectors(quantized)[:, : video.shape[1]]
        error = (reconstruction - video).square()
        if pixel_weights is not None:
            error = error * pixel_weights
        reconstruction_loss = error.mean()
        return TokenizerOutput(
            reconstruction=reconstruction,
            tokens=self._pack(tokens),
            loss=reconstruction_loss + self.commitment_weight * commitment + self.diversity_weight * diversity,
            reconstruction_loss=reconstruction_loss,
            commitment_loss=commitment,
            diversity_loss=diversity,
            perplexity=perplexity(tokens, self.num_codes),
        )

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of a video `[B, T, C, H, W]`; leaves the codebooks as they are, in any mode.

        Returns:
            tokens: int64 `[B, T, h, w]`, or `[B, T, h, w, Q]` for several codebooks.
            vq_loss: mean squared distance between code vectors before and after quantisation.
            perplexity: of the code usage in this video, 1 to `num_codes`.
        """
        vectors = self.encode_vectors(video)
        quantized, tokens = self.quantizer.quantize(vectors)
        vq_loss = (vectors - quantized).square().mean()
        return self._pack(tokens), vq_loss, perplexity(tokens, self.num_codes)

    def decode(self, tokens: Tensor, num_frames: int | None = None) -> Tensor:
        """Video `[B, T, C, H, W]` from tokens alone, nominally in [0, 1].

        Args:
            tokens: integers, shaped as `encode` gives them.
            num_frames: cut the video to this length: with `temporal_downsample`, tokens of an odd number of
                frames decode to one frame more.

        Raises:
            ValueError: wrong rank, dtype or codebook count, or ids outside [0, num_codes).
        """
        return self.decode_vectors(self.lookup(tokens))[:, :num_frames]

    def lookup(self, tokens: Tensor) -> Tensor:
        """Code vectors `[B, T, h, w, code_dim]` of tokens, after checking them."""
        return self.quantizer.lookup(self.unpack(tokens))

    def encode_vectors(self, video: Tensor) -> Tensor:
        """Code vectors `[B, T, h, w, code_dim]` before quantisation; differentiable."""
        return self._encode(self.check(video))[0]

    def stream_vectors(self, video: Tensor, past: Past | None, valid: Tensor | None = None) -> tuple[Tensor, Past]:
        """`encode_vectors` for the next frames of running episodes, given and returning the convolutions' past."""
        if self.temporal_downsample:
            raise ValueError("temporal_downsample halves the frame rate of the tokens and cannot be streamed")
        return self._encode(self.check(video), past, valid)

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised code vectors and tokens of code vectors; the codebooks stay as they are."""
        quantized, tokens = self.quantizer.quantize(vectors)
        return quantized, self._pack(tokens)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Video of code vectors `[B, T, h, w, code_dim]`; differentiable."""
        features = self.double_time(rearrange(vectors, "b t h w c -> b t c h w"))
        return self.decoder(features)[0]

    def check(self, video: Tensor) -> Tensor:
        """The video as float, or a ValueError that says what is wrong with it."""
        return as_float_video(video, self.in_channels, self.downsample)

    @torch.no_grad()
    def adapt_codebook(self, videos: Tensor | Iterable[Tensor], passes: int = 10) -> float:
        """Update the codebooks on videos of a new domain; the convolutions stay as they are.

        Args:
            videos: one video `[B, T, C, H, W]` or several.
            passes: how often to go through them.

        Returns:
            the mean squared distance between code vectors and their codes in the last pass.
        """
        if self.quantizer.kind != "vq":
            raise ValueError("only learned codebooks adapt: this tokenizer has quantizer='fsq'")
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}")
        batches = [videos] if isinstance(videos, Tensor) else list(videos)
        if not batches:
            raise ValueError("adapt_codebook needs at least one video")
        vectors = [self.encode_vectors(batch) for batch in batches]
        was_training = self.quantizer.training
        self.quantizer.train()
        try:
            for _ in range(passes):
                distances = [(self.quantizer(v, learn=True)[0] - v).square().mean() for v in vectors]
        finally:
            self.quantizer.train(was_training)
        return float(torch.stack(distances).mean())

    def _encode(self, video: Tensor, past: Past | None = None, valid: Tensor | None = None) -> tuple[Tensor, Past]:
        features, new_past = self.encoder(video, past, valid)
        return rearrange(self.halve_time(features), "b t c h w -> b t h w c"), new_past

    def _pack(self, tokens: Tensor) -> Tensor:
        return tokens[..., 0] if self.num_quantizers == 1 else tokens

    def unpack(self, tokens: Tensor) -> Tensor:
        """Tokens with their codebook axis `[B, T, h, w, Q]`, checked."""
        rank = 4 if self.num_quantizers == 1 else 5
        shape = "[B, T, h, w]" if rank == 4 else f"[B, T, h, w, {self.num_quantizers}]"
        check_tensor(tokens, "tokens")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise ValueError(f"tokens must be integers, got {tokens.dtype}")
        if tokens.ndim != rank or 0 in tokens.shape[1:4] or (rank == 5 and tokens.shape[-1] != self.num_quantizers):
            raise ValueError(f"tokens must have shape {shape}, got {tuple(tokens.shape)}")
        tokens = tokens.long()
        if tokens.numel() and (tokens.min() < 0 or tokens.max() >= self.num_codes):
            raise ValueError(
                f"token ids must lie in [0, {self.num_codes}), got {int(tokens.min())} to {int(tokens.max())}"
            )
        return tokens[..., None] if self.num_quantizers == 1 else tokens

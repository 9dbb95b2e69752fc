"""Tokens to future tokens, through one context vector per frame."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from perceiver_obs.frame_reader import FrameInputs, FrameReader
from perceiver_obs.generation import GenerationMode, Visible, generate
from perceiver_obs.modules.adapters import pad_actions
from perceiver_obs.modules.attention import BlockSizes
from perceiver_obs.modules.future_decoder import FutureDecoder, ResidualTokenHead
from perceiver_obs.modules.sampling import GREEDY, Sampling
from perceiver_obs.tokenizer import VQPTTokenizer

PerceptualDistance = Callable[[Tensor, Tensor], Tensor]


class PerceiverTokenPredictor(FrameReader):
    """A causal Perceiver reads frames; queries that see its context and the last frame predict the tokens to come.

    Predicting k frames ahead: the context, expanded to a few memory vectors, the k actions in between and an optional
    condition are read by one query for each position, which starts from the tokens of frame t. As no earlier frame
    reaches the queries, the context has to carry what moves, and how.

    Args:
        tokenizer: gives and decodes the tokens.
        num_latents: latents N of the Perceiver.
        num_latent_channels: their width, and that of the context.
        num_cross_attention_heads: heads of every attention.
        num_self_attention_layers: self-attention blocks over the latents of a frame.
        widening_factor: hidden width of the MLPs over `num_latent_channels`.
        dropout: in training passes only.
        sequence_length: frames that a context sees, and the farthest horizon predicted in one go.
        action_dim: read actions of up to this many dimensions (fewer are padded with zeros); None reads none.
        condition_dim: width of a goal or instruction embedding that predictions are conditioned on.
        context_dim: width of the contexts at each timescale; `num_latent_channels` unless given.
        grid: `(h, w)` of the tokens, to centre each position by itself; None serves any frame size.
        num_decoder_layers: blocks of the queries.
        num_memory_vectors: vectors that a context is expanded to for the queries.
        token_time_kernel: frames joined in each of the Perceiver's inputs; 2 shows it local motion.
        inputs_per_frame: linear maps of a frame's whole grid that the Perceiver reads in place of its tokens:
            cheaper, and quicker to learn positions, but for one frame size. None reads every token.
        keypoints: number of spatial softmax keypoints that these maps read in place of the grid: far fewer weights,
            and contexts more linear in what moves. None reads the grid.
        frame_shape: `(C, H, W)` of frames that the Perceiver reads by a convolutional network of its own
            (`FrameAdapter`, trained end to end), in place of their tokens, as `inputs_per_frame` inputs each. None
            reads tokens.
        strides: of the timescales, in frames: each has latents of its own (`num_latents` the first, half as many the
            others), which read `sequence_length` frames of the past whose index in the episode is a multiple of the
            stride, and contexts are concatenated.

    Attributes:
        context_dim: width of the contexts, all timescales together.
    """

    def __init__(
        self,
        tokenizer: VQPTTokenizer,
        num_latents: int = 128,
        num_latent_channels: int = 256,
        num_cross_attention_heads: int = 8,
        num_self_attention_layers: int = 6,
        widening_factor: int = 4,
        dropout: float = 0.1,
        sequence_length: int = 16,
        action_dim: int | None = None,
        condition_dim: int | None = None,
        *,
        context_dim: int | None = None,
        grid: tuple[int, int] | None = None,
        num_decoder_layers: int = 2,
        num_memory_vectors: int = 8,
        token_time_kernel: int = 2,
        inputs_per_frame: int | None = None,
        keypoints: int | None = None,
        frame_shape: Sequence[int] | None = None,
        strides: Sequence[int] = (1,),
    ):
        sizes = BlockSizes(num_latent_channels, num_cross_attention_heads, widening_factor, dropout)
        super().__init__(
            tokenizer,
            FrameInputs(grid, token_time_kernel, inputs_per_frame, keypoints, frame_shape),
            num_latents,
            num_self_attention_layers,
            sizes,
            sequence_length,
            strides,
            action_dim,
            context_dim,
        )
        self.condition_dim = condition_dim
        self.future = FutureDecoder(
            self.context_dim,
            tokenizer.code_dim,
            sequence_length,
            condition_dim,
            num_memory_vectors,
            num_decoder_layers,
            sizes,
        )
        self.head = ResidualTokenHead(
            num_latent_channels, tokenizer.num_quantizers, tokenizer.num_codes, tokenizer.quantizer.inner_dim
        )
        self.float()  # as the tokenizer's code vectors are

    def predict(
        self,
        contexts: Tensor,
        last: Tensor,
        horizons: Tensor,
        actions: Tensor | None = None,
        condition: Tensor | None = None,
        visible: Visible = None,
    ) -> Tensor:
        """Hidden vectors `[X, h * w, C]` of the frames `horizons` steps after the contexts.

        Args:
            contexts: `[X, D]`.
            last: code vectors `[X, h, w, code_dim]` of the contexts' own frames, as their tokens are looked up.
            horizons: int64 `[X]`, 0 (the context's own frame) to `sequence_length`.
            actions: `[X, K, A]`, the actions after the context, in order; those past the horizon are masked.
            condition: `[X, condition_dim]`; rows of NaN have none.
            visible: code vectors `[X, h, w, code_dim]` and bool `[X, h, w]` that is True where they are given.
        """
        height, width = last.shape[1:3]
        adapted = None
        if self.action_adapter is not None and actions is not None:
            actions = pad_actions(actions, self.action_adapter.action_dim, actions.shape[:2])
            adapted = self.action_adapter(actions, None, actions.shape[:2])
        if visible is not None:
            visible = (self.token_adapter.standardize(visible[0]).flatten(1, 2), visible[1].flatten(1, 2))
        positions = self.token_adapter.positions(height, width)
        last = self.token_adapter.standardize(last).flatten(1, 2)
        return self.future(contexts, last, horizons, positions, adapted, condition, visible)

    def forward(
        self,
        videos: Tensor,
        num_context_frames: int,
        actions: Tensor | None = None,
        condition: Tensor | None = None,
        perceptual_distance: PerceptualDistance | None = None,
        perceptual_weight: float = 0.1,
    ) -> dict[str, Tensor]:
        """Predict frames `num_context_frames` … T - 1 from the ones before, each in one go from the same context.

        Args:
            videos: `[B, T, C, H, W]`.
            num_context_frames: 1 to T - 1; at most `sequence_length` frames can remain.
            actions: `[B, T, A]`, the action that led to each frame.
            condition: `[B, condition_dim]`; rows of NaN have none.
            perceptual_distance: of predicted and true frames `[X, C, H, W]`, added to the loss times
                `perceptual_weight` (`perceiver_obs.objectives.perceptual` has one).

        Returns:
            `logits` `[B, T - ctx, h, w(, Q), num_codes]` (codebooks after the first given the true ones before),
            `predicted_tokens` `[B, T - ctx, h, w(, Q)]` (most likely, codebook by codebook), `reconstructed`
            `[B, T, C, H, W]` (decoded true tokens of the context frames, then the predicted ones) and `loss`:
            cross-entropy, plus the perceptual distance where one is given.
        """
        batch, frames = videos.shape[:2]
        future = frames - num_context_frames
        if not 1 <= num_context_frames < frames:
            raise ValueError(
                f"num_context_frames must lie in 1 to {frames - 1} for {frames} frames, got {num_context_frames}"
            )
        if future > self.sequence_length:
            raise ValueError(f"at most sequence_length={self.sequence_length} frames can be predicted, got {future}")
        condition = self.check_condition(condition, batch)
        vectors = self.tokenizer.encode_vectors(videos)
        tokens = self.tokenizer.unpack(self.tokenizer.quantize(vectors)[1])
        past_actions = None if actions is None else actions[:, :num_context_frames]
        contexts, _ = self.encode(self.observe(videos[:, :num_context_frames])[0], past_actions)
        horizons = torch.arange(1, future + 1, device=videos.device).repeat(batch)
        last = self.tokenizer.quantizer.lookup(tokens[:, num_context_frames - 1])
        hidden = self.predict(
            contexts[:, -1].repeat_interleave(future, 0),
            last.repeat_interleave(future, 0),
            horizons,
            None if actions is None else actions[:, num_context_frames:].repeat_interleave(future, 0),
            None if condition is None else condition.repeat_interleave(future, 0),
        )
        target = rearrange(tokens[:, num_context_frames:], "b t h w q -> (b t) (h w) q")
        logits = self.head(hidden, self.tokenizer.quantizer.partial_sums(target))
        loss = F.cross_entropy(logits.flatten(0, -2), target.flatten())
        if perceptual_distance is not None:
            real = self.tokenizer.check(videos)[:, num_context_frames:].flatten(0, 1)
            expected = self.decode_expected(logits, (vectors.shape[2], vectors.shape[3]))
            loss = loss + perceptual_weight * perceptual_distance(expected, real)
        with torch.no_grad():
            drawn, _ = self.head.sample(hidden, self.tokenizer.quantizer, GREEDY)
            unflatten = {"b": batch, "h": vectors.shape[2]}
            predicted = rearrange(drawn, "(b t) (h w) q -> b t h w q", **unflatten)
            shown = torch.cat([tokens[:, :num_context_frames], predicted], dim=1)
            reconstructed = self.tokenizer.decode_vectors(self.tokenizer.quantizer.lookup(shown))
        logits = rearrange(logits, "(b t) (h w) q k -> b t h w q k", **unflatten)
        single = self.tokenizer.num_quantizers == 1
        return {
            "logits": logits[..., 0, :] if single else logits,
            "predicted_tokens": predicted[..., 0] if single else predicted,
            "reconstructed": reconstructed,
            "loss": loss,
        }

    def check_condition(self, condition: Tensor | None, batch: int) -> Tensor | None:
        if condition is None:
            return None
        if self.condition_dim is None:
            raise ValueError("a condition was given, but the predictor was built with condition_dim=None")
        if condition.shape != (batch, self.condition_dim):
            raise ValueError(f"condition must have shape {[batch, self.condition_dim]}, got {list(condition.shape)}")
        return condition.float()

    def decode_expected(self, logits: Tensor, grid: tuple[int, int]) -> Tensor:
        """Frames `[X, C, H, W]` that logits `[X, h * w, Q, num_codes]` decode to on average; differentiable."""
        vectors = self.tokenizer.quantizer.expected_vectors(logits.softmax(-1)).unflatten(1, grid)
        return self.tokenizer.decode_vectors(vectors[:, None])[:, 0]

    def generate(
        self,
        videos: Tensor,
        num_frames: int,
        mode: GenerationMode = "autoregressive",
        actions: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: int = 8,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Continue clips `[B, T, C, H, W]` by `num_frames` frames, each fed back before the next.

        The window slides along, so any number of frames can follow, also past `sequence_length`.

        Args:
            mode: how the tokens of one frame are drawn: "autoregressive" all at once, given the frames so far;
                "maskgit" in `steps` rounds, surest first, each round given what is already drawn
                (Chang et al. 2022, arXiv:2202.04200).
            actions: `[B, T + num_frames, A]`, the action that led or leads to each frame.
            temperature, top_k, top_p: see `Sampling`.
            steps: rounds a frame for "maskgit".
            condition: `[B, condition_dim]`; rows of NaN have none.

        Returns:
            the new frames `[B, num_frames, C, H, W]`, in [0, 1].

        Raises:
            ValueError: an unknown mode, or a count, shape or sampling setting out of range.
        """
        sampling = Sampling(temperature, top_k, top_p)
        condition = self.check_condition(condition, len(videos))

        def draw(contexts: Tensor, last: Tensor, action: Tensor | None, visible: Visible) -> tuple[Tensor, Tensor]:
            one_ahead = torch.ones(len(last), dtype=torch.long, device=last.device)
            hidden = self.predict(contexts, last, one_ahead, action, condition, visible)
            return self.head.sample(hidden, self.tokenizer.quantizer, sampling)

        return generate(self, draw, videos, num_frames, mode, actions, steps)

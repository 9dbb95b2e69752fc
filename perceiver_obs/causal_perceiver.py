"""The whole model: video in, one context vector per frame out, offline or frame by frame."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from perceiver_obs.frame_reader import ContextState
from perceiver_obs.generation import GenerationMode
from perceiver_obs.hub import Pretrained
from perceiver_obs.modules.quantizer import QuantizerKind
from perceiver_obs.modules.timescales import strides_of
from perceiver_obs.modules.video import check_tensor
from perceiver_obs.predictor import PerceiverTokenPredictor
from perceiver_obs.presets import preset
from perceiver_obs.tokenizer import VQPTTokenizer

MIN_CONTEXT_SCALE = 0.1  # latents are normalised to about 1 before they are averaged


class CausalPerceiverIO(nn.Module, Pretrained):
    """Tokenizer and predictor together: `extract_context` for clips, `init_state` and `step` for streaming.

    Context t depends on frames t - receptive_field + 1 … t alone. The Perceiver reads frames, or the tokenizer's code
    vectors before quantisation: they keep sub-pixel positions, and a float's last bit cannot flip a token.

    Args:
        video_shape: `(T, C, H, W)`: frames that a context sees, and the shape of each.
        num_latents, num_latent_channels, num_cross_attention_heads, num_self_attention_layers, widening_factor,
            dropout, action_dim, condition_dim, num_decoder_layers, num_memory_vectors, token_time_kernel,
            inputs_per_frame, keypoints: see `PerceiverTokenPredictor`.
        reads: what the Perceiver reads: the tokenizer's code vectors ("tokens"), or "frames" by a convolutional network
            of its own, for `inputs_per_frame`; contexts then need no tokenizer, which is there for predictions.
        num_codes, downsample, code_dim, base_channels, use_3d_conv, num_quantizers, commitment_weight,
            diversity_weight, quantizer, codebook_decay, stem_stride: see `VQPTTokenizer`.
        context_dim: width D of the contexts at each timescale; `num_latent_channels` unless given.
        timescales: names among "fast" (reads every frame of the past), "medium" (every 4th) and "slow" (every 16th),
            whose contexts are concatenated; none means "fast" alone. Each has latents of its own, which read the frame
            itself and up to T frames of its stride: those whose index in the episode is a multiple of it.
        frame_contract: how the frames that the model was trained on were made (size, channels, action_repeat,
            camera, render_quality, tasks, data_fingerprint); saved with the weights.

    Attributes:
        timescales: their names, in the order of the contexts.
        context_dim: width of what `extract_context` and `step` return, all timescales together.
        receptive_field: frames that a context may depend on, its own included.
        period: the longest stride of the timescales. Contexts are computed anew from the last `receptive_field` frames
            or more, beginning at one whose index in the episode is a multiple of it.
    """

    FORMER_ARGUMENTS: ClassVar[dict[str, Any]] = {"temporal_downsample": False}
    LATER_ARGUMENTS: ClassVar[dict[str, Any]] = {"reads": "tokens"}
    FORMER_TENSORS: ClassVar[dict[str, str | None]] = {
        "predictor.regression.": None,
        "predictor.inverse_dynamics.": None,
    }
    context_mean: Tensor
    context_scale: Tensor

    def __init__(
        self,
        video_shape: Sequence[int] = (16, 3, 64, 64),
        num_latents: int = 128,
        num_latent_channels: int = 256,
        num_codes: int = 1024,
        downsample: int = 4,
        num_cross_attention_heads: int = 8,
        num_self_attention_layers: int = 6,
        widening_factor: int = 4,
        dropout: float = 0.1,
        action_dim: int | None = None,
        condition_dim: int | None = None,
        num_decoder_layers: int = 2,
        num_memory_vectors: int = 8,
        token_time_kernel: int = 2,
        inputs_per_frame: int | None = None,
        keypoints: int | None = None,
        reads: Literal["tokens", "frames"] = "tokens",
        code_dim: int = 256,
        base_channels: int = 64,
        use_3d_conv: bool = True,
        num_quantizers: int = 4,
        commitment_weight: float = 0.05,
        diversity_weight: float = 0.01,
        quantizer: QuantizerKind = "vq",
        codebook_decay: float = 0.95,
        stem_stride: int = 2,
        context_dim: int | None = None,
        timescales: Sequence[str] = (),
        frame_contract: dict[str, Any] | None = None,
    ):
        super().__init__()
        if len(video_shape) != 4 or any(int(n) < 1 for n in video_shape):
            raise ValueError(f"video_shape must be (T, C, H, W), all positive, got {tuple(video_shape)}")
        frames, channels, height, width = map(int, video_shape)
        if height % downsample or width % downsample:
            raise ValueError(
                f"frame height and width must be multiples of downsample={downsample}, got {height}x{width}"
            )
        if reads not in ("tokens", "frames"):
            raise ValueError(f"reads must be 'tokens' or 'frames', got {reads!r}")
        self.timescales = tuple(timescales) or ("fast",)
        self.video_shape = (frames, channels, height, width)
        self.action_dim = action_dim
        self.frame_contract = dict(frame_contract or {})
        tokenizer = VQPTTokenizer(
            channels,
            code_dim,
            num_codes,
            downsample,
            base_channels,
            use_3d_conv,
            num_quantizers=num_quantizers,
            commitment_weight=commitment_weight,
            diversity_weight=diversity_weight,
            quantizer=quantizer,
            codebook_decay=codebook_decay,
            stem_stride=stem_stride,
        )
        self.predictor = PerceiverTokenPredictor(
            tokenizer,
            num_latents,
            num_latent_channels,
            num_cross_attention_heads,
            num_self_attention_layers,
            widening_factor,
            dropout,
            frames,
            action_dim,
            condition_dim,
            context_dim=context_dim,
            grid=(height // downsample, width // downsample),
            num_decoder_layers=num_decoder_layers,
            num_memory_vectors=num_memory_vectors,
            token_time_kernel=token_time_kernel,
            inputs_per_frame=inputs_per_frame,
            keypoints=keypoints,
            frame_shape=(channels, height, width) if reads == "frames" else None,
            strides=strides_of(self.timescales),
        )
        self.context_dim = self.predictor.context_dim
        self.receptive_field, self.period = self.predictor.receptive_field, self.predictor.period
        self.register_buffer("context_mean", torch.zeros(self.context_dim))
        self.register_buffer("context_scale", torch.ones(self.context_dim))
        self.float()  # whatever torch's default dtype is: frames are read as float32

    @property
    def tokenizer(self) -> VQPTTokenizer:
        return self.predictor.tokenizer

    @classmethod
    def from_tokenizer(cls, tokenizer: VQPTTokenizer, video_shape: Sequence[int], **arguments: Any) -> Self:
        """A model around a copy of a trained tokenizer; `arguments` are those of the predictor."""
        config = tokenizer.config()
        if config.pop("temporal_downsample"):
            raise ValueError("contexts need tokens of every frame: a tokenizer without temporal_downsample")
        if config.pop("in_channels") != video_shape[1]:
            raise ValueError(
                f"the tokenizer reads {tokenizer.in_channels} channels, video_shape is {tuple(video_shape)}"
            )
        model = cls(video_shape=tuple(video_shape), **config, **arguments)
        model.tokenizer.load_state_dict(tokenizer.state_dict())
        return model

    @classmethod
    def from_preset(cls, name: str, frame_shape: Sequence[int] = (3, 64, 64), **changes: Any) -> Self:
        """A model of a size that has a name ("tiny", "small", "base"), with random weights.

        Args:
            frame_shape: `(C, H, W)`.
            changes: further arguments, and such that replace the preset's.
        """
        sizes = preset(name)
        return cls(video_shape=(sizes.pop("sequence_length"), *frame_shape), **{**sizes, **changes})

    def config(self) -> dict[str, Any]:
        return {**super().config(), "frame_contract": self.frame_contract}

    def set_context_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Centre and scale contexts from now on: `[D]` over training data, of contexts as they are now.

        Entries that hardly vary are not blown up to unit variance, and their rounding errors with them.
        """
        self.context_mean.add_(mean * self.context_scale)
        self.context_scale.mul_(std).clamp_(min=MIN_CONTEXT_SCALE)

    # ---- contexts -------------------------------------------------------------------------------------------

    def contexts(self, videos: Tensor, actions: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """`extract_context` with gradients, over the whole clip at once.

        Args:
            valid: bool `[B, T]`, False for frames before an episode's start; their contexts mean nothing.
        """
        self._check_frames(videos)
        observed, _ = self.predictor.observe(videos, None, valid)
        raw, _ = self.predictor.encode(observed, actions, valid=valid)
        return self.standardize(raw)

    def extract_context(self, videos: Tensor, actions: Tensor | None = None, timescale: str | None = None) -> Tensor:
        """Contexts `[B, T, context_dim]` of episodes from their first frame on; no gradients, no updates.

        Args:
            videos: `[B, T, C, H, W]`, any T >= 1; uint8, or float in [0, 1].
            actions: `[B, T, A]`, the action that led to each frame; the first is ignored. For models with
                `action_dim` only.
            timescale: the part of that name alone, `[B, T, context_dim / number of timescales]`; None for all.
        """
        part = slice(None) if timescale is None else self.part_of(timescale)
        self._check_frames(videos)
        self._check_actions(actions, videos.shape[:2])
        chunk = self.video_shape[0]
        contexts = []
        with torch.inference_mode():
            state = self.init_state(len(videos))
            for start in range(0, videos.shape[1], chunk):
                span = slice(start, start + chunk)
                context, state = self.advance(videos[:, span], state, None if actions is None else actions[:, span])
                contexts.append(context)
            result = torch.cat(contexts, dim=1)[..., part]
        return result.clone()  # an ordinary tensor, so that heads can be trained on it

    def encode(self, videos: Tensor, actions: Tensor | None = None, timescale: str | None = None) -> Tensor:
        """`extract_context`, by the name that encoders have."""
        return self.extract_context(videos, actions, timescale)

    def part_of(self, timescale: str) -> slice:
        """Where a context holds what one of the model's timescales has read; ValueError if it has no such."""
        if timescale not in self.timescales:
            raise ValueError(f"timescale must be one of this model's, {list(self.timescales)}, got {timescale!r}")
        width = self.context_dim // len(self.timescales)
        begin = width * self.timescales.index(timescale)
        return slice(begin, begin + width)

    def init_state(self, batch_size: int) -> ContextState:
        """The state of `batch_size` episodes that have not begun."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of 1 or more, got {batch_size!r:.80}")
        return self.predictor.init_state(batch_size, self.video_shape[2:])

    def step(self, frames: Tensor, state: ContextState, actions: Tensor | None = None) -> tuple[Tensor, ContextState]:
        """The contexts `[B, context_dim]` of the next frames, at a cost that does not depend on how many came before.

        Args:
            frames: `[B, C, H, W]`; uint8, or float in [0, 1].
            state: of `init_state` or of the step before; it stays valid, so a step can be taken again.
            actions: `[B, A]`, the action that led to each frame; ignored in rows whose episode begins.
        """
        if frames.ndim != 4:
            raise ValueError(f"frames must have shape [B, C, H, W], got {tuple(frames.shape)}")
        if len(frames) != len(state.seen):
            raise ValueError(f"the state holds {len(state.seen)} rows, got {len(frames)} frames")
        self._check_frames(frames[:, None])
        self._check_actions(actions, frames.shape[:1])
        with torch.inference_mode():
            context, state = self.advance(frames[:, None], state, None if actions is None else actions[:, None])
        return context[:, 0].clone(), state

    def advance(
        self, videos: Tensor, state: ContextState, actions: Tensor | None = None
    ) -> tuple[Tensor, ContextState]:
        """Contexts `[B, T, context_dim]` of the next T frames, and the state after them: what every step computes."""
        raw, following = self.predictor.advance(videos, state, actions)
        return self.standardize(raw), following

    def standardize(self, raw: Tensor) -> Tensor:
        """Centre and scale what the predictor's `encode` gives, `[..., D]`."""
        return (raw - self.context_mean) / self.context_scale

    def _check_frames(self, videos: Tensor) -> None:
        if videos.ndim == 5 and videos.shape[2:] != torch.Size(self.video_shape[1:]):
            raise ValueError(f"frames must be {self.video_shape[1:]} (C, H, W), got {tuple(videos.shape[2:])}")

    def _check_actions(self, actions: Tensor | None, shape: Sequence[int]) -> None:
        if actions is None:
            return
        if self.action_dim is None:
            raise ValueError("actions were given, but the model was built with action_dim=None")
        check_tensor(actions, "actions")
        if actions.shape[:-1] != torch.Size(shape):
            raise ValueError(f"actions must have shape {[*shape, self.action_dim]}, got {list(actions.shape)}")

    # ---- training and looking -------------------------------------------------------------------------------

    def forward(
        self, videos: Tensor, num_context_frames: int, actions: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict the frames after the first `num_context_frames`; see `PerceiverTokenPredictor.forward`.

        Args:
            condition: `[B, condition_dim]`; rows of NaN have none. For a model trained with `condition="goal"` the
                contexts of the frames to reach, as `extract_context` gives them.
        """
        self._check_frames(videos)
        return self.predictor(videos, num_context_frames, actions, condition)

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
        """Continue clips by new frames `[B, num_frames, C, H, W]`; see `perceiver_obs.generation`."""
        self._check_frames(videos)
        return self.predictor.generate(videos, num_frames, mode, actions, temperature, top_k, top_p, steps, condition)

    @torch.inference_mode()
    def reconstruct(self, videos: Tensor) -> Tensor:
        """Videos `[B, T, C, H, W]` through their tokens and back, in [0, 1]."""
        self._check_frames(videos)
        return self.tokenizer.decode(self.tokenizer.encode(videos)[0]).clamp(0, 1)

"""Frames to contexts: one vector per frame, for clips and for running episodes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from perceiver_obs.modules.adapters import ActionAdapter, TokenAdapter, pad_actions
from perceiver_obs.modules.attention import BlockSizes
from perceiver_obs.modules.causal_conv import Past
from perceiver_obs.modules.frame_adapter import FrameAdapter
from perceiver_obs.modules.perceiver import CausalPerceiverEncoder, Rings
from perceiver_obs.modules.streaming import StreamingState, existing
from perceiver_obs.tokenizer import VQPTTokenizer


@dataclass(frozen=True)
class ContextState(StreamingState):
    """All that streaming remembers of the frames so far, for each row of a batch. A value: steps return new ones.

    Attributes:
        seen: int64 `[B]`, frames since each row's episode began.
        convolutions: last inputs of the tokenizer's temporal convolutions.
        adapter: last inputs of the token adapter, for `token_time_kernel > 1`.
        keys_values: `[B, length, P, 2C]` of the Perceiver's inputs, for each timescale those of the frames that its
            ring holds: the last `sequence_length - 1`, or `sequence_length` of those at its stride.
    """

    seen: Tensor
    convolutions: Past
    adapter: Tensor | None
    keys_values: Rings


@dataclass(frozen=True)
class FrameInputs:
    """What the Perceiver takes of a frame; the attributes are arguments of `PerceiverTokenPredictor`.

    `number` is `inputs_per_frame` there.
    """

    grid: tuple[int, int] | None
    token_time_kernel: int
    number: int | None
    keypoints: int | None
    frame_shape: Sequence[int] | None


class FrameReader(nn.Module):
    """A causal Perceiver that reads frames; the mean of a frame's latents is its context.

    The code vectors of frame t (continuous for real frames, looked up for generated ones), or the frame itself, and
    the action that led to it enter the window of the last `sequence_length` frames, and latents attend to it. Those of
    further timescales attend to as many frames at a stride of theirs; a context holds one mean for each timescale.

    Args: see `PerceiverTokenPredictor`.
    """

    def __init__(
        self,
        tokenizer: VQPTTokenizer,
        inputs: FrameInputs,
        num_latents: int,
        num_layers: int,
        sizes: BlockSizes,
        sequence_length: int,
        strides: Sequence[int],
        action_dim: int | None,
        context_dim: int | None,
    ):
        super().__init__()
        for name, value in {"num_latents": num_latents, "sequence_length": sequence_length}.items():
            if not 1 <= value <= 8192:
                raise ValueError(f"{name} must lie in 1 to 8192, got {value}")
        if tokenizer.temporal_downsample:
            raise ValueError("contexts need tokens of every frame: a tokenizer without temporal_downsample")
        channels = sizes.channels
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.action_dim = action_dim
        self.frame_adapter, of_tokens = None, inputs.number
        if inputs.frame_shape is not None:
            if not inputs.number or inputs.keypoints is not None or inputs.token_time_kernel != 1:
                raise ValueError(
                    "reading frames needs inputs_per_frame of 1 or more, no keypoints and token_time_kernel=1, got "
                    f"{inputs.number}, {inputs.keypoints} and {inputs.token_time_kernel}"
                )
            self.frame_adapter, of_tokens = FrameAdapter(inputs.frame_shape, channels, inputs.number), 0
        self.token_adapter = TokenAdapter(
            tokenizer.code_dim, channels, inputs.grid, inputs.token_time_kernel, of_tokens, inputs.keypoints
        )
        self.action_adapter = ActionAdapter(action_dim, channels) if action_dim else None
        self.encoder = CausalPerceiverEncoder(num_latents, num_layers, sizes, sequence_length, strides)
        self.to_context = nn.Identity() if context_dim is None else nn.Linear(channels, context_dim)
        self.context_dim = (context_dim or channels) * len(strides)

    @property
    def receptive_field(self) -> int:
        """Frames that a context may depend on, its own included."""
        span = max(scale.span for scale in self.encoder.timescales)
        if self.frame_adapter is not None:
            return span
        return span + self.token_adapter.time_kernel - 1 + self.tokenizer.lookback

    @property
    def period(self) -> int:
        """The longest stride: reading may begin late in an episode, at frames whose index is a multiple of it."""
        return max(scale.stride for scale in self.encoder.timescales)

    def set_token_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Centre and scale what the Perceiver reads: `mean` `[h, w, code_dim]`, `std` `[code_dim]` over data."""
        self.token_adapter.set_statistics(mean, std)

    def init_state(self, batch_size: int, frame_size: Sequence[int]) -> ContextState:
        """The state of `batch_size` episodes that have not begun, of frames of `(H, W)` pixels."""
        latents = self.encoder.latents
        grid = [size // self.tokenizer.downsample for size in frame_size]
        convolutions: Past = ()
        if self.frame_adapter is not None:
            adapter, num_inputs = None, self.frame_adapter.num_inputs
        else:
            convolutions = self.tokenizer.encoder.init_past(batch_size, frame_size)
            adapter = self.token_adapter.init_past(batch_size, grid)
            num_inputs = self.token_adapter.num_inputs(grid)
        num_inputs += self.action_adapter is not None
        size = num_inputs, 2 * latents.shape[1]
        keys_values = tuple(latents.new_zeros(batch_size, scale.length, *size) for scale in self.encoder.timescales)
        seen = torch.zeros(batch_size, dtype=torch.long, device=latents.device)
        return ContextState(seen, convolutions, adapter, keys_values)

    def advance(
        self, videos: Tensor, state: ContextState, actions: Tensor | None = None
    ) -> tuple[Tensor, ContextState]:
        """Contexts `[B, T, D]` of the next T frames `[B, T, C, H, W]` of running episodes, and the state after them.

        Args:
            actions: `[B, T, A]`, the action that led to each frame; ignored where an episode begins.
        """
        observed, convolutions = self.observe(videos, state.convolutions)
        contexts, following = self.encode(observed, actions, state)
        assert following is not None
        return contexts, replace(following, convolutions=convolutions)

    def observe(self, videos: Tensor, past: Past | None = None, valid: Tensor | None = None) -> tuple[Tensor, Past]:
        """What `encode` takes of the next frames `[B, T, C, H, W]`, and the convolutions' past to go on from.

        Code vectors `[B, T, h, w, code_dim]`, or where the Perceiver reads frames these as floats.
        """
        if self.frame_adapter is not None:
            return self.tokenizer.check(videos), ()
        return self.tokenizer.stream_vectors(videos, past, valid)

    def observe_codes(self, codes: Tensor) -> Tensor:
        """What `encode` takes of the last of frames `[B, T, h, w, code_dim]` given as codes, `[B, 1, ...]`."""
        if self.frame_adapter is None:
            return codes[:, -1:]
        return self.tokenizer.decode_vectors(codes[:, -1 - self.tokenizer.decoder.lookback :])[:, -1:].clamp(0, 1)

    def encode(
        self,
        observed: Tensor,
        actions: Tensor | None = None,
        state: ContextState | None = None,
        valid: Tensor | None = None,
        only: Tensor | None = None,
        first: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, ContextState | None]:
        """Contexts `[B, T, D]`, the means of latents at each timescale, of what `observe` gives for T frames.

        Args:
            actions: `[B, T, A]`, the action that led to each frame; ignored where an episode begins.
            state: of the frames before, for streaming; None reads the clip alone, with gradients.
            valid: bool `[B, T]`, False for frames before an episode's first (without state only).
            only: int64 `[A]`, frames to compute contexts of, instead of all T (without state only).
            first: int64 `[B]`, the index in its episode of a clip's first frame, for the strides of timescales; None
                for 0, or what follows from `valid` or a state.
            hidden: int64 `[B]`, how many of the frames before its own the fast timescale does not see, in training.
        """
        batch, frames = observed.shape[:2]
        past, rings = None, None
        if state is None:
            seen = torch.zeros(batch, dtype=torch.long, device=observed.device)
            if valid is not None:
                first = -(~valid.to(observed.device)).sum(1)
        else:
            past, rings, seen = state.adapter, state.keys_values, state.seen
            first = seen
        if self.frame_adapter is not None:
            inputs = self.frame_adapter(observed)
        else:
            inputs, past = self.token_adapter(observed, past, valid)
        if self.action_adapter is not None:
            # An action led to every frame that another of its episode came before.
            led = existing(seen, 1, frames) if valid is None else nn.functional.pad(valid, (1, 0), value=False)
            if actions is not None:
                actions = pad_actions(actions, self.action_adapter.action_dim, (batch, frames))
            of_actions = self.action_adapter(actions, led[:, :-1].to(observed.device), (batch, frames))
            inputs = torch.cat([inputs, of_actions[:, :, None]], dim=2)
        means, rings = self.encoder(inputs, rings, first, only, hidden)
        contexts = self.to_context(means).flatten(2)
        if state is None:
            return contexts, None
        return contexts, ContextState(seen + frames, state.convolutions, past, rings)

"""A step of PyTorch on plain tensors of fixed shapes, as compilers and exporters need it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perceiver_obs import CausalPerceiverIO
from perceiver_obs.causal_perceiver import ContextState
from perceiver_obs.modules.frame_memory import FrameMemory
from perceiver_obs.predictor import PredictorState


class TensorStep(nn.Module):
    """`CausalPerceiverIO.step` as a function of tensors.

    The keys and values of the last frames shift along, where `FrameMemory` writes them once into a log.

    Attributes:
        shapes: of the state's tensors, without their batch axis.
    """

    def __init__(self, model: CausalPerceiverIO):
        super().__init__()
        self.model = model
        _, state = model.step(torch.zeros(1, *model.video_shape[1:], dtype=torch.uint8), model.init_state(1))
        memory, adapter_past = state.predictor.memory, state.predictor.past
        assert memory.log is not None
        self.window, self.num_convolutions = memory.window, len(state.past or ())
        self.has_adapter_past, self.has_recent = adapter_past is not None, state.recent.shape[1] > 0
        ring = (self.window - 1, *memory.log.keys.shape[2:])
        carried = [*(state.past or ()), *([adapter_past] if adapter_past is not None else [])]
        recent = [tuple(state.recent.shape[1:])] if self.has_recent else []
        self.shapes = [*(tuple(tensor.shape[1:]) for tensor in carried), ring, ring, *recent]

    def forward(
        self, frames: Tensor, actions: Tensor, known: Tensor, seen: Tensor, state: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The contexts `[B, context_dim]` of frames, and the state after them.

        Args:
            frames: uint8 `[B, C, H, W]`.
            actions: `[B, action_dim]`, the action that led to each frame.
            known: bool `[B]`, where there is one.
            seen: int64 `[B]`, frames since each row's episode began.
            state: of `shapes`.
        """
        model, predictor = self.model, self.model.predictor
        waiting = iter(state)
        past = [next(waiting) for _ in range(self.num_convolutions)]
        adapter_past = next(waiting) if self.has_adapter_past else None
        past_keys, past_values = next(waiting), next(waiting)
        vectors, new_past = predictor.observe(frames[:, None], past or None)
        inputs, adapter_past = predictor.inputs(vectors, actions[:, None], known[:, None], adapter_past)
        keys, values = predictor.encoder.keys_values(inputs)
        keys, values = torch.cat([past_keys, keys], dim=1), torch.cat([past_values, values], dim=1)
        exists = torch.arange(self.window, device=seen.device) >= self.window - 1 - seen[:, None]
        latents = predictor.encoder.attend(keys, values, 1, exists)
        context = model.normalize(predictor.context(latents))
        before = None
        if self.has_recent:
            counted = PredictorState(FrameMemory(self.window, seen))
            before = ContextState(None, counted, next(waiting))
        contexts, recent = model.over_timescales(context, before)
        carried = [*new_past, *([adapter_past] if adapter_past is not None else []), keys[:, 1:], values[:, 1:]]
        return contexts[:, 0], [*carried, *([recent] if self.has_recent else [])]

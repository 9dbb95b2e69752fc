"""A step of PyTorch on plain tensors of fixed shapes, as compilers and exporters need it."""

from collections.abc import Sequence

from torch import Tensor, nn

from perceiver_obs import CausalPerceiverIO, ContextState


class TensorStep(nn.Module):
    """`CausalPerceiverIO.advance` by one frame, as a function of tensors."""

    def __init__(self, model: CausalPerceiverIO):
        super().__init__()
        self.model = model

    def init_state(self, batch_size: int) -> list[Tensor]:
        """The tensors of `CausalPerceiverIO.init_state`; int64 frames since an episode's beginning are the first."""
        return _tensors(self.model.init_state(batch_size))

    def forward(self, frames: Tensor, actions: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The contexts `[B, context_dim]` of frames, and the state after them.

        Args:
            frames: uint8 `[B, C, H, W]`.
            actions: `[B, action_dim]`, the action that led to each frame.
        """
        given = iter(state)
        nested = self.model.init_state(len(frames)).map_rows(lambda _: next(given))
        contexts, following = self.model.advance(frames[:, None], nested, actions[:, None])
        return contexts[:, 0], _tensors(following)


def _tensors(state: ContextState) -> list[Tensor]:
    tensors: list[Tensor] = []
    state.map_rows(lambda tensor: tensors.append(tensor) or tensor)
    return tensors

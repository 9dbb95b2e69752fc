"""Motion as an auxiliary objective of the tokenizer: edge targets and their changes, predicted from code vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perceiver_obs.objectives.latent import Clips, LatentObjective, LatentTargets

HORIZON = 6  # steps ahead that edge targets are predicted
FRAMES_READ = 4
FRAMES_PREDICTED_FROM = 3  # of each clip
FRAMES_SEEN = FRAMES_READ - 1 + FRAMES_PREDICTED_FROM  # of each clip; the others are targets alone
CLIP_LENGTH = FRAMES_SEEN + HORIZON
WIDTH, CONTEXT_DIM = 256, 128


class MotionObjective(nn.Module):
    """Predicts edge targets, and picks frames by them, from the code vectors of four frames.

    Reconstruction alone spends code vectors on appearance; what a fraction of a pixel of motion does to them is lost.
    Here the encoder learns from `LatentObjective`, through a small auxiliary network: a linear map of each frame's
    grid, and an MLP over those of four frames and their actions.

    Args:
        vector_size: numbers in a frame's code vectors, `h * w * code_dim`.
        tasks: of the groups of data, as in `LatentTargets`; `latent.fit` fits their edge targets.
        frame_shape: `(C, H, W)`.
        edge_order: spatial frequencies of the edge targets, in each direction.
        action_dim: width of the actions.
    """

    def __init__(
        self, vector_size: int, tasks: Sequence[str], frame_shape: Sequence[int], edge_order: int, action_dim: int
    ):
        super().__init__()
        self.norm = nn.BatchNorm1d(vector_size, affine=False, track_running_stats=False)
        self.read = nn.Linear(vector_size, WIDTH)
        self.join = nn.Sequential(
            nn.Linear(FRAMES_READ * (WIDTH + action_dim), 2 * WIDTH),
            nn.GELU(),
            nn.Linear(2 * WIDTH, CONTEXT_DIM),
            nn.LayerNorm(CONTEXT_DIM),
        )
        targets = LatentTargets(tasks, frame_shape, ("edge", "contrastive"), edge_order, HORIZON)
        self.latent = LatentObjective(targets, CONTEXT_DIM, action_dim)

    def forward(self, vectors: Tensor, clips: Tensor, actions: Tensor, groups: Tensor) -> dict[str, Tensor]:
        """Losses `edge` and `contrastive` of clips.

        Args:
            vectors: code vectors of the first `FRAMES_SEEN` frames, `[B, FRAMES_SEEN, h, w, code_dim]`.
            clips: frames `[B, CLIP_LENGTH, C, H, W]`.
            actions: `[B, CLIP_LENGTH, action_dim]`, the action that led to each frame.
            groups: int64 `[B]`, which of the edge targets' groups each clip is of.
        """
        read = self.read(self.norm(vectors.flatten(2).flatten(0, 1))).unflatten(0, vectors.shape[:2])
        read = torch.cat([read, actions[:, :FRAMES_SEEN]], dim=-1)
        windows = read.unfold(1, FRAMES_READ, 1).flatten(2)
        anchors = torch.arange(FRAMES_READ - 1, FRAMES_SEEN, device=clips.device)
        return self.latent(self.join(windows), anchors, Clips(clips, groups, actions))

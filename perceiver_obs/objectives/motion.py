"""Motion as a teacher of the tokenizer: its code vectors shall tell edge targets and how they change."""

import torch
from torch import Tensor, nn

from perceiver_obs.objectives.edge_targets import EdgeTargets
from perceiver_obs.objectives.latent import LatentObjective

HORIZON = 6  # steps ahead that edge targets are predicted
FRAMES_READ = 4
FRAMES_TOLD = 3  # of each clip
FRAMES_SEEN = FRAMES_READ - 1 + FRAMES_TOLD  # of each clip; the others are told alone
CLIP_LENGTH = FRAMES_SEEN + HORIZON
WIDTH, CONTEXT_DIM = 256, 128


class MotionObjective(nn.Module):
    """Tells edge targets, and picks frames by them, from the code vectors of four frames.

    Reconstruction alone spends code vectors on looks; what a fraction of a pixel of motion does to them is lost. Here
    the encoder learns from `LatentObjective`, through a small network that is thrown away afterwards: a linear map
    of each frame's grid, and an MLP over those of four frames and their actions.

    Args:
        vector_size: numbers in a frame's code vectors, `h * w * code_dim`.
        edge_targets: `latent.fit` fits them to the data; with a longest horizon of `HORIZON`.
        action_dim: width of the actions.
    """

    def __init__(self, vector_size: int, edge_targets: EdgeTargets, action_dim: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(vector_size, affine=False, track_running_stats=False)
        self.read = nn.Linear(vector_size, WIDTH)
        self.join = nn.Sequential(
            nn.Linear(FRAMES_READ * (WIDTH + action_dim), 2 * WIDTH),
            nn.GELU(),
            nn.Linear(2 * WIDTH, CONTEXT_DIM),
            nn.LayerNorm(CONTEXT_DIM),
        )
        self.latent = LatentObjective(edge_targets, CONTEXT_DIM, action_dim, tell=True, pick=True)

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
        return self.latent(self.join(windows), anchors, clips, groups, actions)

"""Motion as a teacher of the tokenizer: its code vectors shall tell outlines and how they change."""

import torch
from torch import Tensor, nn

from perceiver_obs.tokenizer import VQPTTokenizer
from perceiver_obs.training.outlines import OutlineObjective, Outlines

HORIZON = 3  # steps ahead that outlines are foretold
FRAMES_READ = 4
FRAMES_TOLD = 3  # of each clip
CLIP_LENGTH = FRAMES_READ - 1 + FRAMES_TOLD + HORIZON
WIDTH, CONTEXT_DIM = 256, 128


class MotionObjective(nn.Module):
    """Tells outlines, and picks frames by them, from the code vectors of four frames.

    Reconstruction alone spends code vectors on looks; what a fraction of a pixel of motion does to them is lost. Here
    the encoder learns from `OutlineObjective`, through a small network that is thrown away afterwards: a linear map
    of each frame's grid, and an MLP over those of four frames and their actions.

    Args:
        tokenizer: whose encoder learns; it must keep the frame rate.
        grid: `(h, w)` of its tokens.
        outlines: fitted to the data, with a longest horizon of `HORIZON`.
        action_dim: width of the actions.
    """

    def __init__(self, tokenizer: VQPTTokenizer, grid: tuple[int, int], outlines: Outlines, action_dim: int):
        super().__init__()
        if tokenizer.temporal_downsample:
            raise ValueError("a tokenizer with temporal_downsample cannot learn motion: set motion_weight to 0")
        self.tokenizer = tokenizer
        inputs = grid[0] * grid[1] * tokenizer.code_dim
        self.norm = nn.BatchNorm1d(inputs, affine=False, track_running_stats=False)
        self.read = nn.Linear(inputs, WIDTH)
        self.join = nn.Sequential(
            nn.Linear(FRAMES_READ * (WIDTH + action_dim), 2 * WIDTH),
            nn.GELU(),
            nn.Linear(2 * WIDTH, CONTEXT_DIM),
            nn.LayerNorm(CONTEXT_DIM),
        )
        self.of_outlines = OutlineObjective(outlines, CONTEXT_DIM, action_dim, tell=True, pick=True)

    def forward(self, clips: Tensor, actions: Tensor, groups: Tensor) -> dict[str, Tensor]:
        """Losses `outline` and `contrastive` of clips.

        Args:
            clips: frames `[B, CLIP_LENGTH, C, H, W]`.
            actions: `[B, CLIP_LENGTH, action_dim]`, the action that led to each frame.
            groups: int64 `[B]`, which of the outlines' groups each clip is of.
        """
        seen = CLIP_LENGTH - HORIZON
        vectors = self.tokenizer.encode_vectors(clips[:, :seen]).flatten(2)
        read = self.read(self.norm(vectors.flatten(0, 1))).unflatten(0, vectors.shape[:2])
        read = torch.cat([read, actions[:, :seen]], dim=-1)
        windows = read.unfold(1, FRAMES_READ, 1).flatten(2)
        anchors = torch.arange(FRAMES_READ - 1, seen, device=clips.device)
        return self.of_outlines(self.join(windows), anchors, clips, groups, actions)

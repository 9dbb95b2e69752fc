"""What the predictor is trained on: losses over random frames of clips and random horizons."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_obs.data.clips import RolloutClips
from perceiver_obs.objectives.latent import Clips, LatentObjective
from perceiver_obs.objectives.sampling import (
    ClipSampling,
    LossWeights,
    Starts,
    TokenClips,
    TokenTargets,
    random_visible,
)
from perceiver_obs.objectives.states import StateTargets
from perceiver_obs.predictor import PerceiverTokenPredictor

Distance = Callable[[Tensor, Tensor], Tensor]


class PredictorObjective(nn.Module):
    """The predictor's losses as one forward pass, which data-parallel training asks for.

    For random frames of the clips, the context of that frame predicts a frame some steps ahead: its tokens
    (cross-entropy) and, decoded, its appearance (perceptual distance). The rest is asked by `LatentObjective`, for all
    steps ahead up to its horizon: that is cheap, and the quickest way found to positions and velocities.

    Args:
        predictor: to train.
        weights: of the objectives.
        sampling: of frames and predictions.
        latent: computes the losses of `weights.heads`, needed where there are any.
        perceptual_distance: needed where it has a weight; called with frames and targets `[X, C, H, W]`.
        goal: contexts of `PerceiverTokenPredictor.encode` to conditions, where tokens are predicted towards a goal: the
            context of a later frame of the same clip (in hindsight; Andrychowicz et al. 2017, arXiv:1707.01495).
    """

    # Those of earlier versions, in checkpoints.
    FORMER_TENSORS: ClassVar = {
        "predictor.regression.": None,
        "predictor.inverse_dynamics.": None,
        "of_outlines.motion.forth.": "latent.dynamics.transition.",
        "of_outlines.motion.back.": "latent.dynamics.inverse.",
        "of_outlines.motion.of_action.": "latent.dynamics.action.",
        "of_outlines.head.": "latent.edge_decoder.",
        "of_outlines.outlines.": "latent.edge_targets.",
        "of_outlines.rewards.tell.": "latent.rewards.predict.",
        "of_outlines.": "latent.",
    }

    def __init__(
        self,
        predictor: PerceiverTokenPredictor,
        weights: LossWeights,
        sampling: ClipSampling = ClipSampling(),  # noqa: B008 (it is frozen)
        latent: LatentObjective | None = None,
        perceptual_distance: Distance | None = None,
        goal: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        if weights.perceptual and perceptual_distance is None:
            raise ValueError("the perceptual term has a weight, but there is no perceptual_distance")
        if missing := set(weights.heads) - set(latent.targets.heads if latent is not None else ()):
            raise ValueError(f"{', '.join(sorted(missing))} has a weight, but the latent objective does not compute it")
        self.predictor = predictor
        self.latent = latent
        self.weights, self.sampling = weights, sampling
        self.goal = goal
        # In a list, as it is no part of what is trained and saved.
        self._perceptual = [perceptual_distance]

    def fit(self, clips: RolloutClips, groups: Sequence[int], seed: int, states: StateTargets | None = None) -> None:
        """Fits what depends on the data, for the groups of the clips' datasets, and on the states of these."""
        if self.latent is not None:
            self.latent.fit(clips, groups, seed, states)

    def train(self, mode: bool = True) -> Self:
        """The tokenizer stays in eval mode: its codebooks are not trained here."""
        super().train(mode)
        self.predictor.tokenizer.eval()
        return self

    def forward(
        self,
        vectors: Tensor | None = None,
        tokens: Tensor | None = None,
        actions: Tensor | None = None,
        frames: Tensor | None = None,
        groups: Tensor | None = None,
        rewards: Tensor | None = None,
        states: Tensor | None = None,
        first: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss` and each objective by the name of its weight.

        Args:
            vectors: code vectors `[B, T, h, w, code_dim]`, for a predictor that reads tokens; T must exceed every
                horizon.
            tokens: `[B, T, h, w(, Q)]`, for the same.
            actions: `[B, T, A]`, the action that led to each frame.
            frames: `[B, T, C, H, W]`, for a predictor that reads them, the perceptual term and the latent objective.
            groups: int64 `[B]`, which of the latent objective's tasks each clip is of.
            rewards: `[B, T]`, the reward that came with each frame, where they are predicted.
            states: `[B, T, S]`, NaN where unknown, where they are regressed.
            first: int64 `[B]`, the index in its episode of each clip's first frame, for timescales; None for 0.
        """
        predictor, weights = self.predictor, self.weights
        clips = None
        if predictor.frame_adapter is None:
            if vectors is None or tokens is None:
                raise ValueError("the predictor reads tokens, but none are given")
            unpacked = predictor.tokenizer.unpack(tokens)
            clips = TokenClips(vectors, predictor.tokenizer.quantizer.lookup(unpacked), unpacked)
            observed = self._vectors_and_codes(clips)
        elif frames is None:
            raise ValueError("the predictor reads frames, but none are given")
        else:
            observed = predictor.observe(frames)[0]
        anchors = self._anchors(observed.shape[1], observed.device)
        read = None if torch.rand(()) < self.sampling.without_actions else actions
        only = anchors
        if self.goal is not None:  # one frame for all clips, so that other contexts need no computing
            goal_frame = torch.randint(1, observed.shape[1], (1,), device=anchors.device)
            only = torch.cat([anchors, goal_frame])
        encoded, _ = predictor.encode(observed, read, only=only, first=first, hidden=self._hidden(observed))
        contexts = encoded[:, : len(anchors)]
        parts: dict[str, Tensor] = {}
        if self.latent is not None:
            if frames is None or groups is None:
                raise ValueError("the latent objective needs frames and groups")
            parts |= self.latent(contexts, anchors, Clips(frames, groups, actions, rewards, states))
        if weights.cross_entropy or weights.perceptual:
            starts = self._starts(contexts, anchors)
            if self.goal is not None:
                # None where that frame comes before the predicted one: the model learns to do without, too.
                missed = (starts.target > goal_frame)[:, None]
                goals = self.goal(encoded[starts.row, -1].detach()).masked_fill(missed, torch.nan)
                starts = replace(starts, condition=goals)
            parts |= self._token_losses(starts, clips, read, frames)
        return {"loss": sum((getattr(weights, k) * v for k, v in parts.items()), contexts.new_zeros(())), **parts}

    def _hidden(self, observed: Tensor) -> Tensor | None:
        """How many of the frames before its own each clip's contexts do not see at the fast timescale, `[B]`."""
        predictor, device = self.predictor, observed.device
        if len(predictor.encoder.timescales) == 1 or predictor.sequence_length == 1:
            return None
        runs = torch.randint(1, predictor.sequence_length, (len(observed),), device=device)
        return runs * (torch.rand(len(observed), device=device) < self.sampling.hidden)

    def _vectors_and_codes(self, clips: TokenClips) -> Tensor:
        """Code vectors of which a share is looked up, as in generation."""
        device = clips.vectors.device
        as_codes = torch.rand(len(clips.vectors), 1, 1, 1, 1, device=device) < self.sampling.quantized_input
        return torch.where(as_codes, clips.codes, clips.vectors)

    def _token_losses(
        self, starts: Starts, clips: TokenClips | None, actions: Tensor | None, frames: Tensor | None
    ) -> dict[str, Tensor]:
        """Of predictions of whole frames, from contexts drawn among those of all clips."""
        predictor, weights = self.predictor, self.weights
        parts: dict[str, Tensor] = {}
        targets = self._encoded(starts, frames) if clips is None else self._looked_up(starts, clips)
        grid = targets.tokens.shape[1:3]
        shown = random_visible(len(starts.row), grid, targets.tokens.device)
        hidden = self._predict(starts, targets, shown, actions)
        wanted = targets.tokens.flatten(1, 2)
        logits = predictor.head(hidden, predictor.tokenizer.quantizer.partial_sums(wanted))
        if weights.cross_entropy:
            each = F.cross_entropy(logits.movedim(-1, 1), wanted, reduction="none").mean(-1)
            counts = (targets.weights * ~shown).flatten(1, 2)
            parts["cross_entropy"] = (each * counts).sum() / counts.sum()
        if weights.perceptual:
            parts["perceptual"] = self._perceptual_loss(logits, starts, grid, frames)
        return parts

    def _looked_up(self, starts: Starts, clips: TokenClips) -> TokenTargets:
        row, target = starts.row, starts.target
        weights = self._motion_weights(clips.vectors)[row, target]
        return TokenTargets(
            clips.codes[row, starts.anchor], clips.codes[row, target], clips.tokens[row, target], weights
        )

    @torch.no_grad()
    def _encoded(self, starts: Starts, frames: Tensor | None) -> TokenTargets:
        """Tokens of the few frames that are asked for, where the predictor reads no tokens."""
        assert frames is not None
        tokenizer = self.predictor.tokenizer
        both = torch.cat([frames[starts.row, starts.anchor], frames[starts.row, starts.target]])
        tokens = tokenizer.unpack(tokenizer.quantize(tokenizer.encode_vectors(both[:, None]))[1])[:, 0]
        (last, codes), (_, target) = tokenizer.quantizer.lookup(tokens).chunk(2), tokens.chunk(2)
        return TokenTargets(last, codes, target, torch.ones_like(target[..., 0], dtype=codes.dtype))

    def _anchors(self, length: int, device: torch.device) -> Tensor:
        """Different frames to predict from, the same for all clips, so that other contexts need no computing.

        A clip's first frames, whose contexts see less than those of a running episode, are drawn less often.
        """
        farthest = max(*self.sampling.horizons, self.latent.max_horizon if self.latent else 0)
        if length <= farthest:
            raise ValueError(f"clips of {length} frames are too short for a horizon of {farthest}")
        frames_seen = torch.arange(1, length - farthest + 1, device=device).clamp(max=self.predictor.receptive_field)
        return frames_seen.float().multinomial(min(self.sampling.samples, len(frames_seen)))

    def _starts(self, contexts: Tensor, anchors: Tensor) -> Starts:
        """What tokens are predicted from, of contexts `[B, A, D]`."""
        row = torch.arange(len(contexts), device=contexts.device).repeat_interleave(len(anchors))
        chosen = torch.randperm(len(row), device=contexts.device)[: self.sampling.token_predictions]
        ahead = torch.tensor(self.sampling.horizons, device=contexts.device)
        horizon = ahead[torch.randint(len(ahead), (len(chosen),), device=contexts.device)]
        return Starts(row[chosen], anchors.repeat(len(contexts))[chosen], contexts.flatten(0, 1)[chosen], horizon)

    def _predict(self, starts: Starts, targets: TokenTargets, shown: Tensor, actions: Tensor | None) -> Tensor:
        """The decoder's vectors `[X, h * w, C]` of the frames to come, where some of their tokens are shown."""
        row, anchor = starts.row, starts.anchor
        steps = torch.arange(1, max(self.sampling.horizons) + 1, device=row.device)
        ahead = None if actions is None else actions[row[:, None], anchor[:, None] + steps]
        visible = targets.codes, shown
        return self.predictor.predict(starts.contexts, targets.last, starts.horizon, ahead, starts.condition, visible)

    def _motion_weights(self, vectors: Tensor) -> Tensor:
        """`[B, T, h, w]`, about 1 on average: more for what departs from its clip's mean."""
        motion = (vectors - vectors.mean(1, keepdim=True)).square().sum(-1)
        relative = (motion / motion.mean((1, 2, 3), keepdim=True).clamp_min(1e-6)).clamp(max=5)
        return (1 + self.sampling.foreground_weight * relative) / (1 + self.sampling.foreground_weight)

    def _perceptual_loss(self, logits: Tensor, starts: Starts, grid: Sequence[int], frames: Tensor | None) -> Tensor:
        if frames is None:
            raise ValueError("the perceptual term needs the frames")
        few = slice(0, self.sampling.perceptual_samples)
        real = self.predictor.tokenizer.check(frames[starts.row[few], starts.target[few]][:, None])[:, 0]
        distance = self._perceptual[0]
        assert distance is not None
        return distance(self.predictor.decode_expected(logits[few], (grid[0], grid[1])), real)

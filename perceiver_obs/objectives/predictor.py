"""What the predictor is trained on: losses over random frames of clips and random horizons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_obs.data.clips import RolloutClips
from perceiver_obs.modules.adapters import pad_actions
from perceiver_obs.objectives.edge_targets import EdgeTargets
from perceiver_obs.objectives.latent import LatentObjective
from perceiver_obs.objectives.states import StateTargets
from perceiver_obs.predictor import PerceiverTokenPredictor


@dataclass(frozen=True)
class LossWeights:
    """Weights of the objectives; those of weight 0 are not computed."""

    cross_entropy: float = 1.0
    perceptual: float = 0.0
    regression: float = 0.0
    inverse_dynamics: float = 0.0
    edge: float = 0.0
    contrastive: float = 0.0
    reward: float = 0.0
    pixel: float = 0.0
    state: float = 0.0

    @property
    def predict_ahead(self) -> bool:
        """Whether any is asked of contexts that latent dynamics predict."""
        return any((self.edge, self.contrastive, self.reward, self.pixel, self.state))


@dataclass(frozen=True)
class Prediction:
    """One batch of predictions: `X` pairs of a context and a later frame of its clip.

    `target` are tokens `[X, P, Q]`, `hidden` the decoder's vectors `[X, P, C]`, and `weights` `[X, P]` what each
    position counts: 0 where its token was shown, more where the clip moves.
    """

    hidden: Tensor
    target: Tensor
    target_vectors: Tensor
    weights: Tensor


class PredictorObjective(nn.Module):
    """The predictor's losses as one forward pass, which data-parallel training asks for.

    For random frames of the clips, the context of that frame predicts a frame some steps ahead: its tokens
    (cross-entropy), its code vectors (regression) and, decoded, its looks (perceptual distance). Inverse dynamics
    tells the action from two contexts in a row. EdgeTargets (`EdgeTargets`) are told, and picked from among those of
    other frames (contrastive), for all steps ahead up to the longest that they scale (`LatentObjective`): that is
    cheap, and the quickest way found to positions and velocities. Rewards are predicted in the same way.

    Args:
        predictor: to train.
        weights: of the objectives.
        horizons: steps ahead to predict tokens over, drawn evenly; 0 asks for the frame itself.
        samples: frames of each clip whose contexts are trained, at most as many as have frames enough after them.
        token_predictions: predictions of tokens a batch, drawn from the samples of all clips; None predicts from each.
        foreground_weight: how much more a position counts that moves as much as the average one of its clip.
        quantized_input: share of the clips that are read as looked-up codes, as generation does.
        without_actions: share of the batches that are read without their actions, for users who have none.
        perceptual_distance: needed where it has a weight; called with frames and targets `[X, C, H, W]`.
        perceptual_samples: predictions that it looks at.
        edge_targets: needed where a term predicts ahead; `fit` fits them to the data.
        num_states: coordinates of states, needed where they have a weight.
    """

    def __init__(
        self,
        predictor: PerceiverTokenPredictor,
        weights: LossWeights,
        horizons: Sequence[int] = (0, 1, 2, 3),
        samples: int = 8,
        foreground_weight: float = 0.0,
        quantized_input: float = 0.25,
        without_actions: float = 0.2,
        perceptual_distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        perceptual_samples: int = 4,
        edge_targets: EdgeTargets | None = None,
        token_predictions: int | None = None,
        num_states: int | None = None,
    ):
        super().__init__()
        if weights.inverse_dynamics and predictor.inverse_dynamics is None:
            raise ValueError("inverse dynamics needs a predictor that reads actions (action_dim)")
        if weights.perceptual and perceptual_distance is None:
            raise ValueError("the perceptual term has a weight, but there is no perceptual_distance")
        if weights.predict_ahead and edge_targets is None:
            raise ValueError("a term that predicts ahead has a weight, but there are no edge targets")
        if weights.state and num_states is None:
            raise ValueError("the state term has a weight, but num_states is not given")
        self.predictor = predictor
        self.latent = None
        if edge_targets is not None:
            sizes = (predictor.context_dim, predictor.action_dim)
            self.latent = LatentObjective(
                edge_targets,
                *sizes,
                tell=weights.edge > 0,
                pick=weights.contrastive > 0,
                rewards=weights.reward > 0,
                num_states=num_states if weights.state > 0 else None,
                pixels=(predictor.tokenizer.in_channels, *edge_targets.frame_size) if weights.pixel > 0 else None,
            )
        self.weights = weights
        self.horizons = tuple(horizons)
        self.samples = samples
        self.token_predictions = token_predictions
        self.foreground_weight = foreground_weight
        self.quantized_input = quantized_input
        self.without_actions = without_actions
        self.perceptual_samples = perceptual_samples
        # In a list, as it is no part of what is trained and saved.
        self._perceptual = [perceptual_distance]

    def fit(self, clips: RolloutClips, groups: Sequence[int], seed: int, states: StateTargets | None = None) -> None:
        """Fits what depends on the data, for the groups of the clips' datasets, and on the states of these."""
        if self.latent is not None:
            self.latent.fit(clips, groups, seed, states)

    def forward(
        self,
        vectors: Tensor,
        tokens: Tensor,
        actions: Tensor | None = None,
        frames: Tensor | None = None,
        groups: Tensor | None = None,
        rewards: Tensor | None = None,
        states: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss` and each objective by the name of its weight.

        Args:
            vectors: code vectors `[B, T, h, w, code_dim]`; T must exceed every horizon.
            tokens: `[B, T, h, w(, Q)]`.
            actions: `[B, T, A]`, the action that led to each frame.
            frames: `[B, T, C, H, W]`, for a predictor that reads them, the perceptual term and the edge targets.
            groups: int64 `[B]`, which of the edge targets' groups each clip is of.
            rewards: `[B, T]`, the reward that came with each frame, where they are predicted.
            states: `[B, T, S]`, NaN where unknown, where they are regressed.
        """
        predictor, weights = self.predictor, self.weights
        tokens = predictor.tokenizer.unpack(tokens)
        codes = predictor.tokenizer.quantizer.lookup(tokens)
        inputs = self._observed(vectors, codes, frames)
        anchors = self._anchors(vectors.shape[1], vectors.device)
        read = None if torch.rand(()) < self.without_actions else actions
        contexts, _ = predictor.encode(inputs, read, only=anchors)
        parts: dict[str, Tensor] = {}
        if self.latent is not None:
            if frames is None or groups is None:
                raise ValueError("edge targets need frames and groups")
            parts |= self.latent(contexts, anchors, frames, groups, actions, rewards, states)
        if weights.cross_entropy or weights.regression or weights.perceptual:
            parts |= self._token_losses(contexts, anchors, vectors, tokens, codes, actions, frames)
        if weights.inverse_dynamics:
            parts["inverse_dynamics"] = self._inverse_dynamics_loss(inputs, actions)
        return {"loss": sum((getattr(weights, k) * v for k, v in parts.items()), vectors.new_zeros(())), **parts}

    def _observed(self, vectors: Tensor, codes: Tensor, frames: Tensor | None) -> Tensor:
        """What contexts are made of: frames, or code vectors of which a share is looked up, as in generation."""
        if self.predictor.frame_adapter is not None:
            if frames is None:
                raise ValueError("the predictor reads frames, but none are given")
            return self.predictor.observe(frames)[0]
        as_codes = torch.rand(len(vectors), 1, 1, 1, 1, device=vectors.device) < self.quantized_input
        return torch.where(as_codes, codes, vectors)

    def _token_losses(
        self,
        contexts: Tensor,
        anchors: Tensor,
        vectors: Tensor,
        tokens: Tensor,
        codes: Tensor,
        actions: Tensor | None,
        frames: Tensor | None,
    ) -> dict[str, Tensor]:
        """Of predictions of whole frames, from contexts drawn among those of all clips."""
        predictor, weights = self.predictor, self.weights
        parts: dict[str, Tensor] = {}
        row = torch.arange(len(vectors), device=vectors.device).repeat_interleave(len(anchors))
        anchor = anchors.repeat(len(vectors))
        chosen = torch.randperm(len(row), device=vectors.device)[: self.token_predictions]
        row, anchor, contexts = row[chosen], anchor[chosen], contexts.flatten(0, 1)[chosen]
        horizon = self._horizons(len(row), vectors.device)
        prediction = self._predict(contexts, vectors, tokens, codes, actions, row, anchor, horizon)

        if weights.cross_entropy or weights.perceptual:
            logits = predictor.head(prediction.hidden, predictor.tokenizer.quantizer.partial_sums(prediction.target))
        if weights.cross_entropy:
            each = F.cross_entropy(logits.movedim(-1, 1), prediction.target, reduction="none").mean(-1)
            parts["cross_entropy"] = _weighted_mean(each, prediction.weights)
        if weights.regression:
            each = (predictor.regression(prediction.hidden) - prediction.target_vectors).square().mean(-1)
            parts["regression"] = _weighted_mean(each, prediction.weights)
        if weights.perceptual:
            parts["perceptual"] = self._perceptual_loss(logits, frames, row, anchor + horizon, vectors.shape[2:4])
        return parts

    def _anchors(self, length: int, device: torch.device) -> Tensor:
        """Different frames to predict from, the same for all clips, so that other contexts need no computing.

        A clip's first frames, whose contexts see less than those of a running episode, are drawn less often.
        """
        farthest = max(*self.horizons, self.latent.max_horizon if self.latent else 0)
        if length <= farthest:
            raise ValueError(f"clips of {length} frames are too short for a horizon of {farthest}")
        frames_seen = torch.arange(1, length - farthest + 1, device=device).clamp(max=self.predictor.receptive_field)
        return frames_seen.float().multinomial(min(self.samples, len(frames_seen)))

    def _horizons(self, count: int, device: torch.device) -> Tensor:
        """To predict tokens over; their own frame's tokens are given to the queries anyway."""
        ahead = torch.tensor([k for k in self.horizons if k] or self.horizons, device=device)
        return ahead[torch.randint(len(ahead), (count,), device=device)]

    def _predict(
        self,
        contexts: Tensor,
        vectors: Tensor,
        tokens: Tensor,
        codes: Tensor,
        actions: Tensor | None,
        row: Tensor,
        anchor: Tensor,
        horizon: Tensor,
    ) -> Prediction:
        steps = torch.arange(1, max(self.horizons) + 1, device=vectors.device)
        ahead = None if actions is None else actions[row[:, None], anchor[:, None] + steps]
        shown = random_visible(len(row), vectors.shape[2:4], vectors.device)
        target = anchor + horizon
        return Prediction(
            hidden=self.predictor.predict(
                contexts, codes[row, anchor], horizon, ahead, None, (codes[row, target], shown)
            ),
            target=tokens[row, target].flatten(1, 2),
            target_vectors=self.predictor.token_adapter.standardize(vectors[row, target]).flatten(1, 2),
            weights=(self._motion_weights(vectors)[row, target] * ~shown).flatten(1, 2),
        )

    def _motion_weights(self, vectors: Tensor) -> Tensor:
        """`[B, T, h, w]`, about 1 on average: more for what departs from its clip's mean."""
        motion = (vectors - vectors.mean(1, keepdim=True)).square().sum(-1)
        relative = (motion / motion.mean((1, 2, 3), keepdim=True).clamp_min(1e-6)).clamp(max=5)
        return (1 + self.foreground_weight * relative) / (1 + self.foreground_weight)

    def _perceptual_loss(
        self, logits: Tensor, frames: Tensor | None, row: Tensor, target: Tensor, grid: Sequence[int]
    ) -> Tensor:
        if frames is None:
            raise ValueError("the perceptual term needs the frames")
        few = slice(0, self.perceptual_samples)
        real = self.predictor.tokenizer.check(frames[row[few], target[few]][:, None])[:, 0]
        distance = self._perceptual[0]
        assert distance is not None
        return distance(self.predictor.decode_expected(logits[few], (grid[0], grid[1])), real)

    def _inverse_dynamics_loss(self, inputs: Tensor, actions: Tensor | None) -> Tensor:
        """Of contexts that did not read the actions: from those that did it would be no question."""
        if actions is None or self.predictor.inverse_dynamics is None or self.predictor.action_dim is None:
            raise ValueError("inverse dynamics needs the actions")
        contexts, _ = self.predictor.encode(inputs)
        pairs = torch.cat([contexts[:, :-1], contexts[:, 1:]], dim=-1)
        taken = pad_actions(actions, self.predictor.action_dim, actions.shape[:2])[:, 1:]
        return F.mse_loss(self.predictor.inverse_dynamics(pairs), taken)


def random_visible(count: int, grid: Sequence[int], device: torch.device) -> Tensor:
    """Which tokens to show, bool `[count, h, w]`: none for one half, MaskGIT's cosine schedule for the other."""
    places = grid[0] * grid[1]
    masked = torch.cos(torch.rand(count, 1, device=device) * torch.pi / 2)
    masked = torch.where(torch.rand(count, 1, device=device) < 0.5, 1.0, masked)
    order = torch.rand(count, places, device=device).argsort(-1).argsort(-1)
    return (order >= (masked * places).ceil().clamp_min(1)).view(count, *grid)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum()

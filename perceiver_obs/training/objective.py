"""From the settings of `train-predictor` to its objective and the batches that it takes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.clips import ClipPlace, RolloutClips
from perceiver_obs.modules.adapters import pad_actions
from perceiver_obs.objectives.latent import LatentObjective, LatentTargets
from perceiver_obs.objectives.perceptual import PerceptualDistance
from perceiver_obs.objectives.predictor import PredictorObjective
from perceiver_obs.objectives.sampling import ClipSampling, LossWeights
from perceiver_obs.objectives.states import StateTargets
from perceiver_obs.training.settings import TrainPredictorSettings

PRIVILEGED = "privileged"  # entry of a frame contract that says what but frames a model was trained on
STATE = "state"


def make_objective(
    model: CausalPerceiverIO,
    settings: TrainPredictorSettings,
    tasks: Sequence[str],
    num_states: int,
    device: torch.device,
) -> PredictorObjective:
    """The objective, not fitted to data yet.

    Args:
        model: whose predictor is trained.
        settings: weights and all else.
        tasks: of the groups of data.
        num_states: coordinates of the state, of the task that has most; 0 where none is known.
        device: of the perceptual distance, which is no part of the objective's module.

    Raises:
        ValueError: states are to be regressed, but none is known.
    """
    weights = LossWeights(
        cross_entropy=settings.cross_entropy_weight,
        perceptual=settings.perceptual_weight,
        edge=settings.edge_weight,
        contrastive=settings.contrastive_weight,
        reward=settings.reward_weight,
        pixel=settings.pixel_weight,
        state=settings.state_weight,
    )
    if weights.state and not num_states:
        raise ValueError("regressing states needs rollouts with states; none of these hold any")
    latent = None
    if weights.heads:
        targets = LatentTargets(
            tasks, model.video_shape[1:], weights.heads, settings.edge_order, settings.latent_horizon, num_states
        )
        latent = LatentObjective(targets, model.predictor.context_dim, model.action_dim)
    sampling = ClipSampling(settings.samples, settings.horizons, settings.token_predictions, settings.foreground_weight)
    distance = PerceptualDistance().to(device) if weights.perceptual else None
    goal = model.standardize if settings.condition == "goal" else None
    return PredictorObjective(model.predictor, weights, sampling, latent, distance, goal)


def clip_batch(
    clips: RolloutClips,
    places: Sequence[ClipPlace],
    codes: Callable[[], tuple[Tensor, Tensor]],
    groups: Sequence[int],
    objective: PredictorObjective,
    states: StateTargets | None,
) -> dict[str, Tensor]:
    """What an objective takes of clips, on the CPU.

    Args:
        clips, places: what was drawn.
        codes: gives vectors and tokens of these clips; not asked where frames are read.
        groups: the group of each dataset of `clips`.
        objective: names what it needs.
        states: of the datasets, where they are regressed.
    """
    weights, predictor = objective.weights, objective.predictor
    batch = {}
    if predictor.frame_adapter is None:
        batch["vectors"], batch["tokens"] = codes()
    if predictor.period > 1:
        batch["first"] = torch.tensor([place.start for place in places])
    if predictor.action_dim is not None:
        actions = torch.from_numpy(clips.actions(places))
        batch["actions"] = pad_actions(actions, predictor.action_dim, actions.shape[:2])
    if predictor.frame_adapter is not None or weights.perceptual or weights.heads:
        batch["frames"] = torch.from_numpy(clips.frames(places))
    if weights.heads:
        batch["groups"] = torch.tensor([groups[place.dataset] for place in places])
    if weights.reward:
        batch["rewards"] = torch.from_numpy(clips.rewards(places))
    if weights.state:
        assert states is not None
        assert objective.latent is not None
        batch["states"] = states.clips(places, clips.index.clip_length, objective.latent.targets.num_states)
    return batch


def training_contract(
    contract: dict[str, Any], settings: TrainPredictorSettings, begun: CausalPerceiverIO | None
) -> dict[str, Any]:
    """A model's frame contract, which says that it was trained on states, in this run or in one before."""
    before = begun.frame_contract.get(PRIVILEGED) if begun is not None else None
    privileged = STATE if settings.state_weight else before
    return contract if privileged is None else {**contract, PRIVILEGED: privileged}

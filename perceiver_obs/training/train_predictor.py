"""Second stage: a Perceiver that reads frames through a trained tokenizer and foretells the next tokens."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.frame_contract import FrameContract
from perceiver_obs.hub import find_pretrained
from perceiver_obs.isolation import isolated, seed_generators
from perceiver_obs.modules.adapters import pad_actions
from perceiver_obs.predictor import PerceiverTokenPredictor
from perceiver_obs.tokenizer import VQPTTokenizer
from perceiver_obs.training.checkpoint import state_digest
from perceiver_obs.training.data import ClipPlace, RolloutClips
from perceiver_obs.training.data_record import read_data_record, write_data_record
from perceiver_obs.training.datasets import joint_contract, open_datasets, split_episodes
from perceiver_obs.training.loop import Evaluation, Stage, make_accelerator, seed_step, train
from perceiver_obs.training.outlines import Outlines, task_groups
from perceiver_obs.training.perceptual import PerceptualDistance
from perceiver_obs.training.predictor_evaluation import PredictorEvaluation
from perceiver_obs.training.predictor_objective import LossWeights, PredictorObjective
from perceiver_obs.training.report import save_section
from perceiver_obs.training.run_directory import RunDirectory
from perceiver_obs.training.settings import RunSettings, may_change
from perceiver_obs.training.state_objective import StateTargets
from perceiver_obs.training.token_cache import TokenCache

HELD_OUT_BATCHES = 4
STATISTICS_BATCHES, STATISTICS_CLIPS, STATISTICS_LENGTH = 16, 4, 64


@dataclass
class TrainPredictorSettings(RunSettings):
    """Train the Perceiver to foretell tokens from its contexts, over a tokenizer that stays as it is."""

    out: str = may_change("runs/predictor")
    """Directory of the run, which becomes the model's. Running again goes on from the last checkpoint."""
    tokenizer: str = "runs/tokenizer"
    """Directory of the trained tokenizer."""
    begin_with: str | None = None
    """Go on from the weights of this model (bundled name, directory or "hf://owner/name") and with its tokenizer, for
    a new task or for frames of policies. The sizes below must be its own; a lower learning rate keeps more of it."""
    batch_size: int = 16
    """Clips per step and per process (two GPUs see twice as many). Small batches and many steps learn fastest."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    clip_length: int = 15
    """Frames of a training clip."""
    sequence_length: int = 6
    """Frames that one context sees, its own included."""
    reads: Literal["tokens", "frames"] = "tokens"
    """What the Perceiver reads: the tokenizer's code vectors, or frames by convolutions of its own. Frames need
    inputs_per_frame, and no keypoints."""
    inputs_per_frame: int | None = 8
    """Linear maps of a frame's whole grid that the Perceiver reads in place of its tokens; None reads every token."""
    keypoints: int | None = 64
    """Points found in each frame, which these maps are of in place of the grid; None: of the grid."""
    token_time_kernel: int = 1
    """Frames joined in each of the Perceiver's inputs."""
    num_latents: int = 8
    """Latents of the Perceiver for each frame."""
    num_latent_channels: int = 128
    """Width of the latents, and of the context that a policy reads."""
    num_cross_attention_heads: int = 4
    """Heads of every attention."""
    num_self_attention_layers: int = 1
    """Self-attention blocks over the latents of a frame."""
    widening_factor: int = 2
    """Hidden width of the MLPs, in widths of the latents."""
    num_decoder_layers: int = 1
    """Blocks of the queries that foretell a frame from a context."""
    dropout: float = 0.0
    """Dropout in training passes."""
    timescales: tuple[str, ...] = ()
    """Contexts of several horizons side by side: any of "fast", "medium" (4 frames) and "slow" (16 frames)."""
    read_actions: bool = True
    """Read the actions that led to each frame, and predict under those to come."""
    horizons: tuple[int, ...] = (0, 1, 2, 3)
    """Steps ahead to foretell tokens, drawn evenly; 0 is the frame itself."""
    cross_entropy_weight: float = 0.1
    """Weight of the cross-entropy of the tokens."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual distance between decoded and true frames. Slow on a CPU."""
    regression_weight: float = 0.0
    """Weight of the squared error of the code vectors."""
    inverse_dynamics_weight: float = 0.0
    """Weight of telling the action from two contexts in a row."""
    foreground_weight: float = 0.0
    """Extra weight of places that move in their clip."""
    outline_weight: float = 1.0
    """Weight of telling outlines, low spatial frequencies of the edges in frames, and how they change."""
    contrastive_weight: float = 0.3
    """Weight of picking the frames to come from among all frames of the batch, by their outlines."""
    reward_weight: float = 0.3
    """Weight of foretelling the rewards of the next steps, of what decides about them. 0 learns without rewards."""
    pixel_weight: float = 0.0
    """Weight of drawing frames from contexts, their own and one to come. It costs a decoder's pass."""
    state_weight: float = 0.0
    """Weight of regressing the recorded simulator state: privileged training, for data with states. What a model learns
    so is not learned from pixels alone: say so where you report results."""
    outline_order: int = 10
    """Spatial frequencies of the outlines, in each direction."""
    outline_horizon: int = 6
    """Steps ahead that contexts are moved, by one linear map, to tell and to pick outlines; all of them at once."""
    samples: int = 5
    """Frames of each clip whose contexts are trained."""
    token_predictions: int | None = 8
    """Predictions of tokens a step, drawn from the samples of all clips; None predicts from each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.horizons or min(self.horizons) < 0:
            raise ValueError(f"horizons must be numbers of steps from 0 up, got {self.horizons}")
        if self.outline_horizon < 1:
            raise ValueError(f"outline_horizon must be at least 1, got {self.outline_horizon}")
        longest = max(*self.horizons, self.outline_horizon if self.reads_outlines else 0)
        if self.clip_length <= longest:
            raise ValueError(f"clip_length must exceed the longest horizon {longest}, got {self.clip_length}")

    @property
    def needs_frames(self) -> bool:
        """Whether anything but tokens is read."""
        return self.reads == "frames" or self.perceptual_weight > 0 or self.reads_outlines

    @property
    def reads_outlines(self) -> bool:
        """Whether an objective needs outlines, or what predicts them ahead."""
        return any(
            weight > 0
            for weight in (
                self.outline_weight,
                self.contrastive_weight,
                self.reward_weight,
                self.pixel_weight,
                self.state_weight,
            )
        )


def train_predictor(settings: TrainPredictorSettings) -> CausalPerceiverIO:
    """Trains, or goes on training, a predictor; saves the whole model and a report in `settings.out`.

    Returns the model. Raises FileNotFoundError or ValueError if data, tokenizer, settings or checkpoint do not
    fit, OSError on a full disk.
    """
    with isolated(device=settings.device):
        return _train(settings)


def _train(settings: TrainPredictorSettings) -> CausalPerceiverIO:
    accelerator = make_accelerator(settings)
    run = RunDirectory(settings.out, settings)
    stage = PredictorStage(settings, run, accelerator)
    outcome = train(stage, settings, run, accelerator)
    if accelerator.is_main_process and not (outcome.was_complete and run.report.exists()):
        stage.fit_context_statistics(accelerator.device)
        stage.model.save_pretrained(run.path)
        write_data_record(run.path, stage.clips.datasets, read_data_record(stage.made_from) or ())
        save_section(run.path, stage.evaluation.section(run, outcome, accelerator.device))
    accelerator.print(f"predictor: {outcome.describe()} in {run.path}; report: {run.report}")
    accelerator.wait_for_everyone()
    return CausalPerceiverIO.from_pretrained(run.path)


def make_outlines(model: CausalPerceiverIO, settings: TrainPredictorSettings, num_groups: int) -> Outlines | None:
    """Outlines as settings ask for them, not fitted yet; None where no objective reads them."""
    if not settings.reads_outlines:
        return None
    return Outlines(settings.outline_order, num_groups, model.video_shape[2:], settings.outline_horizon)


def make_objective(
    predictor: PerceiverTokenPredictor,
    settings: TrainPredictorSettings,
    outlines: Outlines | None,
    device: torch.device,
    num_states: int | None = None,
) -> PredictorObjective:
    """The objective that settings ask for, not fitted to the data yet; with `outlines` where they read any."""
    return PredictorObjective(
        predictor,
        LossWeights(
            cross_entropy=settings.cross_entropy_weight,
            perceptual=settings.perceptual_weight,
            regression=settings.regression_weight,
            inverse_dynamics=settings.inverse_dynamics_weight,
            outline=settings.outline_weight,
            contrastive=settings.contrastive_weight,
            reward=settings.reward_weight,
            pixel=settings.pixel_weight,
            state=settings.state_weight,
        ),
        settings.horizons,
        settings.samples,
        settings.foreground_weight,
        perceptual_distance=PerceptualDistance().to(device) if settings.perceptual_weight else None,
        outlines=outlines,
        token_predictions=settings.token_predictions,
        num_states=num_states,
    )


def _take_weights(model: CausalPerceiverIO, begun: CausalPerceiverIO) -> None:
    """Gives a model the weights of another of its shape; ValueError names what differs."""
    # Through JSON and back, as one of them was read from a file.
    has, asked = (json.loads(json.dumps({**each.config(), "frame_contract": None})) for each in (begun, model))
    differing = [f"{name} is {has[name]!r} there and {asked[name]!r} here" for name in has if has[name] != asked[name]]
    if differing:
        raise ValueError(f"begin_with needs settings of that model's shape: {'; '.join(differing)}")
    model.load_state_dict(begun.state_dict())


class PredictorStage(Stage):
    """Clips of cached tokens in, tokens of later frames out."""

    def __init__(self, settings: TrainPredictorSettings, run: RunDirectory, accelerator: Accelerator):
        self.settings = settings
        datasets = open_datasets(settings.data)
        splits = [split_episodes(dataset, settings.held_out_fraction) for dataset in datasets]
        self.clips = RolloutClips(datasets, [train for train, _ in splits], settings.clip_length)
        self.held_out = RolloutClips(datasets, [held_out for _, held_out in splits], settings.clip_length)
        tasks, self.groups = task_groups(datasets)
        begun = None if settings.begin_with is None else CausalPerceiverIO.from_pretrained(settings.begin_with)
        tokenizer = VQPTTokenizer.from_pretrained(settings.tokenizer) if begun is None else begun.tokenizer
        self.made_from = find_pretrained(settings.begin_with or settings.tokenizer)
        contract = joint_contract(datasets)
        self.inputs = {"data": str(contract.data_fingerprint), "tokenizer": state_digest(tokenizer)}
        self.model = self._build_model(tokenizer, contract, begun)
        if begun is not None:
            self.inputs["begin_with"] = begun.fingerprint
            _take_weights(self.model, begun)
        self.cache = TokenCache(run.token_cache, tokenizer, datasets)
        self.cache.fill(accelerator)
        if begun is None:
            self.model.predictor.set_token_statistics(*self.cache.statistics(self.clips.episodes))
        outlines = make_outlines(self.model, settings, len(tasks))
        self.states = StateTargets(datasets) if settings.state_weight else None
        num_states = None if self.states is None else self.states.size
        self.module = make_objective(self.model.predictor, settings, outlines, accelerator.device, num_states)
        self.module.fit(self.clips, self.groups, settings.seed, self.states)
        self.evaluation = PredictorEvaluation(
            self.model, self.cache, self.clips, self.held_out, settings.evaluation_clips
        )

    def _build_model(
        self, tokenizer: VQPTTokenizer, contract: FrameContract, begun: CausalPerceiverIO | None
    ) -> CausalPerceiverIO:
        settings = self.settings
        # A model of several tasks may read larger actions than those of this data.
        action_dim = max(self.clips.action_dim, (begun and begun.action_dim) or 0)
        seed_generators(settings.seed)
        model = CausalPerceiverIO.from_tokenizer(
            tokenizer,
            video_shape=(settings.sequence_length, *contract.frame_shape),
            num_latents=settings.num_latents,
            num_latent_channels=settings.num_latent_channels,
            num_cross_attention_heads=settings.num_cross_attention_heads,
            num_self_attention_layers=settings.num_self_attention_layers,
            widening_factor=settings.widening_factor,
            num_decoder_layers=settings.num_decoder_layers,
            token_time_kernel=settings.token_time_kernel,
            inputs_per_frame=settings.inputs_per_frame,
            keypoints=settings.keypoints,
            reads=settings.reads,
            dropout=settings.dropout,
            timescales=settings.timescales,
            action_dim=action_dim if settings.read_actions else None,
        )
        model.frame_contract = contract.to_json()
        model.tokenizer.requires_grad_(False)
        return model

    def batch(self, step: int, rank: int) -> dict[str, Tensor]:
        places = self.clips.index.draw(self.settings.batch_size, self.settings.seed, step, rank)
        return self._batch_of(self.clips, places)

    def _batch_of(self, clips: RolloutClips, places: Sequence[ClipPlace]) -> dict[str, Tensor]:
        vectors, tokens = self.cache.clips(places, self.settings.clip_length)
        batch = {"vectors": vectors, "tokens": tokens}
        if self.model.action_dim is not None:
            actions = torch.from_numpy(clips.actions(places))
            batch["actions"] = pad_actions(actions, self.model.action_dim, actions.shape[:2])
        if self.settings.needs_frames:
            batch["frames"] = torch.from_numpy(clips.frames(places))
        if self.settings.reads_outlines:
            batch["groups"] = torch.tensor([self.groups[place.dataset] for place in places])
        if self.settings.reward_weight:
            batch["rewards"] = torch.from_numpy(clips.rewards(places))
        if self.states is not None:
            batch["states"] = self.states.clips(places, self.settings.clip_length)
        return batch

    def evaluate(self, device: torch.device) -> Evaluation:
        losses = []
        for number in range(HELD_OUT_BATCHES):
            places = self.held_out.index.draw(self.settings.batch_size, seed=0, step=number)
            batch = self._batch_of(self.held_out, places)
            seed_step(0, number, 0)
            losses.append(self.module(**{name: tensor.to(device) for name, tensor in batch.items()}))
        scalars = {
            f"evaluation/{name}": float(torch.stack([each[name] for each in losses]).mean()) for name in losses[0]
        }
        for name, value in self.evaluation.accuracies(device).items():
            scalars[f"evaluation/accuracy_{name}"] = value
        strip = self.evaluation.continuations(device, count=1)[0]
        rows = (strip.happened[strip.num_context_frames :], strip.predicted)
        return Evaluation(scalars, {"future": np.concatenate([np.concatenate(list(r), axis=1) for r in rows])})

    def fit_context_statistics(self, device: torch.device) -> None:
        """Centres and scales the finished model's contexts over long training clips.

        Contexts of a clip's first frames, which see less than those of a running episode, are left out.
        """
        self.model.to(device).eval()
        shortest = min(d.lengths[e] for d, of in zip(self.clips.datasets, self.clips.episodes) for e in of)
        clips = RolloutClips(self.clips.datasets, self.clips.episodes, min(STATISTICS_LENGTH, shortest))
        num_partial = min(self.model.receptive_field - 1, clips.index.clip_length // 2)
        contexts = []
        for number in range(STATISTICS_BATCHES):
            places = clips.index.draw(STATISTICS_CLIPS, self.settings.seed, number)
            video = torch.from_numpy(clips.frames(places)).to(device)
            actions = torch.from_numpy(clips.actions(places)).to(device) if self.settings.read_actions else None
            contexts.append(self.model.extract_context(video, actions)[:, num_partial:].flatten(0, 1))
        first_timescale = torch.cat(contexts)[:, : len(self.model.context_mean)]
        self.model.set_context_statistics(first_timescale.mean(0), first_timescale.std(0))

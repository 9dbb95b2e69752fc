"""Second stage: a Perceiver that reads frames through a trained tokenizer and predicts the next tokens."""

import json
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.clips import ClipPlace, RolloutClips
from perceiver_obs.data.data_record import read_data_record, write_data_record
from perceiver_obs.data.splits import joint_contract, open_datasets, split_episodes, task_groups
from perceiver_obs.frame_contract import FrameContract
from perceiver_obs.hub import find_pretrained
from perceiver_obs.isolation import isolated, seed_generators
from perceiver_obs.objectives.predictor import PredictorObjective
from perceiver_obs.objectives.saved_heads import save_heads, take_up_heads
from perceiver_obs.objectives.states import StateTargets
from perceiver_obs.reporting.sections import save_section
from perceiver_obs.tokenizer import VQPTTokenizer
from perceiver_obs.training.checkpoint import RunDirectory, state_digest
from perceiver_obs.training.loop import Evaluation, Stage, make_accelerator, seed_step, train
from perceiver_obs.training.objective import clip_batch, make_objective, training_contract
from perceiver_obs.training.predictor_evaluation import PredictorEvaluation
from perceiver_obs.training.settings import TrainPredictorSettings
from perceiver_obs.training.token_cache import TokenCache
from perceiver_obs.training.train_tokenizer import load_tokenizer

HELD_OUT_BATCHES = 4
STATISTICS_BATCHES, STATISTICS_CLIPS, STATISTICS_LENGTH = 16, 4, 64


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
        if stage.module.latent is not None:
            save_heads(run.path, stage.module.latent)
        write_data_record(run.path, stage.clips.datasets, read_data_record(stage.made_from) or ())
        save_section(run.path, stage.evaluation.section(run, outcome, accelerator.device))
    accelerator.print(f"predictor: {outcome.describe()} in {run.path}; report: {run.report}")
    accelerator.wait_for_everyone()
    return CausalPerceiverIO.from_pretrained(run.path)


def _take_weights(model: CausalPerceiverIO, begun: CausalPerceiverIO) -> None:
    """Gives a model the weights of another of its shape; ValueError names what differs."""
    # Through JSON and back, as one of them was read from a file.
    has, asked = (json.loads(json.dumps({**each.config(), "frame_contract": None})) for each in (begun, model))
    differing = [f"{name} is {has[name]!r} there and {asked[name]!r} here" for name in has if has[name] != asked[name]]
    if differing:
        raise ValueError(f"begin_with needs settings of that model's shape: {'; '.join(differing)}")
    model.load_state_dict(begun.state_dict())


class PredictorStage(Stage):
    """Clips of cached tokens, or of frames, in; tokens of later frames out."""

    module: PredictorObjective

    def __init__(self, settings: TrainPredictorSettings, run: RunDirectory, accelerator: Accelerator):
        self.settings = settings
        datasets, weights = open_datasets(settings.data)
        splits = [split_episodes(dataset, settings.held_out_fraction) for dataset in datasets]
        self.clips = RolloutClips(datasets, [train for train, _ in splits], settings.clip_length, weights)
        self.held_out = RolloutClips(datasets, [held_out for _, held_out in splits], settings.clip_length, weights)
        tasks, self.groups = task_groups(datasets)
        begun = None if settings.begin_with is None else CausalPerceiverIO.from_pretrained(settings.begin_with)
        tokenizer = load_tokenizer(settings.tokenizer) if begun is None else begun.tokenizer
        self.made_from = find_pretrained(settings.begin_with or settings.tokenizer)
        contract = joint_contract(datasets)
        self.inputs = {"data": str(contract.data_fingerprint), "tokenizer": state_digest(tokenizer)}
        self.model = self._build_model(tokenizer, contract, begun)
        if begun is not None:
            self.inputs["begin_with"] = begun.fingerprint
            _take_weights(self.model, begun)
        self.cache = TokenCache(run.token_cache, tokenizer, datasets)
        if settings.reads == "tokens":
            self.cache.fill(accelerator)
        if begun is None:
            self.model.predictor.set_token_statistics(*self.cache.statistics(self.clips.episodes))
        self.states = StateTargets.of(datasets) if settings.state_weight else None
        num_states = 0 if self.states is None else self.states.size
        self.module = make_objective(self.model, settings, tasks, num_states, accelerator.device)
        if settings.begin_with is not None and self.module.latent is not None:
            accelerator.print(take_up_heads(self.module.latent, self.made_from))
        self.module.fit(self.clips, self.groups, settings.seed, self.states)
        self.evaluation = PredictorEvaluation(
            self.model,
            self.cache,
            self.clips,
            self.held_out,
            settings.evaluation_clips,
            shows_tokenizer=begun is not None,
            has_goals=settings.condition == "goal",
        )

    def _build_model(
        self, tokenizer: VQPTTokenizer, contract: FrameContract, begun: CausalPerceiverIO | None
    ) -> CausalPerceiverIO:
        settings = self.settings
        # A model of several tasks may read larger actions than those of this data.
        action_dim = max(self.clips.action_dim, (begun and begun.action_dim) or 0)
        context_dim = settings.num_latent_channels * max(1, len(settings.timescales))
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
            condition_dim=context_dim if settings.condition == "goal" else None,
        )
        model.frame_contract = training_contract(contract.to_json(), settings, begun)
        model.tokenizer.requires_grad_(False)
        return model

    def batch(self, step: int, rank: int) -> dict[str, Tensor]:
        places = self.clips.index.draw(self.settings.batch_size, self.settings.seed, step, rank)
        return self._batch_of(self.clips, places)

    def _batch_of(self, clips: RolloutClips, places: Sequence[ClipPlace]) -> dict[str, Tensor]:
        codes = partial(self.cache.clips, places, self.settings.clip_length)
        return clip_batch(clips, places, codes, self.groups, self.module, self.states)

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
        clips = self.clips.of_length(min(STATISTICS_LENGTH, shortest))
        num_partial = min(self.model.receptive_field - 1, clips.index.clip_length // 2)
        contexts = []
        for number in range(STATISTICS_BATCHES):
            places = clips.index.draw(STATISTICS_CLIPS, self.settings.seed, number)
            video = torch.from_numpy(clips.frames(places)).to(device)
            actions = torch.from_numpy(clips.actions(places)).to(device) if self.settings.read_actions else None
            contexts.append(self.model.extract_context(video, actions)[:, num_partial:].flatten(0, 1))
        every = torch.cat(contexts)
        mean, scale_before = every.mean(0), self.model.context_scale.clone()
        self.model.set_context_statistics(mean, every.std(0))
        if self.settings.condition == "goal":
            self.model.predictor.future.standardize_condition(mean, self.model.context_scale / scale_before)

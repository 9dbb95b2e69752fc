"""First stage: a tokenizer that turns frames into tokens and back."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.clips import RolloutClips
from perceiver_obs.data.data_record import read_data_record, write_data_record
from perceiver_obs.data.splits import joint_contract, open_datasets, split_episodes, task_groups
from perceiver_obs.hub import find_pretrained, saved_class
from perceiver_obs.isolation import isolated, seed_generators
from perceiver_obs.objectives.motion import CLIP_LENGTH, FRAMES_SEEN, MotionObjective
from perceiver_obs.reporting.sections import save_section
from perceiver_obs.settings import setting_changes
from perceiver_obs.tokenizer import VQPTTokenizer
from perceiver_obs.training.checkpoint import RunDirectory, state_digest
from perceiver_obs.training.loop import Evaluation, Stage, make_accelerator, train
from perceiver_obs.training.quality import used_share
from perceiver_obs.training.settings import TrainTokenizerSettings
from perceiver_obs.training.tokenizer_evaluation import HeldOutReconstruction, reconstruct_held_out, tokenizer_section

TRAINING_ONLY = ("commitment_weight", "diversity_weight")  # arguments of a tokenizer that its shape does not depend on


def train_tokenizer(settings: TrainTokenizerSettings) -> VQPTTokenizer:
    """Trains, or goes on training, a tokenizer; saves it and a report in `settings.out` and returns it.

    Raises FileNotFoundError or ValueError if data, settings or checkpoint do not fit, OSError on a full disk.
    """
    with isolated(device=settings.device):
        return _train(settings)


def _train(settings: TrainTokenizerSettings) -> VQPTTokenizer:
    accelerator = make_accelerator(settings)
    run = RunDirectory(settings.out, settings)
    stage = TokenizerStage(settings)
    outcome = train(stage, settings, run, accelerator)
    if accelerator.is_main_process and not (outcome.was_complete and run.report.exists()):
        stage.tokenizer.save_pretrained(run.path)
        begun_on = None if settings.begin_with is None else read_data_record(find_pretrained(settings.begin_with))
        write_data_record(run.path, stage.clips.datasets, begun_on or ())
        held_out = stage.reconstruct_held_out(accelerator.device)
        save_section(run.path, tokenizer_section(run, outcome, stage.tokenizer, held_out))
    accelerator.print(f"tokenizer: {outcome.describe()} in {run.path}; report: {run.report}")
    accelerator.wait_for_everyone()
    return VQPTTokenizer.from_pretrained(run.path)


def load_tokenizer(name: str) -> VQPTTokenizer:
    """A tokenizer, or that of a whole model: bundled name, directory or "hf://owner/name"."""
    if saved_class(name) == CausalPerceiverIO.__name__:
        return CausalPerceiverIO.from_pretrained(name).tokenizer
    return VQPTTokenizer.from_pretrained(name)


class TokenizerObjective(nn.Module):
    """The tokenizer's losses as one forward pass, which data-parallel training asks for."""

    # Those of earlier versions, in checkpoints.
    FORMER_TENSORS: ClassVar = {
        "motion.of_outlines.motion.forth.": "motion.latent.dynamics.transition.",
        "motion.of_outlines.motion.back.": "motion.latent.dynamics.inverse.",
        "motion.of_outlines.motion.of_action.": "motion.latent.dynamics.action.",
        "motion.of_outlines.head.": "motion.latent.edge_decoder.",
        "motion.of_outlines.outlines.": "motion.latent.edge_targets.",
        "motion.of_outlines.": "motion.latent.",
    }

    def __init__(self, tokenizer: VQPTTokenizer, motion: MotionObjective | None, settings: TrainTokenizerSettings):
        super().__init__()
        self.tokenizer = tokenizer
        self.motion = motion
        self.weight, self.contrastive_weight = settings.motion_weight, settings.contrastive_weight

    def forward(self, frames: Tensor, pixel_weights: Tensor | None = None, **moving: Tensor) -> dict[str, Tensor]:
        """`loss` and its parts; `moving` are the `clips`, `actions` and `groups` of `MotionObjective`."""
        output = self.tokenizer(frames, pixel_weights)
        names = ("loss", "reconstruction_loss", "commitment_loss", "diversity_loss", "perplexity")
        parts = {name: getattr(output, name) for name in names}
        if self.motion is not None:
            vectors = self.tokenizer.encode_vectors(moving["clips"][:, :FRAMES_SEEN])
            motion = self.motion(vectors, **moving)
            parts["loss"] = parts["loss"] + self.weight * (
                motion["edge"] + self.contrastive_weight * motion["contrastive"]
            )
            parts |= motion
        return parts


class TokenizerStage(Stage):
    """Clips of frames in, reconstruction and code usage out."""

    def __init__(self, settings: TrainTokenizerSettings):
        self.settings = settings
        datasets, weights = open_datasets(settings.data)
        self.inputs = {"data": str(joint_contract(datasets).data_fingerprint)}
        splits = [split_episodes(dataset, settings.held_out_fraction) for dataset in datasets]
        self.clips = RolloutClips(datasets, [train for train, _ in splits], settings.clip_length, weights)
        self.held_out = RolloutClips(datasets, [held_out for _, held_out in splits], settings.clip_length, weights)
        seed_generators(settings.seed)
        self.tokenizer = VQPTTokenizer(
            in_channels=datasets[0].frame_contract.frame_shape[0],
            code_dim=settings.code_dim,
            num_codes=settings.num_codes,
            downsample=settings.downsample,
            base_channels=settings.base_channels,
            use_3d_conv=settings.use_3d_conv,
            temporal_downsample=settings.temporal_downsample,
            num_quantizers=settings.num_quantizers,
            commitment_weight=settings.commitment_weight,
            diversity_weight=settings.diversity_weight,
            quantizer=settings.quantizer,
            stem_stride=settings.stem_stride,
        )
        if settings.begin_with is not None:
            begun = load_tokenizer(settings.begin_with)
            if differences := setting_changes(begun.config(), self.tokenizer.config(), TRAINING_ONLY):
                raise ValueError(f"begin_with needs settings of that tokenizer's shape: {differences}")
            self.inputs["begin_with"] = state_digest(begun)
            self.tokenizer.load_state_dict(begun.state_dict())
        motion = None
        if settings.motion_weight:
            try:
                self.moving = self.clips.of_length(CLIP_LENGTH)
            except ValueError as error:
                raise ValueError(f"{error}, or leave motion out (motion_weight 0)") from None
            motion = self._motion_objective()
        self.module = TokenizerObjective(self.tokenizer, motion, settings)

    def _motion_objective(self) -> MotionObjective:
        settings = self.settings
        tasks, self.groups = task_groups(self.moving.datasets)
        frame_shape = self.moving.datasets[0].frame_contract.frame_shape
        vector_size = (frame_shape[1] // settings.downsample) ** 2 * settings.code_dim
        motion = MotionObjective(vector_size, tasks, frame_shape, settings.edge_order, self.moving.action_dim)
        motion.latent.fit(self.moving, self.groups, settings.seed)
        return motion

    def batch(self, step: int, rank: int) -> dict[str, Tensor]:
        places = self.clips.index.draw(self.settings.batch_size, self.settings.seed, step, rank)
        frames = self.clips.frames(places)
        batch = {"frames": torch.from_numpy(frames)}
        if self.settings.foreground_weight > 0:
            weights = 1 + self.settings.foreground_weight * self.clips.foreground(places, frames)
            batch["pixel_weights"] = torch.from_numpy((weights / weights.mean()).astype(np.float32))
        if self.settings.motion_weight:
            places = self.moving.index.draw(self.settings.batch_size, self.settings.seed, step, rank)
            batch["clips"] = torch.from_numpy(self.moving.frames(places))
            batch["actions"] = torch.from_numpy(self.moving.actions(places))
            batch["groups"] = torch.tensor([self.groups[place.dataset] for place in places])
        return batch

    def reconstruct_held_out(self, device: torch.device) -> HeldOutReconstruction:
        return reconstruct_held_out(self.tokenizer, self.held_out, self.settings.evaluation_clips, device)

    def evaluate(self, device: torch.device) -> Evaluation:
        held_out = self.reconstruct_held_out(device)
        scalars = {"evaluation/psnr": held_out.psnr, "evaluation/foreground_psnr": held_out.foreground_psnr}
        for book, share in enumerate(used_share(held_out.code_counts)):
            scalars[f"evaluation/codes_used_{book + 1}"] = float(share)
        rows = [np.concatenate(list(frames), axis=1) for frames in (held_out.originals, held_out.decoded)]
        return Evaluation(scalars, {"reconstruction": np.concatenate(rows)})

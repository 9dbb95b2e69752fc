"""Settings of both trainings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from perceiver_obs.settings import resumable


@dataclass
class RunSettings:
    """What every training run has in common."""

    data: tuple[str, ...] = ("runs/data",)
    """Rollout directories to learn from. Several are mixed in equal parts, whatever their sizes; runs/data=2 is drawn
    from twice as often as the others (weights of a directory that is named again add up)."""
    out: str = resumable("runs/training")
    """Directory of the run. Running again with the same settings goes on from its last checkpoint."""
    steps: int = resumable(10_000)
    """Optimiser steps of the whole run. The learning rate follows this number, not the clock.
    Raise it to go on: the learning rate rises again to where it stands in the longer run."""
    batch_size: int = 32
    """Clips per step and per process (two GPUs see twice as many)."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    warmup_steps: int = 200
    """Steps over which the learning rate rises from 0 to its peak; a cosine then takes it to a tenth."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW, on matrices and kernels only."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    seed: int = 0
    """Seed of the weights, of the order of the data and of every random choice."""
    held_out_fraction: float = 0.1
    """Share of the episodes kept for evaluation (at least one)."""
    max_minutes: float | None = resumable(None)
    """Minutes after which the run, resumed or not, ends even if steps remain: it saves, evaluates, and says so.
    Raise it to go on. None: no limit."""
    evaluate_every: int = resumable(500)
    """Steps between evaluations on held-out episodes."""
    evaluation_clips: int = resumable(128)
    """Held-out clips that an evaluation looks at."""
    checkpoint_every: int = resumable(500)
    """Steps between checkpoints; a kill loses at most so many."""
    log_every: int = resumable(10)
    """Steps between lines in metrics.jsonl and TensorBoard."""
    device: str = resumable("auto")
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""
    mixed_precision: bool = True
    """Compute in bfloat16 where the device is a GPU (never on a CPU)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "evaluation_clips", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.data:
            raise ValueError("data names no rollout directory")
        if not 0 < self.held_out_fraction < 1:
            raise ValueError(f"held_out_fraction must lie between 0 and 1, got {self.held_out_fraction}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f'device must be "auto", "cpu" or "cuda", got {self.device!r}')


@dataclass
class TrainTokenizerSettings(RunSettings):
    """Train a tokenizer on collected rollouts: frames become tokens, and tokens decode to frames again."""

    out: str = resumable("runs/tokenizer")
    """Directory of the run. Running again with the same settings goes on from its last checkpoint."""
    begin_with: str | None = None
    """Go on from the weights of this tokenizer, or of this model's (bundled name, directory or "hf://owner/name"), on
    frames of another kind. The sizes below must be its own."""
    batch_size: int = 16
    """Clips per step and per process (two GPUs see twice as many)."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of AdamW."""
    clip_length: int = 1
    """Frames of a training clip. Spatio-temporal convolutions learn across them and need several."""
    foreground_weight: float = 4.0
    """Extra weight of pixels that differ from their episode's median frame, where the motion is. 0: none."""
    code_dim: int = 32
    """Width of the code vectors, which the Perceiver reads."""
    num_codes: int = 256
    """Codes in each codebook."""
    num_quantizers: int = 4
    """Codebooks; each codes what the ones before it left over."""
    downsample: int = 8
    """Pixels of a token's side, a power of two: 64 x 64 pixels become 8 x 8 tokens."""
    base_channels: int = 24
    """Channels after the first convolution; doubled at each further halving."""
    stem_stride: int = 4
    """Pixels that the first convolution steps over, a power of two; 4 makes the encoder several times cheaper."""
    use_3d_conv: bool = False
    """Spatio-temporal convolutions (this frame and two before in each block) rather than frame by frame."""
    temporal_downsample: bool = False
    """Halve the time axis of the tokens. Such a tokenizer compresses clips; contexts cannot be built on it."""
    quantizer: Literal["vq", "fsq"] = "vq"
    """"vq": learned codebooks; "fsq": a fixed grid."""
    commitment_weight: float = 0.05
    """Weight of the loss that keeps code vectors near their codes."""
    diversity_weight: float = 0.01
    """Weight of the loss that asks for even code usage."""
    motion_weight: float = 0.1
    """Weight of predicting edge targets and how they change from code vectors, so that these hold motion. 0: none."""
    contrastive_weight: float = 0.1
    """Part of it that picking the right frame has."""
    edge_order: int = 10
    """Spatial frequencies of the edge targets, in each direction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.motion_weight and self.temporal_downsample:
            raise ValueError("a tokenizer with temporal_downsample cannot learn motion: set motion_weight to 0")


@dataclass
class TrainPredictorSettings(RunSettings):
    """Train the Perceiver to predict tokens from its contexts, over a tokenizer that stays as it is."""

    out: str = resumable("runs/predictor")
    """Directory of the run, which becomes the model's. Running again goes on from the last checkpoint."""
    tokenizer: str = "runs/tokenizer"
    """Directory of the trained tokenizer, or of a model whose tokenizer serves (also a bundled name)."""
    begin_with: str | None = None
    """Go on from the weights of this model (bundled name, directory or "hf://owner/name"), with its tokenizer and the
    objective's heads beside it, for a new task or for frames of policies. The sizes below must be its own; a lower
    learning rate keeps more of it."""
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
    """Spatial softmax keypoints of each frame, which these maps are of in place of the grid; None: of the grid."""
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
    """Blocks of the queries that predict a frame from a context."""
    dropout: float = 0.0
    """Dropout in training passes."""
    timescales: tuple[str, ...] = ()
    """Memories side by side in a context: any of "fast" (the last sequence_length frames), "medium" (as many of every
    4th frame) and "slow" (of every 16th). They remember as long as clip_length is; none means "fast" alone."""
    read_actions: bool = True
    """Read the actions that led to each frame, and predict under those to come."""
    condition: Literal["goal"] | None = None
    """What predictions are conditioned on beside actions: "goal", the context of a later frame of the same episode, so
    that `generate --goal` continues towards a frame."""
    horizons: tuple[int, ...] = (1, 2, 3)
    """Steps ahead to predict tokens, drawn evenly."""
    cross_entropy_weight: float = 0.1
    """Weight of the cross-entropy of the tokens."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual distance of decoded to true frames. Slow on a CPU; needs the extra `perceptual`."""
    foreground_weight: float = 0.0
    """Extra weight of places that move in their clip, for a Perceiver that reads tokens."""
    edge_weight: float = 1.0
    """Weight of predicting edge targets, low spatial frequencies of the edges in frames, and how they change."""
    contrastive_weight: float = 0.3
    """Weight of picking the frames to come from among all frames of the batch, by their edge targets."""
    reward_weight: float = 0.3
    """Weight of predicting the rewards of the next steps, of what decides about them. 0 learns without rewards."""
    pixel_weight: float = 0.0
    """Weight of decoding frames from contexts, their own and one to come. It costs a decoder's pass."""
    state_weight: float = 0.0
    """Weight of regressing the recorded simulator state: privileged training, for data with states. What a model learns
    so is not learned from pixels alone; its frame contract and its report say so."""
    edge_order: int = 10
    """Spatial frequencies of the edge targets, in each direction."""
    latent_horizon: int = 6
    """Steps of the rollout of latent dynamics, whose contexts predict and pick edge targets; all of them at once."""
    samples: int = 5
    """Frames of each clip whose contexts are trained."""
    token_predictions: int | None = 8
    """Predictions of tokens a step, drawn from the samples of all clips; None predicts from each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.horizons or min(self.horizons) < 1:
            raise ValueError(f"horizons must be numbers of steps from 1 up, got {self.horizons}")
        if self.foreground_weight and self.reads == "frames":
            raise ValueError("foreground_weight is for a Perceiver that reads tokens, not frames")
        if self.latent_horizon < 1:
            raise ValueError(f"latent_horizon must be at least 1, got {self.latent_horizon}")
        longest = max(*self.horizons, self.latent_horizon if self.predicts_latents else 0)
        if self.clip_length <= longest:
            raise ValueError(f"clip_length must exceed the longest horizon {longest}, got {self.clip_length}")

    @property
    def predicts_latents(self) -> bool:
        """Whether an objective needs edge targets, or what predicts them ahead."""
        return any(
            weight > 0
            for weight in (
                self.edge_weight,
                self.contrastive_weight,
                self.reward_weight,
                self.pixel_weight,
                self.state_weight,
            )
        )


FORMER_NAMES = {"outline_weight": "edge_weight", "outline_order": "edge_order", "outline_horizon": "latent_horizon"}
FORMER_WEIGHTS = ("regression_weight", "inverse_dynamics_weight")  # of objectives that are gone


def current_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a version before has written, by the names of this one.

    What had no effect is left out: a weight of 0 of an objective that is gone, and a horizon of 0 steps.
    """
    settings = {FORMER_NAMES.get(name, name): value for name, value in saved.items()}
    settings = {name: value for name, value in settings.items() if name not in FORMER_WEIGHTS or value}
    if isinstance(horizons := settings.pop("horizons", None), list):
        horizons = [steps for steps in horizons if steps]
    return {**settings, "horizons": horizons} if horizons else settings

"""The training loop of both stages, on one device or on many (Accelerate, torchrun)."""

import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from perceiver_obs.data.clips import prefetch
from perceiver_obs.isolation import seed_generators
from perceiver_obs.reporting.metrics import MetricsLog
from perceiver_obs.settings import check_same_inputs, check_same_settings, settings_to_dict
from perceiver_obs.training.checkpoint import RunDirectory, load_checkpoint, save_checkpoint
from perceiver_obs.training.settings import RunSettings


class RunInterrupted(KeyboardInterrupt):
    """A run was asked to stop and has saved its state; `signal_number` says by which signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """While entered, SIGINT and SIGTERM set `signal_number` instead of ending the process.

    A second SIGINT interrupts at once. Outside the main thread, where Python forbids handlers, signals keep
    their usual meaning.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._former: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave


FINAL_LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Evaluation:
    """Scalars by name (`evaluation/psnr`) and pictures uint8 `[H, W, 3]` by name."""

    scalars: Mapping[str, float]
    pictures: Mapping[str, NDArray[np.uint8]]


class Stage(ABC):
    """What a training stage brings to the loop.

    Attributes:
        module: called with a batch's tensors as keywords, gives a mapping of scalar tensors with `loss`.
        inputs: fingerprints of what the stage reads, by name; a run is resumed with the same ones only.
    """

    module: nn.Module
    inputs: dict[str, str]

    @abstractmethod
    def batch(self, step: int, rank: int) -> dict[str, Tensor]:
        """The batch of a step, on the CPU: a pure function of step and rank."""

    @abstractmethod
    def evaluate(self, device: torch.device) -> Evaluation:
        """Looks at held-out data with the module in eval mode; called on the first process only."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: after `step` of `steps`, or `was_complete` before this call and not touched."""

    step: int
    steps: int
    was_complete: bool = False

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    def describe(self) -> str:
        return f"{self.step:,}" if self.finished else f"{self.step:,} of {self.steps:,} (time limit)"


def make_accelerator(settings: RunSettings) -> Accelerator:
    """The devices of a run. Make it before the model: quantisers ask whether there are several processes.

    Raises ValueError if CUDA is asked for and absent.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError('device "cuda" was asked for, but torch finds no CUDA device; use "auto" or "cpu"')
    on_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="bf16" if settings.mixed_precision and not on_cpu else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def learning_rate(step: int, settings: RunSettings) -> float:
    """The learning rate of the step numbered from 0: linear warm-up, then a cosine to a tenth."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(progress, 1))) / 2
    return settings.learning_rate * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds every generator for one step, so that random choices depend on nothing before it; see `isolated`."""
    seed_generators(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def make_optimizer(module: nn.Module, settings: RunSettings) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels but not norms, biases and single vectors."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99))


class OptimizerSteps:
    """Takes the steps of trainings and adaptations: seeded, clipped, and only where everything is finite.

    Args:
        module: called with a batch's tensors as keywords, gives a mapping of scalar tensors with `loss`.
        optimizer: of its parameters.
        settings: seed and the norm that gradients are clipped to.
        accelerator: of the run; module and optimiser may be prepared by it.
        device: of the module.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: RunSettings,
        accelerator: Accelerator,
        device: torch.device,
    ):
        self.module, self.optimizer, self.settings = module, optimizer, settings
        self.accelerator, self.device = accelerator, device

    def take(self, step: int, rate: float, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Takes the step numbered `step` from 0, at a learning rate, and returns what the module gave.

        Raises FloatingPointError, before anything has changed, if a loss or the gradient is not finite.
        """
        seed_step(self.settings.seed, step, self.accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.module(**{name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()})
        self.optimizer.zero_grad()
        self.accelerator.backward(losses["loss"])
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.settings.max_grad_norm)
        named = {**losses, "gradient_norm": norm}
        values = torch.stack([value.detach().float() for value in named.values()]).tolist()
        scalars = dict(zip(named, values))
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} became {value} at step {step}")
        self.optimizer.step()
        return scalars


def train(stage: Stage, settings: RunSettings, run: RunDirectory, accelerator: Accelerator) -> Outcome:
    """Trains from the last checkpoint, or from the start, to the last step or the time limit.

    A run that was killed goes on to the result of an unbroken one: batches, random choices and learning rate
    are functions of the step, and the rest is in the checkpoint. On the CPU the two are bit-identical.

    Raises:
        RunInterrupted: after saving, on SIGINT or SIGTERM.
        FloatingPointError: a loss or the gradient is not finite; the last good checkpoint is left alone.
    """
    return _Training(stage, settings, run, accelerator).run_steps()


def _bar_format(max_minutes: float | None) -> str | None:
    """tqdm's own; where time may end the run first, without the time that is left for all steps."""
    if max_minutes is None:
        return None
    return (
        f"{{n_fmt}} of {{total_fmt}} steps [{{elapsed}} of at most {max_minutes:.3g} minutes, {{rate_fmt}}{{postfix}}]"
    )


class _Training:
    def __init__(self, stage: Stage, settings: RunSettings, run: RunDirectory, accelerator: Accelerator):
        self.stage, self.settings, self.run, self.accelerator = stage, settings, run, accelerator
        optimizer = make_optimizer(stage.module, settings)
        self.step, self.minutes_before = 0, 0.0
        if run.checkpoint.exists():
            checkpoint = load_checkpoint(run.checkpoint)
            check_same_settings(checkpoint.settings, settings, str(run.checkpoint))
            check_same_inputs(checkpoint.inputs, stage.inputs, str(run.checkpoint))
            checkpoint.restore(stage.module, optimizer)
            self.step, self.minutes_before = checkpoint.step, checkpoint.minutes
        self.started = time.monotonic()
        self.module, self.optimizer = accelerator.prepare(stage.module, optimizer)
        self.optimizer_steps = OptimizerSteps(self.module, self.optimizer, settings, accelerator, accelerator.device)

    def run_steps(self) -> Outcome:
        settings = self.settings
        if self.step >= settings.steps or (self.step and self._out_of_time()):
            return Outcome(self.step, settings.steps, was_complete=True)
        with ExitStack() as stack:
            log = None
            if self.accelerator.is_main_process:
                self.run.write_settings(settings)
                log = stack.enter_context(closing(MetricsLog(self.run.metrics, self.run.tensorboard, self.step)))
            bar = tqdm(
                total=settings.steps,
                initial=self.step,
                unit="step",
                bar_format=_bar_format(settings.max_minutes),
                disable=log is None,
                dynamic_ncols=True,
            )
            stack.enter_context(bar)
            request = stack.enter_context(StopRequest())
            stop = self._steps(log, bar, request)
        if stop:
            raise RunInterrupted(
                f"stopped at step {self.step} of {settings.steps}, saved in {self.run.checkpoint}; "
                "the same command goes on from there",
                stop,
            )
        return Outcome(self.step, settings.steps)

    def _steps(self, log: MetricsLog | None, bar: tqdm, request: StopRequest) -> int | None:
        """Runs steps to the last one or to a stop, and returns what stopped it (`_agreed_stop`)."""
        settings, rank = self.settings, self.accelerator.process_index
        self.module.train()
        for batch in prefetch(lambda step: self.stage.batch(step, rank), range(self.step, settings.steps)):
            scalars = self._optimize(batch)
            self.step += 1
            stop = self._agreed_stop(request.signal_number)
            last = self.step == settings.steps or stop is not None
            bar.set_postfix(loss=f"{scalars['loss']:.4f}", refresh=False)
            bar.update()
            if log and (self.step % settings.log_every == 0 or last):
                log.write(self.step, {f"train/{name}": value for name, value in scalars.items()})
            if self.step % settings.evaluate_every == 0 or (last and not stop):
                self._evaluate(log)
            if self.step % settings.checkpoint_every == 0 or last:
                self._save()
            if stop is not None:
                return stop
        return None

    def _optimize(self, batch: dict[str, Tensor]) -> dict[str, float]:
        rate = learning_rate(self.step, self.settings)
        try:
            scalars = self.optimizer_steps.take(self.step, rate, batch)
        except FloatingPointError as error:
            saved = "there is no checkpoint yet"
            if self.run.checkpoint.exists():
                saved = f"the last good checkpoint is {self.run.checkpoint}"
            raise FloatingPointError(f"{error}; {saved}. A lower learning rate may help") from None
        return {**scalars, "learning_rate": rate}

    def _minutes(self) -> float:
        """Time spent on the run so far, also before it was resumed."""
        return self.minutes_before + (time.monotonic() - self.started) / 60

    def _out_of_time(self) -> bool:
        return self.settings.max_minutes is not None and self._minutes() >= self.settings.max_minutes

    def _agreed_stop(self, signal_number: int | None) -> int | None:
        """The signal to stop for, 0 for the time limit, None to go on: the same on every process."""
        code = signal_number if signal_number is not None else 0 if self._out_of_time() else -1
        if self.accelerator.num_processes > 1:
            codes = self.accelerator.gather(torch.tensor([code], device=self.accelerator.device))
            code = int(codes.max())
        return None if code < 0 else code

    def _evaluate(self, log: MetricsLog | None) -> None:
        if log:
            module = self.accelerator.unwrap_model(self.module)
            module.eval()
            with torch.no_grad():
                evaluation = self.stage.evaluate(self.accelerator.device)
            module.train()
            log.write(self.step, evaluation.scalars)
            log.write_pictures(self.step, evaluation.pictures)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            module = self.accelerator.unwrap_model(self.module)
            settings, inputs = settings_to_dict(self.settings), self.stage.inputs
            save_checkpoint(self.run.checkpoint, module, self.optimizer, self.step, settings, inputs, self._minutes())
        self.accelerator.wait_for_everyone()

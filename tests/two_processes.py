"""Training on two processes, which know of each other what torchrun would tell them."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from perceiver_obs.training.checkpoint import RunDirectory, state_digest
from perceiver_obs.training.loop import make_accelerator, train
from perceiver_obs.training.settings import RunSettings, TrainPredictorSettings, TrainTokenizerSettings
from perceiver_obs.training.train_predictor import PredictorStage, train_predictor
from perceiver_obs.training.train_tokenizer import TokenizerStage, train_tokenizer


def train_on_two_processes(tokenizer: TrainTokenizerSettings, predictor: TrainPredictorSettings) -> None:
    """Trains each whole, and once more with a stop; each process writes `rank{number}.json` into the directories."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_both_stages, args=(rank, port, tokenizer, predictor)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def _both_stages(rank: int, port: int, tokenizer: TrainTokenizerSettings, predictor: TrainPredictorSettings) -> None:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    _run(tokenizer, lambda settings, *_: TokenizerStage(settings), train_tokenizer)
    _run(predictor, PredictorStage, train_predictor)


def _run(settings: RunSettings, make_stage: Callable[..., Any], job: Callable[..., Any]) -> None:
    accelerator, before, after = _trained(settings, make_stage)
    stopped = replace(settings, out=settings.out + "-stopped")
    _trained(replace(stopped, max_minutes=1e-9), make_stage)
    resumed = _trained(stopped, make_stage)[2]
    result = {"world": accelerator.num_processes, "before": before, "after": after, "resumed": resumed}
    (Path(settings.out) / f"rank{accelerator.process_index}.json").write_text(json.dumps(result))
    accelerator.wait_for_everyone()
    job(settings)  # finds the steps done, and exports and reports


def _trained(settings: RunSettings, make_stage: Callable[..., Any]) -> tuple[Any, str, str]:
    accelerator = make_accelerator(settings)
    directory = RunDirectory(settings.out, settings)
    stage = make_stage(settings, directory, accelerator)
    before = state_digest(stage.module)
    train(stage, settings, directory, accelerator)
    return accelerator, before, state_digest(stage.module)

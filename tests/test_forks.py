"""Contexts in forked processes, where the threads of the parent's pools are missing, and in copies."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from moving_square import MovingSquare

from perceiver_obs import ContextEncoder, PerceiverContextWrapper

SCRIPT = """
import multiprocessing, os, signal, sys
from functools import partial
import gymnasium as gym, numpy as np, torch
from moving_square import MovingSquare
from perceiver_obs import ContextEncoder, PerceiverContextWrapper

torch.set_num_threads(2)
gym.register("tests/Square-v0", MovingSquare, kwargs={"length": 3})
actions = np.ones((2, 1), np.float32)

def play(mode, backend, model):
    wrappers = [partial(PerceiverContextWrapper, model=model, backend=backend)]
    venv = gym.make_vec("tests/Square-v0", num_envs=2, vectorization_mode=mode, wrappers=wrappers)
    return np.stack([venv.reset(seed=0)[0], *(venv.step(actions)[0] for _ in range(4))]), venv

def push(encoder, pipe):
    pipe.send(encoder.push(frames))

frames, kept = np.full((1, 64, 64, 3), 9, np.uint8), []
for backend, model in (("torch", "dmc-small"), ("onnx", sys.argv[1])):
    expected, _ = play("sync", backend, model)
    found, venv = play("async", backend, model)
    kept.append(venv)
    print(backend, "vector", np.abs(found - expected).max() < 1e-5, flush=True)
    encoder = ContextEncoder(model, backend=backend)
    encoder.push(frames)
    here, there = multiprocessing.Pipe()
    multiprocessing.get_context("fork").Process(target=push, args=(encoder, there)).start()
    found = here.recv()
    print(backend, "inherited", np.abs(found - encoder.push(frames)).max() < 1e-5, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_forked_workers_compute_and_end_with_a_parent_that_is_killed(action_model, tmp_path):
    action_model.save_pretrained(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    # Workers that outlive the script hold its output open, and are waited for until the time is over.
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise
    parts = [f"{backend} {part} True" for backend in ("torch", "onnx") for part in ("vector", "inherited")]
    assert printed.splitlines() == parts


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_copies_and_pickles_go_on_by_themselves(action_model, tmp_path, backend):
    action_model.save_pretrained(tmp_path)
    env = PerceiverContextWrapper(MovingSquare(length=20), str(tmp_path), backend=backend)
    env.reset(seed=0)
    env.step(np.ones(1, np.float32))
    copies = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    expected = [env.step(np.full(1, 0.5, np.float32))[0] for _ in range(3)]
    for other in copies:
        assert other.encoder.backend == backend
        np.testing.assert_array_equal([other.step(np.full(1, 0.5, np.float32))[0] for _ in range(3)], expected)


def test_a_copied_encoder_has_rows_of_its_own(action_model):
    encoder = ContextEncoder(action_model, 2, backend="onnx")
    frames = np.full((2, 64, 64, 3), 50, np.uint8)
    first = encoder.push(frames)
    other = copy.deepcopy(encoder)
    encoder.reset()
    assert np.abs(other.push(frames) - first).max() > 1e-3
    np.testing.assert_array_equal(encoder.push(frames), first)

"""Apart from the caller's global settings: random generators, torch's default dtype, threads after a fork."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_forked = False


@contextmanager
def isolated(seed: int | None = None, device: str | torch.device = "cpu") -> Iterator[None]:
    """Has torch, NumPy and Python draw from generators of our own inside, and torch make float32 tensors.

    What is set globally outside, and the next number that is drawn there, stay as they were.

    Args:
        seed: of the numbers drawn inside; None begins where the global generators stand.
        device: what is computed on; "auto" and GPUs isolate the generators of all GPUs too.
    """
    if str(device) != "cpu" and torch.cuda.is_available():
        torch.cuda.init()  # GPUs have generators only from here on
    generators = [(generator, generator.get_state()) for generator in _generators()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (libraries draw from it)
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        if seed is not None:
            seed_generators(seed)
        yield
    finally:
        torch.set_default_dtype(dtype)
        for generator, state in generators:
            generator.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 (as above)


def seed_generators(seed: int) -> None:
    """Seeds the generators of torch, NumPy and Python; only inside `isolated`."""
    for generator in _generators():
        generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from it)


def _generators() -> list[torch.Generator]:
    gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return [torch.default_generator, *gpus]


def one_thread_if_forked() -> None:
    """Has torch compute with one thread in a forked process: call it before computing.

    The threads of its pools stay behind in the parent, and a parallel region would wait for them for ever.
    """
    global _forked
    if _forked:
        torch.set_num_threads(1)
        _forked = False


def _after_fork_in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

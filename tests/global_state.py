"""What nothing of ours may change: the global random generators, and torch's default dtype."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def _drawn() -> tuple:
    """What the generators would give next, with nothing drawn from them."""
    name, keys, *position = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), position, torch.get_default_dtype()


@contextmanager
def untouched() -> Iterator[None]:
    """Fails where the code inside draws from a global generator, or seeds one."""
    before = _drawn()
    yield
    assert _drawn() == before

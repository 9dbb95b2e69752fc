"""A long stream of frames over several rows that end at random, watched for leaks and checked against the offline."""

import gc
import resource
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from perceiver_obs import CausalPerceiverIO, ContextEncoder
from perceiver_obs.settings import Backend

POOL = 512  # different frames


@dataclass(frozen=True)
class Soaked:
    """What a soak found: rows times pushes, checks made, the largest difference, and memory in MB on the way."""

    steps: int
    resets: int
    checks: int
    largest_difference: float
    memory_mb: list[float]


def soak(
    model: CausalPerceiverIO,
    rows: int,
    pushes: int,
    backend: Backend = "torch",
    reset_chance: float = 1 / 200,
    check_chance: float = 1 / 100,
    seed: int = 0,
    samples: int = 20,
) -> Soaked:
    """Pushes random frames and actions, beginning episodes anew at random, and recomputes contexts at random."""
    random = np.random.default_rng(seed)
    _, channels, height, width = model.video_shape
    pool = random.integers(0, 256, (POOL, height, width, channels), dtype=np.uint8)
    actions = random.normal(size=(POOL, model.action_dim or 0)).astype(np.float32)
    encoder = ContextEncoder(model, rows, "cpu", backend)
    # One frame more than a context sees, since the action of a clip's first frame is not read.
    seen: list[deque[int]] = [deque(maxlen=model.receptive_field + 1) for _ in range(rows)]
    resets, differences, memory = 0, [0.0], []
    for number in range(pushes):
        ended = np.flatnonzero(random.random(rows) < reset_chance)
        if len(ended):
            encoder.reset(ended)
            resets += len(ended)
            for row in ended:
                seen[row].clear()
        chosen = random.integers(POOL, size=rows)
        for row, frame in enumerate(chosen):
            seen[row].append(int(frame))
        contexts = encoder.push(pool[chosen], actions[chosen] if model.action_dim else None)
        if random.random() < check_chance:
            row = int(random.integers(rows))
            clip = list(seen[row])
            video = torch.from_numpy(pool[clip]).permute(0, 3, 1, 2)[None]
            led = torch.from_numpy(actions[clip])[None] if model.action_dim else None
            offline = model.extract_context(video, led)[0, -1].numpy()
            differences.append(float(np.abs(offline - contexts[row]).max()))
        if number % max(1, pushes // samples) == 0:
            gc.collect()
            memory.append(_resident_mb())
    return Soaked(rows * pushes, resets, len(differences) - 1, max(differences), memory)


def _resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return round(int(file.read().split()[1]) * resource.getpagesize() / 1e6, 1)

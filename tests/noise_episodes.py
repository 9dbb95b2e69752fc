"""Episodes of noise and their metadata, for the writer itself; apart, as processes that write import little else."""

import numpy as np

SIZE, ACTION_SIZE, STATES = 8, 2, ["position/a", "position/b", "velocity/a"]


def meta(states=True, **changes):
    return {
        "env": {"id": "dmc/reacher-easy-v0", "kwargs": {"size": SIZE}},
        "frame_contract": {"size": SIZE, "channels": 3, "tasks": ["reacher-easy"]},
        "action_size": ACTION_SIZE,
        "state_names": STATES if states else None,
        **changes,
    }


def episode(steps=5, states=True, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "pixels": rng.integers(0, 256, (steps + 1, SIZE, SIZE, 3), np.uint8),
        "actions": rng.uniform(-1, 1, (steps, ACTION_SIZE)).astype(np.float32),
        "rewards": rng.normal(size=steps).astype(np.float32),
        "terminated": False,
        "truncated": True,
        "seed": seed,
        "policy": "random",
        "states": rng.normal(size=(steps + 1, len(STATES))).astype(np.float32) if states else None,
    }

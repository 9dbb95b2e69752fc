"""What a context costs per step, beside what it replaces and what a frame costs to render.

Everything is timed in one process, in turns, so that the ratios hold on a noisy machine. Writes
`benchmarks/results/streaming.json`; run it by `make bench`.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from agents.made_with import processor
from envs import make_dmc
from perceiver_obs import CausalPerceiverIO, ContextEncoder, PerceiverContextWrapper

RESULTS = Path(__file__).parent / "results" / "streaming.json"
PUBLISHED = dict(
    video_shape=(16, 3, 64, 64),
    num_latents=128,
    num_latent_channels=256,
    num_self_attention_layers=6,
    num_codes=1024,
    downsample=4,
)


def time_in_turns(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Median and quartiles of each step in milliseconds; one of each in every round."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    result = {}
    for name, values in seconds.items():
        low, median, high = (1e3 * q for q in statistics.quantiles(values, n=4))
        result[name] = {"median_ms": round(median, 3), "quartiles_ms": [round(low, 3), round(high, 3)]}
    return result


def random_frames(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8)


def push_step(model: CausalPerceiverIO, rows: int, warm_up: int) -> Callable[[], object]:
    encoder, frames = ContextEncoder(model, rows, "cpu"), random_frames(rows)
    for _ in range(warm_up):
        encoder.push(frames)
    return lambda: encoder.push(frames)


def recompute_step(model: CausalPerceiverIO) -> Callable[[], object]:
    """The whole window again at every step, with nothing cached."""
    window = torch.randint(0, 256, (1, *model.video_shape), dtype=torch.uint8)

    def step() -> None:
        with torch.inference_mode():
            model.contexts(window)

    return step


def env_step(env) -> Callable[[], object]:
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    return step


def main() -> None:
    torch.set_num_threads(1)
    model = CausalPerceiverIO.from_pretrained("dmc-small")
    window = model.video_shape[0]
    published = {
        name: CausalPerceiverIO(**PUBLISHED, use_3d_conv=three_d).eval()
        for name, three_d in (("2d", False), ("3d", True))
    }
    dmc = {quality: make_dmc("walker-walk", render_quality=quality) for quality in ("standard", "fast")}
    wrapped = {q: PerceiverContextWrapper(make_dmc("walker-walk", render_quality=q)) for q in ("standard", "fast")}
    timings = time_in_turns(
        {
            "dmc-small, streaming": push_step(model, 1, warm_up=100),
            "dmc-small, streaming after 10,000 frames": push_step(model, 1, warm_up=10_000),
            "dmc-small, window recomputed": recompute_step(model),
            "dmc-small, streaming, 16 rows": push_step(model, 16, warm_up=2 * window),
            **{f"env step, {q}": env_step(env) for q, env in dmc.items()},
            **{f"env step with contexts, {q}": env_step(env) for q, env in wrapped.items()},
        },
        rounds=300,
    )
    timings |= time_in_turns(
        {f"published size {name}, window recomputed": recompute_step(m) for name, m in published.items()}, rounds=7
    )
    ms = {name: entry["median_ms"] for name, entry in timings.items()}
    step = ms["dmc-small, streaming"]
    ratios = {
        "window recomputed / streaming": ms["dmc-small, window recomputed"] / step,
        "published size 2d, recomputed / dmc-small, streaming": ms["published size 2d, window recomputed"] / step,
        "published size 3d, recomputed / dmc-small, streaming": ms["published size 3d, window recomputed"] / step,
        "frame 10,000 / frame 100": ms["dmc-small, streaming after 10,000 frames"] / step,
        "16 rows / 16 single steps": ms["dmc-small, streaming, 16 rows"] / (16 * step),
        "streaming / env step, standard": step / ms["env step, standard"],
        "streaming / env step, fast": step / ms["env step, fast"],
        "steps per second with contexts / bare, standard": ms["env step, standard"]
        / ms["env step with contexts, standard"],
        "steps per second with contexts / bare, fast": ms["env step, fast"] / ms["env step with contexts, fast"],
        "standard / fast env step": ms["env step, standard"] / ms["env step, fast"],
    }
    machine = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "mujoco", "dm_control")},
    }
    results = {
        "machine": machine,
        "window": window,
        "receptive_field": model.receptive_field,
        "timings": timings,
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    for name, value in results["ratios"].items():
        print(f"{value:10.2f}  {name}")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()

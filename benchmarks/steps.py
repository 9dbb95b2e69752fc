"""What a context costs per step, beside what it replaces, what a frame costs to render, and what the machine allows.

Everything is timed in one process, on one thread, in turns. Writes `results/steps.json`; run it by `make bench`.
"""

import time
import tracemalloc
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import onnx
import torch
from measure import time_in_turns, write_results
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ResNetConfig, ResNetModel

from agents import VecPerceiverContext
from envs import make_dmc
from perceiver_obs import CausalPerceiverIO, ContextEncoder, PerceiverContextWrapper
from perceiver_obs.modules.timescales import STRIDES
from perceiver_obs.settings import Backend
from perceiver_obs.step_graph import step_graph

ROWS = 16
LONG_WINDOW = 16
PUBLISHED = dict(
    video_shape=(16, 3, 64, 64),
    num_latents=128,
    num_latent_channels=256,
    num_self_attention_layers=6,
    num_codes=1024,
    downsample=4,
)
BACKENDS: tuple[Backend, ...] = ("torch", "onnx")


def random_frames(rows: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, size, size, 3), dtype=np.uint8)


def push_step(model: CausalPerceiverIO, rows: int, backend: Backend, warm_up: int) -> Callable[[], object]:
    encoder, frames = ContextEncoder(model, rows, "cpu", backend), random_frames(rows)
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


def with_window(model: CausalPerceiverIO, window: int) -> CausalPerceiverIO:
    """A model of the same size that sees more frames, with random weights."""
    return CausalPerceiverIO(**{**model.config(), "video_shape": (window, *model.video_shape[1:])}).eval()


def with_all_timescales(model: CausalPerceiverIO) -> CausalPerceiverIO:
    """A model of the same size that reads the past at further strides too, with random weights."""
    return CausalPerceiverIO(**{**model.config(), "timescales": tuple(STRIDES)}).eval()


def network_step(network: nn.Module, shape: tuple[int, ...]) -> Callable[[], object]:
    network.eval()
    pixels = torch.rand(shape)

    def step() -> None:
        with torch.inference_mode():
            network(pixels)

    return step


def resnet18() -> nn.Module:
    """The network of R3M (Nair et al. 2022, arXiv:2203.12601), by random weights: only its time counts here."""
    return ResNetModel(ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512]))


def nature_cnn() -> nn.Module:
    return NatureCNN(gym.spaces.Box(0, 255, (9, 64, 64), np.uint8), normalized_image=True)


class RecordedFrames(VecEnv):
    """Rows that show the same frames again and again, at no cost of their own."""

    render_mode = None

    def __init__(self, rows: int):
        frames = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        super().__init__(rows, frames, gym.spaces.Box(-1, 1, (6,), np.float32))
        self.frames = random_frames(rows)
        self.rewards, self.dones = np.zeros(rows, np.float32), np.zeros(rows, bool)

    def reset(self):
        return self.frames

    def step_async(self, actions):
        pass

    def step_wait(self):
        return self.frames, self.rewards, self.dones, [{} for _ in range(self.num_envs)]

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name, value, indices=None):
        setattr(self, attr_name, value)

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise NotImplementedError  # no Gymnasium environments are inside

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


def venv_step(venv: VecEnv) -> Callable[[], object]:
    venv.reset()
    actions = np.zeros((venv.num_envs, 6), np.float32)
    return lambda: venv.step(actions)


def model_step(model: CausalPerceiverIO, rows: int) -> Callable[[], object]:
    """The model alone, on tensors: what shells and copies add to it is their own."""
    frames, actions = torch.from_numpy(random_frames(rows)).permute(0, 3, 1, 2), torch.zeros(rows, 6)
    state = [model.init_state(rows)]

    def step() -> None:
        state[0] = model.step(frames, state[0], actions)[1]

    return step


def env_step(env: gym.Env) -> Callable[[], object]:
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    return step


def step_flops(model: CausalPerceiverIO) -> int:
    """Floating-point operations of one streaming step of one row, two for a multiply-add."""
    frames, state = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), model.init_state(1)
    with FlopCounterMode(display=False) as counter:
        model.step(frames, state, torch.zeros(1, model.action_dim or 0) if model.action_dim else None)
    return counter.get_total_flops()


def matmul_rate() -> float:
    """Floating-point operations a second of a 1024 x 1024 matrix product, the best of 20."""
    a, b = torch.rand(2, 1024, 1024)
    return 2 * 1024**3 / best_of(20, lambda: a @ b)


def bandwidth() -> float:
    """Bytes a second read and written when 64 MiB are copied, the best of 20."""
    source = torch.rand(16 * 2**20)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_of(20, lambda: target.copy_(source))


def best_of(rounds: int, work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def held_memory(model: CausalPerceiverIO, steps: int) -> int:
    """Bytes that an encoder's state holds after so many steps, counted in its tensors."""
    encoder, frames = ContextEncoder(model, 1, "cpu", "torch"), random_frames(1)
    for _ in range(steps):
        encoder.push(frames)
    storages: dict[int, int] = {}
    encoder._state.map_rows(lambda x: storages.update({x.data_ptr(): x.untyped_storage().nbytes()}) or x)
    return sum(storages.values())


def python_growth(model: CausalPerceiverIO) -> int:
    """Bytes of Python objects that 1,000 steps leave behind."""
    step = push_step(model, 1, "torch", warm_up=100)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(1000):
        step()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return after - before


def main() -> None:
    torch.set_num_threads(1)
    model = CausalPerceiverIO.from_pretrained("dmc-small")
    longer, remembering = with_window(model, LONG_WINDOW), with_all_timescales(model)
    published = {name: CausalPerceiverIO(**PUBLISHED, use_3d_conv=name == "3d").eval() for name in ("2d", "3d")}
    qualities = ("standard", "fast")
    envs = {quality: make_dmc("walker-walk", render_quality=quality) for quality in qualities}

    def wrapped(quality: str, backend: Backend) -> gym.Env:
        return PerceiverContextWrapper(make_dmc("walker-walk", render_quality=quality), backend=backend)

    stacked = VecFrameStack(RecordedFrames(ROWS), 3)
    timings = time_in_turns(
        {
            **{f"small, {b}": push_step(model, 1, b, warm_up=100) for b in BACKENDS},
            **{f"small, {b}, all timescales": push_step(remembering, 1, b, warm_up=100) for b in BACKENDS},
            **{f"small, {b}, after 10,000 frames": push_step(model, 1, b, warm_up=10_000) for b in BACKENDS},
            **{f"small, {b}, {ROWS} rows": push_step(model, ROWS, b, warm_up=20) for b in BACKENDS},
            f"small, {ROWS} rows, the model alone": model_step(model, ROWS),
            f"small, {ROWS} rows, VecPerceiverContext": venv_step(
                VecPerceiverContext(RecordedFrames(ROWS), model, device="cpu", backend="torch")
            ),
            "small, window recomputed": recompute_step(model),
            **{f"window {LONG_WINDOW}, {b}": push_step(longer, 1, b, warm_up=100) for b in BACKENDS},
            f"window {LONG_WINDOW}, recomputed": recompute_step(longer),
            "NatureCNN on 3 frames": network_step(nature_cnn(), (1, 9, 64, 64)),
            f"NatureCNN on 3 frames, {ROWS} rows": network_step(nature_cnn(), (ROWS, 9, 64, 64)),
            f"VecFrameStack, {ROWS} rows": venv_step(stacked),
            "ResNet-18 at 224": network_step(resnet18(), (1, 3, 224, 224)),
            **{f"env step, {q}": env_step(env) for q, env in envs.items()},
            **{f"env step with contexts, {q}, {b}": env_step(wrapped(q, b)) for q in qualities for b in BACKENDS},
        },
        rounds=200,
    )
    slow = {f"published size {name}, recomputed": recompute_step(m) for name, m in published.items()}
    slow[f"ResNet-18 at 224, {ROWS} rows"] = network_step(resnet18(), (ROWS, 3, 224, 224))
    timings |= time_in_turns(slow, rounds=7)
    ms = {name: float(timing["median_ms"]) for name, timing in timings.items()}

    rate, speed = matmul_rate(), bandwidth()
    flops = step_flops(model)
    weights = sum(p.nbytes for n, p in model.named_parameters() if "decoder" not in n and "future" not in n)
    floors = {rows: 1e3 * max(rows * flops / rate, weights / speed) for rows in (1, ROWS)}
    stacked_bytes, context_bytes = 3 * random_frames(1).nbytes, 4 * model.context_dim
    ratios: dict[str, float] = {}
    for b in BACKENDS:
        one, many = ms[f"small, {b}"], ms[f"small, {b}, {ROWS} rows"]
        ratios |= {
            f"window {LONG_WINDOW} recomputed / streaming, {b}": ms[f"window {LONG_WINDOW}, recomputed"]
            / ms[f"window {LONG_WINDOW}, {b}"],
            f"published size 2d recomputed / small, {b}": ms["published size 2d, recomputed"] / one,
            f"published size 3d recomputed / small, {b}": ms["published size 3d, recomputed"] / one,
            f"ResNet-18 / small, {b}": ms["ResNet-18 at 224"] / one,
            f"ResNet-18 / small, {b}, {ROWS} rows": ms[f"ResNet-18 at 224, {ROWS} rows"] / many,
            f"small, {b} / NatureCNN": one / ms["NatureCNN on 3 frames"],
            f"small, {b} / standard env step": one / ms["env step, standard"],
            f"small, {b} / fast env step": one / ms["env step, fast"],
            f"small, {b} / floor": one / floors[1],
            f"small, {b} / floor, {ROWS} rows": many / floors[ROWS],
            f"all timescales / fast alone, {b}": ms[f"small, {b}, all timescales"] / one,
            f"frame 10,000 / frame 100, {b}": ms[f"small, {b}, after 10,000 frames"] / one,
            f"steps per second with contexts / bare, standard, {b}": ms["env step, standard"]
            / ms[f"env step with contexts, standard, {b}"],
            f"steps per second with contexts / bare, fast, {b}": ms["env step, fast"]
            / ms[f"env step with contexts, fast, {b}"],
        }
    alone, shell = ms[f"small, {ROWS} rows, the model alone"], ms[f"small, {ROWS} rows, VecPerceiverContext"]
    held = {steps: held_memory(model, steps) for steps in (100, 10_000)}
    ratios |= {
        "small, window recomputed / streaming, torch": ms["small, window recomputed"] / ms["small, torch"],
        f"VecPerceiverContext / model alone, {ROWS} rows": shell / alone,
        "standard / fast env step": ms["env step, standard"] / ms["env step, fast"],
        "3 stacked frames / context, bytes in a replay buffer": stacked_bytes / context_bytes,
        "state held at frame 10,000 / frame 100, bytes": held[10_000] / held[100],
    }
    results = {
        "window": model.video_shape[0],
        "receptive_field": model.receptive_field,
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_megaflops": round(flops / 1e6, 2),
        "default_backend": ContextEncoder(model, device="cpu").backend,
        "graph_nodes": len(onnx.load_from_string(step_graph(model)[0]).graph.node),
        "matmul_gigaflops_per_second": round(rate / 1e9, 1),
        "copy_gigabytes_per_second": round(speed / 1e9, 1),
        "floor_ms": {str(rows): round(floor, 3) for rows, floor in floors.items()},
        "bytes_held_of_a_row": held[100],
        "python_bytes_left_by_1000_steps": python_growth(model),
        "timings": timings,
    }
    write_results("steps", results, ratios)


if __name__ == "__main__":
    main()

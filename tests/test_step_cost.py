"""What a step may cost, in counts rather than times: operations launched, and what Python keeps."""

import gc
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from perceiver_obs import CausalPerceiverIO, ContextEncoder
from perceiver_obs.onnx_step import OnnxStep
from perceiver_obs.step_graph import step_graph


class CountOperations(TorchDispatchMode):
    """Counts what reaches a kernel; views, which launch nothing, are left out."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def frames(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8)


def operations_of_a_clip(model: CausalPerceiverIO) -> int:
    """Of one pass over a whole clip, which has the same layers and is counted by the same PyTorch."""
    with CountOperations() as counter:
        model.extract_context(torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, 2, 6))
    return counter.count


def operations(encoder: ContextEncoder) -> int:
    pixels, actions = frames(encoder.num_rows), np.zeros((encoder.num_rows, 6), np.float32)
    with CountOperations() as counter:
        encoder.push(pixels, actions)
    return counter.count


@pytest.fixture(scope="module")
def bundled():
    return CausalPerceiverIO.from_pretrained("dmc-small")


@pytest.fixture(scope="module")
def all_timescales(bundled):
    """A model of the bundled one's size, with random weights."""
    return CausalPerceiverIO(**bundled.config() | {"timescales": ("fast", "medium", "slow")}).eval()


def test_operations_of_a_step_do_not_grow(bundled):
    one, many = (ContextEncoder(bundled, rows, "cpu", "torch") for rows in (1, 16))
    counts = [operations(one) for _ in range(200)]
    assert max(counts) <= operations_of_a_clip(bundled), "a step adds nothing to what the layers compute"
    assert min(counts) == max(counts)
    assert {operations(many) for _ in range(2 * bundled.receptive_field)} == {max(counts)}


def test_further_timescales_cost_little_and_the_same_at_every_frame(bundled, all_timescales):
    fast, every = (ContextEncoder(model, 1, "cpu", "torch") for model in (bundled, all_timescales))
    assert len({operations(every) for _ in range(40)}) == 1
    assert flops(every) < 1.25 * flops(fast)
    assert graph_nodes(all_timescales) < 1.6 * graph_nodes(bundled)


def flops(encoder: ContextEncoder) -> int:
    with FlopCounterMode(display=False) as counter:
        encoder.push(frames(1), np.zeros((1, 6), np.float32))
    return counter.get_total_flops()


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_python_keeps_nothing_of_a_step(bundled, backend):
    encoder = ContextEncoder(bundled, 2, "cpu", backend)
    pixels = frames(2)

    def blocks_after(steps: int) -> int:
        for _ in range(steps):
            encoder.push(pixels)
        gc.collect()
        return sys.getallocatedblocks()

    counts = [blocks_after(100) for _ in range(4)]
    # What steps keep, they keep each time; what else goes on in the process comes and goes.
    assert min(after - before for before, after in pairwise(counts)) < 50


def graph_nodes(model: CausalPerceiverIO) -> int:
    import onnx

    return len(onnx.load_from_string(step_graph(model)[0]).graph.node)


def test_a_graph_step_is_one_call_of_few_nodes(bundled):
    steps = OnnxStep(bundled)
    calls = []
    session = steps._session
    steps._session = type("Counted", (), {"run": lambda _, *given: calls.append(1) or session.run(*given)})()
    steps.step(torch.from_numpy(frames(1)).permute(0, 3, 1, 2), steps.init_state(1))
    assert len(calls) == 1
    nodes, config = graph_nodes(bundled), bundled.config()
    assert nodes < 1.25 * operations_of_a_clip(bundled)
    _, *frame_shape = bundled.video_shape
    assert graph_nodes(CausalPerceiverIO(**config | {"video_shape": (24, *frame_shape)})) == nodes, "none a frame"
    assert graph_nodes(CausalPerceiverIO(**config | {"num_latents": 2 * config["num_latents"]})) == nodes

"""The short form of `make soak`."""

import pytest
from soaking import soak


@pytest.mark.parametrize(("backend", "tolerance"), [("torch", 1e-5), ("onnx", 1e-4)])
def test_a_long_stream_stays_exact_and_leaks_nothing(action_model, backend, tolerance):
    found = soak(action_model, rows=4, pushes=400, backend=backend, reset_chance=0.04, check_chance=0.1)
    assert found.resets > 30
    assert found.checks > 20
    assert found.largest_difference < tolerance
    assert found.memory_mb[-1] < found.memory_mb[5] + 20

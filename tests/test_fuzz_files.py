"""Files that were cut short, damaged or made up: a clear error or what they hold, never anything else."""

import pytest
from damaged_files import make_targets, read_damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = (
    *("tokenizer", "model", "dataset", "compressed dataset", "checkpoint"),
    *("policy record", "learning curve", "online episodes", "objective heads", "data record", "training settings"),
    "benchmark results",
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    targets = make_targets(tmp_path_factory.mktemp("whole"))
    assert set(targets) == set(NAMES)
    for target in targets.values():
        target.read(target.directory)
    return targets


@pytest.mark.parametrize("name", NAMES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused(targets, tmp_path, name, seed):
    assert read_damaged(targets[name], tmp_path / "copy", seed) in ("read", "refused")

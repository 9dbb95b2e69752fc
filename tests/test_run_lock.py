"""One trainer a directory, on systems with and without `fcntl`."""

import importlib.util
import sys

import pytest
from test_architecture import FILES, imports

from agents.training.policy_files import LOCK_FILE, RunInUse, only_trainer
from perceiver_obs import files


def test_a_directory_is_held_by_one_and_given_back(tmp_path):
    with only_trainer(tmp_path), pytest.raises(RunInUse, match=str(tmp_path)), only_trainer(tmp_path):
        pass
    with only_trainer(tmp_path):
        assert not list(tmp_path.iterdir())


def test_where_there_is_no_fcntl_files_are_written_and_runs_go_on(tmp_path, monkeypatch):
    """`files` is the only one that imports it, so all else imports where it is missing."""
    assert [name for name, path in FILES.items() if "fcntl" in imports(path)] == ["perceiver_obs.files"]
    monkeypatch.setitem(sys.modules, "fcntl", None)  # what Python takes for "not installed"
    spec = importlib.util.spec_from_file_location("files_without_locks", files.__file__)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    without.write_atomic(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    with without.locked(tmp_path / "file") as held:
        assert held is False
    with only_trainer(tmp_path), only_trainer(tmp_path):  # on Linux, which has no other lock
        assert (tmp_path / LOCK_FILE).exists()

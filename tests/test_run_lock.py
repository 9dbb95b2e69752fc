"""One trainer a directory, on systems with and without `fcntl`."""

import pytest
from fresh_interpreter import run_python

from agents.training.policy_files import RunInUse, only_trainer


def test_a_directory_is_held_by_one_and_given_back(tmp_path):
    with only_trainer(tmp_path), pytest.raises(RunInUse, match=str(tmp_path)), only_trainer(tmp_path):
        pass
    with only_trainer(tmp_path):
        assert not list(tmp_path.iterdir())


def test_agents_import_and_train_where_there_is_no_fcntl(tmp_path):
    printed = run_python(
        "import sys\n"
        "sys.modules['fcntl'] = None\n"
        "from pathlib import Path\n"
        "import agents, agents.training.train_policy\n"
        "from agents.training.policy_files import only_trainer\n"
        f"with only_trainer(Path({str(tmp_path)!r})):\n"
        "    print('held')\n"
    )
    assert "held" in printed.splitlines(), printed

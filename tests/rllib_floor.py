"""The script of the page on RLlib, in an environment with the Gymnasium that RLlib pins. Run by `make rllib`."""

import re
from pathlib import Path

import gymnasium

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "rllib.md"


def test_gymnasium_is_the_one_that_rllib_pins():
    assert gymnasium.__version__ == "1.2.2"


def test_a_few_iterations_of_the_script(capsys):
    exec(compile(re.search(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)[1], str(PAGE), "exec"), {})
    printed = re.findall(r"^(\d): (\d+)\.0 steps, return (\d+\.\d)$", capsys.readouterr().out, re.MULTILINE)
    assert [int(iteration) for iteration, _, _ in printed] == [0, 1, 2]
    assert [int(steps) for _, steps, _ in printed] == [500, 1000, 1500]
    assert all(0 < float(mean) < 1000 for _, _, mean in printed)

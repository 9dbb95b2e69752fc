"""Every snippet of the README runs as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from agents.cli import JOBS, main

README = (Path(__file__).parent.parent / "README.md").read_text()

# The commands at a size for tests; all else is as the README has it.
SMALL = {
    "collect": "--episodes 6 --max-steps 20 --workers 1",
    "train-tokenizer": "--steps 3 --batch-size 2 --base-channels 8 --num-codes 64 --evaluation-clips 4 --device cpu",
    "train-predictor": "--steps 3 --batch-size 2 --clip-length 8 --num-latents 4 --evaluation-clips 4 --device cpu",
    "probe": "--max-episodes 5 --no-mlp",
    "generate": "--num-frames 6",
    "train-policy": "--total-frames 60 --eval-every 60 --eval-episodes 1 --learning-starts 10 --no-progress-bar",
    "evaluate": "--episodes 1",
    "watch": "--max-steps 4 --episodes 3",
}


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", snippets("python"))
def test_python_snippets_run(code):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_commands_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("agents.visualize.episodes.FIT_STEPS", 15)
    commands = [line for block in snippets("bash") for line in block.splitlines() if line.startswith("perceiver-obs")]
    assert {shlex.split(line)[1] for line in commands} <= set(JOBS)
    for line in commands:
        name, *options = shlex.split(line)[1:]
        assert main([name, *options, *shlex.split(SMALL[name])]) == 0, line


def test_make_targets_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)`?", README):
        assert f"\n{target}:" in makefile, target

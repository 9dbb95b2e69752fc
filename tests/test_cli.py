"""The command line: every subcommand explains itself, runs on real frames, and reports wrong input in one line."""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from agents.cli import JOBS, main
from perceiver_obs.settings import check_same_settings, parse_settings, resumable, settings_to_dict

pytest_plugins = ("tiny_data",)


@dataclass
class Example:
    """An example of settings."""

    steps: int = 10
    """How many."""
    name: str | None = None
    """What it is called."""
    data: tuple[str, ...] = ("a", "b")
    """Where it is."""
    fast: bool = True
    """Whether it hurries."""
    rate: float = 0.5
    """How fast."""
    where: Path | None = None
    """Which way."""
    more: dict[str, int | float | str] = field(default_factory=dict)
    """What else."""


@pytest.mark.parametrize("name", JOBS)
def test_help_explains_every_setting(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert f"perceiver-obs {name}" in printed
    settings = JOBS[name].settings_type()
    described = {name for base in settings.__mro__ if is_dataclass(base) for name in described_fields(base)}
    for setting in fields(settings):
        option, positional = f"--{setting.name.replace('_', '-')}", f"[{setting.name.upper()}]"
        assert option in printed or positional in printed
        assert setting.name in described


def described_fields(dataclass_type: type) -> set[str]:
    """Fields of a dataclass, as written, that a docstring follows."""
    body = ast.parse(inspect.getsource(dataclass_type)).body[0].body
    return {
        field.target.id
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def test_commands_are_listed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(f"• {name} {job.summary}" in printed for name, job in JOBS.items())
    assert "OMP_NUM_THREADS" in printed
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert main(["trian-tokenizer"]) == 2
    assert "unknown command 'trian-tokenizer'; did you mean 'train-tokenizer'" in capsys.readouterr().err


def test_the_list_of_commands_waits_for_no_library():
    """On a machine that is busy, importing torch alone takes a minute."""
    slow = ["torch", "stable_baselines3", "dm_control", "gymnasium", "numpy", "matplotlib"]
    code = (
        "import sys, time\nfrom agents.cli import main\ntry: main(['--help'])\n"
        f"finally: print([name for name in {slow} if name in sys.modules], time.process_time(), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    imported, seconds = done.stdout.splitlines()[-2:]
    assert imported == "[]"
    assert float(seconds) < 1


def test_settings_are_read_without_what_they_set():
    code = (
        "import sys\nfrom agents.cli import JOBS, parse_command\nfor name in JOBS: parse_command(name, [])\n"
        "print([name for name in ('torch', 'stable_baselines3', 'dm_control', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_an_option_that_does_not_exist_names_those_of_its_own_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["collect", "--epsodes", "3"])
    error = capsys.readouterr().err
    assert "--episodes" in error
    assert "perceiver-obs evaluate" not in error


def test_the_installed_command_runs():
    command = Path(sys.executable).with_name("perceiver-obs")
    done = subprocess.run([command, "report", "--out", "/nonexistent"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("perceiver-obs report: no directory within /nonexistent holds results")
    assert "Traceback" not in done.stderr


def test_file_gives_defaults_that_options_override(tmp_path):
    values = {"steps": 3, "name": "x y", "data": ["c"], "fast": False, "rate": 1e-4}
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(values))
    assert parse_settings(Example, [f"--settings={file}"], "x") == Example(3, "x y", ("c",), False, 1e-4)
    parsed = parse_settings(Example, ["--steps", "7", "--settings", str(file), "--fast", "--data", "d", "e"], "x")
    assert parsed == Example(7, "x y", ("d", "e"), True, 1e-4)
    assert parse_settings(Example, [], "x") == Example()


@pytest.mark.parametrize(
    "settings",
    [
        Example(name=None, steps=4, data=()),
        Example(name="-1", rate=2.0, fast=True),
        Example(name="None", data=("--steps", "")),
        Example(where=Path("a b"), more={"gamma": 0.9, "kind": "x"}),
    ],
)
def test_any_settings_survive_a_file(settings, tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(settings_to_dict(settings)))
    assert parse_settings(Example, ["--settings", str(file)], "x") == settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"stepz": 3}', "unknown setting 'stepz'; did you mean 'steps'?"),
        ('{"zzz": 3}', "unknown setting 'zzz'; known are steps, name"),
        ("[1]", "holds a list, expected a JSON object"),
        ("{", "is not valid JSON"),
    ],
)
def test_wrong_settings_files_are_named(tmp_path, content, message):
    file = tmp_path / "settings.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        parse_settings(Example, ["--settings", str(file)], "x")
    with pytest.raises(SystemExit, match="2"):
        parse_settings(Example, ["--settings"], "x")
    with pytest.raises(FileNotFoundError):
        parse_settings(Example, ["--settings", str(tmp_path / "none.json")], "x")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": "many"}, "steps must be of type int, got 'many'"),
        ({"steps": 1.5}, "steps must be of type int, got 1.5"),
        ({"data": [1]}, "data must be of type tuple[str, ...], got [1]"),
        ({"data": "a"}, "data must be of type tuple[str, ...], got 'a'"),
        ({"fast": None}, "fast must be of type bool, got None"),
        ({"name": 3}, "name must be of type str | None, got 3"),
        ({"more": {"gamma": []}}, "more must be of type dict[str, int | float | str], got {'gamma': []}"),
    ],
)
def test_value_of_a_wrong_type_in_a_file_is_refused(tmp_path, values, said):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=re.escape(f"{file}: {said}") + "$"):
        parse_settings(Example, ["--settings", str(file)], "x")


@dataclass
class Resumed:
    """A run that may be lengthened."""

    steps: int = resumable(1)
    seed: int = 0


@pytest.mark.parametrize(
    ("saved", "fixed", "changes"),
    [
        ({"steps": 5, "seed": 0}, (), None),
        ({"steps": 5}, (), None),  # written before there was a seed
        ({"seed": 1}, (), "seed was 1, is 0"),
        ({"seed": 1, "gone": 2}, (), "gone was 2, is None, seed was 1, is 0"),
        ({"steps": 5}, ("steps",), "steps was 5, is 1"),
    ],
)
def test_a_run_is_resumed_with_other_settings_only_where_they_may_change(saved, fixed, changes):
    if changes is None:
        check_same_settings(saved, Resumed(), "it", fixed)
        return
    with pytest.raises(ValueError, match=rf"^it was begun with other settings \({changes}\); resume"):
        check_same_settings(saved, Resumed(), "it", fixed)


def test_wrong_input_is_one_line_unless_debugging(tmp_path, capsys, monkeypatch):
    arguments = ["train-tokenizer", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("perceiver-obs train-tokenizer: ")
    assert str(tmp_path / "nowhere") in error
    assert len(error.splitlines()) == 1
    with pytest.raises(ValueError, match="nowhere"):
        main([*arguments, "--debug"])
    monkeypatch.setenv("PERCEIVER_OBS_DEBUG", "1")
    with pytest.raises(ValueError, match="nowhere"):
        main(arguments)


def test_an_extra_that_is_not_installed_is_named_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "envs.collection.ray_worker", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)  # what Python takes for "not installed"
    assert main(["collect", "--task", "cartpole-swingup", "--out", str(tmp_path / "data"), "--ray"]) == 2
    assert capsys.readouterr().err == (
        "perceiver-obs collect: collecting on Ray needs it: pip install 'perceiver-obs[ray]'\n"
    )


SMALL = "--device cpu --batch-size 4 --evaluation-clips 4 --clip-length 8 --steps 4"
TASK = "--task cartpole-swingup --size 32 --render-quality fast --action-repeat 8"
LINE = [
    f"collect {TASK} --out data --episodes 4 --max-steps 12 --workers 1",
    f"train-tokenizer --data data --out tokenizer {SMALL} --base-channels 4 --code-dim 8 --num-codes 16",
    f"train-predictor --data data --tokenizer tokenizer --out model {SMALL} --num-latents 4 --num-latent-channels 16",
    "generate --model model --data data --out seen --num-context-frames 4 --num-frames 6",
    "generate --model model --data None --task cartpole-swingup --out fresh --num-frames 6 --mode maskgit --steps 2",
    "probe --model model --data data --out probe",
    f"train-policy {TASK} --model model --out policy --total-frames 160 --eval-every 160 --eval-episodes 1 "
    "--learning-starts 5 --batch-size 8 --net-arch 8",
    "evaluate --policy policy --episodes 1",
    "benchmark dmc100k --tasks cartpole-swingup --methods state --seeds 0 --total-frames 160 --eval-every 160 "
    "--eval-episodes 1 --out dmc100k --results dmc100k.json --docs docs",
    "report --out .",
]


@pytest.fixture(scope="module")
def line(tmp_path_factory, pictures) -> Path:
    """A directory in which every job has run once, from pixels to a report."""
    path = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for command in LINE:
            assert main(command.split()) == 0, command
    return path


def test_every_command_leaves_its_results(line):
    page = (line / "report.html").read_text()
    for title in ("Tokenizer", "Predictor", "Probe", "Generated future", "What to run next"):
        assert f"<h2>{title}</h2>" in page
    assert "<h3>Returns</h3>" in page
    assert (line / "fresh" / "future.gif").stat().st_size > 0
    assert json.loads((line / "policy" / "evaluation.json").read_text())["returns"]
    assert "cartpole-swingup" in (line / "docs" / "dmc100k.md").read_text()


def test_the_same_commands_again_change_no_model(line, monkeypatch):
    monkeypatch.chdir(line)
    models = [line / name / "model.safetensors" for name in ("tokenizer", "model")]
    before = [model.stat().st_mtime_ns for model in models]
    assert all(main(command.split()) == 0 for command in LINE[:3])
    assert before == [model.stat().st_mtime_ns for model in models]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--start 5 --num-frames 8", "frames 5 to 20 were asked for, but the episode has 13"),
        ("--episode 4", "episode must lie in 0 to 3, got 4"),
        ("--temperature -1 --num-frames 2", "-1"),
        ("--model nowhere", "'nowhere' is neither a directory"),
        ("--data nowhere", "no rollout dataset at nowhere"),
        ("--data None --task walker-wlak", "did you mean"),
    ],
)
def test_impossible_generations_are_refused(line, monkeypatch, capsys, options, message):
    monkeypatch.chdir(line)
    assert main(["generate", "--model", "model", "--data", "data", *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_values_that_settings_refuse_are_named(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["generate", "--num-frames", "0"])
    assert exit_.value.code == 2
    assert "num_frames must be at least 1, got 0" in capsys.readouterr().err


def test_torn_model_is_named(line, tmp_path, capsys):
    shutil.copy(line / "model" / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((line / "model" / "model.safetensors").read_bytes()[:-100])
    assert main(["probe", "--model", str(tmp_path), "--data", str(line / "data")]) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_is_said_in_one_line(tiny_data, tmp_path, capsys):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    if not mounted:
        tmp_path.chmod(0o555)
    task = ["--task", "cartpole-swingup"]
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user writes everywhere and may not mount a read-only disk")
        for command in (
            ["collect", *task, "--episodes", "1", "--max-steps", "3", "--workers", "1"],
            ["train-tokenizer", "--data", str(tiny_data), "--steps", "1", "--device", "cpu"],
            ["train-policy", *task, "--total-frames", "80", "--no-progress-bar"],
        ):
            assert main([*command, "--out", str(tmp_path / "out")]) == 2
            said = capsys.readouterr().err.strip().splitlines()[-1]
            assert said.endswith(f"{'Read-only file system' if mounted else 'Permission denied'}: '{tmp_path}/out'")
    finally:
        if mounted:
            subprocess.run(["umount", tmp_path], check=True)
        else:
            tmp_path.chmod(0o755)

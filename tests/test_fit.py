"""`fit`: one command from an environment to a Perceiver of its own."""

import html
import json

import pytest

from agents.cli import main
from agents.training.fit import wrapping_line
from agents.training.settings import FitSettings
from envs import RolloutDataset

WORLD = "tiny_worlds:LongerTinyWorld-v0"


def test_an_environment_gets_a_model_and_the_line_that_wraps_it(tmp_path, capsys):
    out = tmp_path / "fit"
    command = f"fit --env {WORLD} --env-kwargs actions=discrete --size 32 --out {out} --minutes 0.2"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    *_, line, _, next_command = map(str.strip, printed.splitlines())
    scope = {}
    exec(f"from envs import make_env\nfrom perceiver_obs import PerceiverContextWrapper\n{line}", scope)
    context, _ = scope["env"].reset(seed=0)
    assert context.shape == scope["env"].observation_space.shape == (128,)
    plan = json.loads((out / "fit.json").read_text())["plan"]
    assert set(plan) == {"episodes", "tokenizer", "model"}
    assert len(RolloutDataset(out / "data")) == plan["episodes"] >= 4
    assert (out / "probe" / "probe.json").is_file()
    assert "probe: Contexts" in printed
    assert next_command == (
        f"perceiver-obs train-policy --env {WORLD} --env-kwargs actions=discrete --size 32 --model {out}/model "
        f"--out {out}/policy --total-frames 20000 --eval-every 2000"
    )
    page = html.unescape((out / "report.html").read_text())
    assert next_command in page
    assert "next tokens predicted, all tokens" in page
    assert all(heading in page for heading in ("Tokenizer", "Predictor", "<h2>Probe", "LongerTinyWorld"))

    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert main(command.split()) == 0
    assert finished == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}, "nothing is made again"
    assert main(f"{command} --policy random".split()) == 2
    assert "policy was 'mixed', is 'random'" in capsys.readouterr().err


def test_the_wrapping_line_names_what_differs_from_the_defaults(tmp_path):
    line = wrapping_line(FitSettings(task="cartpole-swingup", render_quality="fast"), tmp_path)
    assert line == f'env = PerceiverContextWrapper(make_dmc("cartpole-swingup", render_quality=\'fast\'), "{tmp_path}")'


def test_short_episodes_without_a_state_make_a_model_that_is_judged_by_the_reward(tmp_path, capsys):
    data = tmp_path / "data"
    world = "--env tiny_worlds:TinyWorld-v0 --env-kwargs shows=grey --size 32"  # of seven frames
    assert main(f"collect {world} --out {data} --episodes 6 --workers 1".split()) == 0
    assert main(f"fit {world} --out {tmp_path / 'fit'} --minutes 0.1 --data {data}".split()) == 0
    assert "rewards R² " in capsys.readouterr().out
    probed = json.loads((tmp_path / "fit" / "probe" / "probe.json").read_text())
    assert set(probed["results"][0]["scores"]) == {"reward/now", "reward/next_5"}


def test_no_time_is_refused():
    with pytest.raises(ValueError, match=r"minutes must be positive, got 0"):
        FitSettings(minutes=0)


def test_a_model_that_is_not_there_is_named_before_anything_is_collected(tmp_path, capsys):
    assert main(f"fit --env {WORLD} --out {tmp_path / 'fit'} --begin-with nowhere".split()) == 2
    assert "'nowhere' is neither a directory here nor one of" in capsys.readouterr().err
    assert not (tmp_path / "fit" / "data").exists()

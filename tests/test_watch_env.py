"""`perceiver-obs watch --env ID`: any environment is watched with the settings that the other commands take."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import small_frames_model
from tiny_worlds import PICTURE

from agents.cli import main
from agents.visualize.episodes import make_watched_env
from agents.visualize.settings import WatchSettings
from envs.pictures import square_frame
from perceiver_obs import CausalPerceiverIO

WORLD = "tiny_worlds:TinyWorld-v0"
TOP, SIDE, NOW = 122, 192, 460


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    small_frames_model(action_dim=6).save_pretrained(path)
    return path


def watch(model: Path, out: Path, options: str = "") -> int:
    line = f"watch --env {WORLD} --model {model} --out {out} --episodes 2 --device cpu --horizon 1 {options}"
    return main(line.split())


@pytest.mark.parametrize(
    ("options", "fit"),
    [("", "letterbox"), ("--fit crop --env-kwargs actions=discrete", "crop"), ("--env-kwargs shows=grey", None)],
)
def test_frames_of_any_environment_are_shown(model, tmp_path, options, fit):
    """With states beside them, or none at all (grey); with actions that are choices."""
    assert watch(model, tmp_path / "w.webp", f"--policy random {options}") == 0
    with Image.open(tmp_path / "w.webp") as image:
        image.seek(6)
        shown = np.array(image.convert("RGB"))[TOP : TOP + SIDE : SIDE // 32, NOW : NOW + SIDE : SIDE // 32]
        assert (image.n_frames, image.info["duration"]) == (7, 100)
    last = PICTURE + np.uint8(6)
    expected = square_frame(last if fit else last[:, :, :1].repeat(3, axis=2), 32, fit or "letterbox")
    np.testing.assert_array_equal(shown, expected)


def test_an_environment_is_watched_as_its_policy_was_trained(model, tmp_path):
    policy = tmp_path / "policy"
    training = "--total-frames 12 --eval-every 12 --eval-episodes 1 --learning-starts 4 --batch-size 4 --net-arch 8"
    seen = "--env-kwargs actions=discrete --fit crop --action-repeat 2 --size 32"
    line = f"train-policy --env {WORLD} {seen} --model {model} --out {policy} {training} --device cpu --no-progress-bar"
    assert main(line.split()) == 0
    assert watch(model, tmp_path / "w.gif", f"--policy {policy}") == 0
    with Image.open(tmp_path / "w.gif") as image:
        assert (image.n_frames, image.info["duration"]) == (4, 200)
    perceiver = CausalPerceiverIO.from_pretrained(model)
    for given, repeat in (({}, 2), ({"action_repeat": 3}, 3)):
        env = make_watched_env(WatchSettings(env=WORLD, policy=str(policy), model=str(model), **given), perceiver, None)
        assert (env.frame_contract["action_repeat"], env.frame_contract["render_quality"]) == (repeat, "24x48 crop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (f"--env {WORLD} --camera 1", "camera works for dm_control tasks only, got 1"),
        ("cartpole-swingup --fit crop", "fit works with --env only, got 'crop'"),
        ("--env tiny_worlds:Nowhere-v0", "Nowhere"),
        (f"--env {WORLD} --env-kwargs colour=red", "cannot make tiny_worlds:TinyWorld-v0(colour='red')"),
        (f"--env {WORLD} --frames-from camera", "frames_from='camera' is not in the observation"),
    ],
)
def test_wrong_settings_are_named(model, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(f"watch {options} --model {model} --out w.gif --device cpu".split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1

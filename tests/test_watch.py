"""`perceiver-obs watch`: what the animation shows is what was played, and what the model makes of it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stable_baselines3 import PPO
from tiny_models import tiny_model
from tiny_runs import write_dataset

import agents.visualize.episodes
from agents import PolicyEnvSettings, load_policy, make_policy_env
from agents.cli import main
from agents.training.policy_files import PolicyRecord, save_policy
from agents.training.trained_policy import make_any_policy
from agents.visualize.settings import WatchSettings
from envs import make_dmc
from envs.collection.named_policies import make_policy
from envs.collection.policies import PolicyContext
from perceiver_obs import CausalPerceiverIO
from perceiver_obs.data.clips import leading_actions
from perceiver_obs.evaluation.predicted_frames import predict
from perceiver_obs.settings import parse_settings

pytest_plugins = ("tiny_data",)

STEPS, SEED, HORIZON = 12, 5, 3
FEW = ("--max-steps", "3")
SIZE = (896, 686)
PANELS = {"seen": 28, "predicted": 244, "now": 460, "tokens": 676}
TOP, SIDE, SCALE = 122, 192, 3


@pytest.fixture(scope="module", autouse=True)
def _few_frames_to_fit_on():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agents.visualize.episodes, "FIT_STEPS", 15)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The directory of a tiny model that reads one action."""
    path = tmp_path_factory.mktemp("watch") / "model"
    tiny_model(action_dim=1).save_pretrained(path)
    return path


def command(model: Path, out: Path, *options: str, seed: int = SEED) -> list[str]:
    options = ("--max-steps", str(STEPS), "--episodes", "3", "--seed", str(seed), "--device", "cpu", *options)
    return ["watch", "cartpole-swingup", "--model", str(model), "--out", str(out), *options]


@pytest.fixture(scope="module")
def webp(model, tmp_path_factory) -> list[np.ndarray]:
    """The pictures of an animation that keeps every colour."""
    path = tmp_path_factory.mktemp("watch") / "deep" / "er" / "watched.webp"
    assert main(command(model, path)) == 0
    return pictures(path)


@pytest.fixture(scope="module")
def played() -> tuple[np.ndarray, np.ndarray]:
    """Frames `[T + 1, H, W, 3]` and actions `[T, 1]` of the same episode, played by hand."""
    env = make_dmc("cartpole-swingup", state_in_info=True)
    reset_seed, policy_seed = np.random.SeedSequence([SEED, agents.visualize.episodes.WATCHED]).generate_state(2)
    policy = make_policy("correlated", policy_context(env))
    policy.begin(np.random.default_rng(policy_seed))
    frame, info = env.reset(seed=int(reset_seed))
    frames, actions = [frame], []
    for _ in range(STEPS):
        actions.append(np.asarray(policy.act(frame, info["state"]), np.float32))
        frame, _, _, _, info = env.step(actions[-1])
        frames.append(frame)
    env.close()
    return np.stack(frames), np.stack(actions)


def policy_context(env) -> PolicyContext:
    bare = env.unwrapped
    return PolicyContext(bare.action_space, 64, 1 / bare.metadata["render_fps"], bare.state_names)


def pictures(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        return [np.array((image.seek(time), image)[1].convert("RGB")) for time in range(image.n_frames)]


def panel(picture: np.ndarray, name: str) -> np.ndarray:
    return picture[TOP : TOP + SIDE, PANELS[name] : PANELS[name] + SIDE]


def shrunk(large: np.ndarray) -> np.ndarray:
    """The frame of a panel, after checking that each of its pixels became a block of one colour."""
    blocks = large.reshape(SIDE // SCALE, SCALE, SIDE // SCALE, SCALE, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    return blocks[:, 0, :, 0]


def test_the_panel_of_now_shows_the_frames_of_the_environment(webp, played):
    frames, _ = played
    assert len(webp) == len(frames) == STEPS + 1
    assert all(picture.shape == (SIZE[1], SIZE[0], 3) for picture in webp)
    assert len({frame.tobytes() for frame in frames}) > STEPS // 2  # the episode moves
    for time, picture in enumerate(webp):
        np.testing.assert_array_equal(shrunk(panel(picture, "now")), frames[time])
        if time >= HORIZON:
            np.testing.assert_array_equal(shrunk(panel(picture, "seen")), frames[time - HORIZON])


def test_the_other_panels_show_what_the_model_makes_of_them(webp, played, model):
    frames, actions = played
    perceiver = CausalPerceiverIO.from_pretrained(model)
    video = torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())[None]
    led = torch.from_numpy(leading_actions(actions, 1))[None]
    through_tokens = perceiver.reconstruct(video)[0]
    for time, picture in enumerate(webp):
        close(shrunk(panel(picture, "tokens")), through_tokens[time])
        if time < HORIZON:
            assert np.ptp(panel(picture, "predicted")[:20].reshape(-1, 3), axis=0).max() == 0
            continue
        seen = time - HORIZON + 1
        with torch.inference_mode():
            predicted = perceiver(video[:, : time + 1], seen, led[:, : time + 1])["reconstructed"][0, -1]
        close(shrunk(panel(picture, "predicted")), predicted)


def close(shown: np.ndarray, frame: torch.Tensor) -> None:
    """Equal to a frame `[C, H, W]` in [0, 1] but for rounding."""
    expected = (frame.clamp(0, 1) * 255).movedim(0, -1).numpy()
    assert np.abs(shown - expected).max() < 1


def test_gif_is_the_same_from_the_same_seed(model, webp, tmp_path):
    for name in "ab":
        assert main(command(model, tmp_path / f"{name}.gif")) == 0
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    assert main(command(model, tmp_path / "c.webp", *FEW, seed=SEED + 1)) == 0
    assert all((panel(c, "now") != panel(exact, "now")).any() for c, exact in zip(pictures(tmp_path / "c.webp"), webp))
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size) == (STEPS + 1, SIZE)
        assert (image.info["duration"], image.info["loop"]) == (80, 0)
    for gif, exact in zip(pictures(tmp_path / "a.gif"), webp):
        assert np.abs(panel(gif, "now").astype(int) - panel(exact, "now")).mean() < 1  # 256 colours
        assert (gif[exact.min(axis=2) == 255] == 255).all()


def test_speed_and_steps_decide_how_long_it_lasts(model, tmp_path):
    assert main(command(model, tmp_path / "slow.gif", "--speed", "0.25", "--action-repeat", "planet", *FEW)) == 0
    with Image.open(tmp_path / "slow.gif") as image:
        assert image.info["duration"] == 4 * 80


def test_data_may_take_the_place_of_played_episodes(tiny_data, tmp_path, capsys):
    tiny_model(action_dim=1, video_shape=(4, 3, 32, 32)).save_pretrained(tmp_path / "model")
    data, out = tmp_path / "data", tmp_path / "w.gif"
    shutil.copytree(tiny_data, data)
    meta = json.loads((data / "meta.json").read_text())
    meta["frame_contract"]["action_repeat"] = 4
    (data / "meta.json").write_text(json.dumps(meta))
    assert main(command(tmp_path / "model", out, "--data", str(data), "--show", "velocity/hinge_1")) == 0
    assert f"{STEPS + 1}/{STEPS + 1}" in capsys.readouterr().err  # frames played: no other episodes
    with Image.open(out) as image:
        assert (image.n_frames, image.info["duration"]) == (STEPS + 1, 40)  # the data's action repeat


# ---- wrong input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["cartpole-swingpu"], "unknown task 'cartpole-swingpu'; did you mean 'cartpole-swingup'"),
        (["--horizon", "0"], "horizon must lie in 1 to 4, the model's sequence_length, got 0"),
        (["--horizon", "5"], "horizon must lie in 1 to 4, the model's sequence_length, got 5"),
        (["--max-steps", "0"], "max_steps must be at least 1, got 0"),
        (["--episodes", "1"], "episodes must be at least 2, got 1"),
        (["--speed", "0"], "speed must be positive, got 0"),
        (["--model", "nowhere"], "'nowhere' is neither a directory"),
        (["--model", "MODELS/grey"], "square RGB frames"),
        (["--model", "MODELS/wide"], "square RGB frames"),
        (["walker-walk"], "walker-walk takes actions of 6 numbers"),
        (["--policy", "rnadom"], "did you mean 'random'"),
        (["--policy", "nowhere.zip"], "no SB3 policy at nowhere.zip"),
        (["--policy", "MODELS"], "policy.json is missing"),
        (["--show", "position/slidr"], "'position/slidr', which is not in the state; did you mean"),
        (["--data", "nowhere"], "no rollout dataset at nowhere"),
        (["--data", "DATA"], "size is 32, the episode is played with 64"),
        (["--data", "NOISE"], "was collected without states"),
        (
            ["--data", "DATA", "--model", "MODELS/small", "--action-repeat", "4"],
            "action_repeat is 2, the episode is played with 4",
        ),
        (["--out", "runs/w.mp4"], "out must be a file that ends in .gif or .webp, got 'runs/w.mp4'"),
        (["--out", "FILE/w.gif"], "FILE"),
    ],
)
def test_wrong_input_is_one_line_before_any_work(options, message, model, tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("a file, no directory")
    Path("DATA").symlink_to(tiny_data)
    write_dataset(Path("NOISE"), [4, 4], action_size=1, size=64)
    for name, shape in {"grey": (1, 64, 64), "wide": (3, 32, 64), "small": (3, 32, 32)}.items():
        tiny_model(action_dim=1, video_shape=(4, *shape)).save_pretrained(f"MODELS/{name}")
    task = options if len(options) == 1 else ["cartpole-swingup"]
    options = options if len(options) > 1 else []
    given = ["watch", *task, "--model", str(model), "--out", "w.gif", *options]
    for option in options[::2]:  # the first one counts
        at = given.index(option)
        if option in given[at + 1 :]:
            del given[at : at + 2]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1  # and so no progress bar: nothing was played
    assert not list(tmp_path.glob("**/*.gif"))


def test_a_torn_picture_leaves_the_old_one(model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "w.gif"
    out.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main(command(model, out, *FEW)) == 2
    assert "disk full while writing" in capsys.readouterr().err
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


# ---- settings -------------------------------------------------------------------------------------------------------


def test_the_task_is_given_by_place_or_file(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"task": "finger-spin", "seed": 3, "show": ["velocity/hinge"]}))

    def parsed(*arguments: str) -> WatchSettings:
        return parse_settings(WatchSettings, arguments, "watch")

    assert parsed() == WatchSettings()
    assert parsed("reacher-easy", "--seed", "2") == WatchSettings(task="reacher-easy", seed=2)
    assert parsed("--seed", "2", "reacher-easy") == WatchSettings(task="reacher-easy", seed=2)
    from_file = WatchSettings(task="finger-spin", seed=3, show=("velocity/hinge",))
    assert parsed("--settings", str(file)) == from_file
    assert parsed("cheetah-run", "--settings", str(file)) == dataclasses.replace(from_file, task="cheetah-run")
    with pytest.raises(SystemExit):
        parsed("cheetah-run", "walker-walk")


# ---- policies on contexts -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory) -> Path:
    """A directory as train-policy leaves it, with a policy that has learned nothing."""
    directory = tmp_path_factory.mktemp("watch") / "policy"
    directory.mkdir()
    settings = PolicyEnvSettings(
        task="cartpole-swingup", model=str(model), action_repeat=4, render_quality="fast", device="cpu"
    )
    venv = make_policy_env(settings)
    save_policy(PPO("MlpPolicy", venv, seed=0, device="cpu"), directory)
    PolicyRecord("PPO", dataclasses.asdict(settings), venv.encoder.fingerprint).save(directory)
    venv.close()
    return directory


def test_a_policy_on_contexts_acts_as_in_its_evaluation(trained):
    algorithm, venv, _ = load_policy(trained, device="cpu")
    venv.seed(3)
    observation = venv.reset()
    env = make_dmc("cartpole-swingup", action_repeat=4, render_quality="fast")
    frame, _ = env.reset(seed=3)
    policies = [make_any_policy(str(path), policy_context(env)) for path in (trained, trained / "policy.zip")]
    tags = [policy.begin(np.random.default_rng(0)) for policy in policies]
    assert tags == ["sb3:policy"] * 2
    for _ in range(6):
        expected, _ = algorithm.predict(observation, deterministic=True)
        for policy in policies:
            np.testing.assert_allclose(policy.act(frame, np.zeros(5)), expected[0], atol=1e-5)
        frame = env.step(expected[0])[0]
        observation = venv.step(expected)[0]
    env.close()
    venv.close()


@pytest.mark.parametrize("observation", ["context", "state", "pixels"])
def test_policies_act_by_their_likeliest_action_whatever_they_observe(trained, tmp_path, observation):
    path = trained
    if observation != "context":
        settings = PolicyEnvSettings(task="cartpole-swingup", observation=observation, render_quality="fast")
        venv = make_policy_env(settings)
        save_policy(PPO("MlpPolicy", venv, seed=0, device="cpu"), tmp_path)
        venv.close()
        PolicyRecord("PPO", dataclasses.asdict(settings), None).save(tmp_path)
        path = tmp_path
    env = make_dmc("cartpole-swingup", action_repeat=4, render_quality="fast")
    frame, _ = env.reset(seed=3)
    env.close()

    def actions(**how) -> list[float]:
        policy = make_any_policy(str(path), policy_context(env), device="cpu", **how)
        chosen = []
        for seed in range(3):
            policy.begin(np.random.default_rng(seed))
            chosen.append(policy.act(frame, np.zeros(5, np.float32)).item())
        return chosen

    assert len(set(actions())) == 1
    assert len(set(actions(deterministic=False))) == 3


def test_a_trained_policy_is_watched_as_it_was_trained(trained, model, tmp_path, capsys):
    out = tmp_path / "w.gif"
    assert main(command(model, out, "--policy", str(trained), *FEW)) == 0
    with Image.open(out) as image:
        assert image.info["duration"] == 40  # action repeat 4
    other = ["watch", "pendulum-swingup", "--model", str(model), "--policy", str(trained), "--out", str(out)]
    capsys.readouterr()
    assert main(other) == 2
    assert "was trained on cartpole-swingup, not pendulum-swingup" in capsys.readouterr().err


def test_a_policy_refuses_another_perceiver(trained, tmp_path, capsys):
    tiny_model(action_dim=1, seed=1).save_pretrained(tmp_path / "other")
    record = PolicyRecord.load(trained)
    copy = tmp_path / "policy"
    copy.mkdir()
    (copy / "policy.zip").write_bytes((trained / "policy.zip").read_bytes())
    dataclasses.replace(record, settings=record.settings | {"model": str(tmp_path / "gone")}).save(copy)
    assert main(command(tmp_path / "other", tmp_path / "w.gif", "--policy", str(copy))) == 2
    fingerprint = CausalPerceiverIO.from_pretrained(tmp_path / "other").fingerprint
    assert f"got fingerprint {fingerprint}" in capsys.readouterr().err


@pytest.mark.parametrize("action_dim", [None, 3])
@pytest.mark.parametrize("horizon", [1, 4])
def test_frames_are_foretold_from_contexts_and_actions(action_dim, horizon):
    random = np.random.default_rng(0)
    episode = agents.visualize.episodes.Episode(
        pixels=random.integers(0, 256, (40, 64, 64, 3), dtype=np.uint8),
        actions=random.uniform(-1, 1, (39, 2)).astype(np.float32),
        rewards=np.zeros(39, np.float32),
        terminated=False,
        truncated=True,
        seed=0,
        policy="noise",
    )
    model = tiny_model(action_dim=action_dim)
    frames = predict(model, episode, horizon, torch.device("cpu"))
    assert frames.shape == (40 - horizon, 64, 64, 3)
    video = torch.from_numpy(episode.pixels.transpose(0, 3, 1, 2).copy())[None]
    led = None if action_dim is None else torch.from_numpy(leading_actions(episode.actions, action_dim))[None]
    for time in (0, 17, 39 - horizon):
        upto = time + 1 + horizon
        with torch.inference_mode():
            output = model(video[:, :upto], time + 1, None if led is None else led[:, :upto])
        close(frames[time], output["reconstructed"][0, -1])
    short = dataclasses.replace(episode, pixels=episode.pixels[:horizon], actions=episode.actions[: horizon - 1])
    assert predict(model, short, horizon, torch.device("cpu")).shape == (0, 64, 64, 3)

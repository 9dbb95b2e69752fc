"""The benchmark in one environment of any kind: returns after equal steps and after equal time."""

from pathlib import Path

import pytest
from tiny_models import small_frames_model
from tiny_worlds import STEPS

from agents.benchmark.env_report import env_page_text, return_at
from agents.benchmark.results import Results, RunResult
from agents.benchmark.settings import BenchmarkSettings
from agents.benchmark.suite import Protocol
from agents.cli import main
from envs import RecordRollouts, make_env

WORLD = "tiny_worlds:TinyWorld-v0"
SIZE = 32


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A model of random weights, and three episodes of the world."""
    path = tmp_path_factory.mktemp("inputs")
    small_frames_model(action_dim=2).save_pretrained(path / "model")
    env = RecordRollouts(make_env(WORLD, size=SIZE, state_in_info=True), path / "data")
    env.action_space.seed(0)
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(STEPS):
            env.step(env.action_space.sample())
    return path


def test_contexts_and_baselines_are_compared_in_one_environment(inputs, tmp_path, capsys):
    command = (
        f"benchmark --env {WORLD} --size {SIZE} --model {inputs}/model --data {inputs}/data --out {tmp_path} "
        "--methods context random state --seeds 0 --total-frames 24 --eval-every 12 --eval-episodes 1 "
        "--device cpu --no-progress-bar"
    )
    assert main(command.split()) == 0
    protocol = Protocol(env=WORLD, size=SIZE, total_frames=24, eval_every=12, eval_episodes=1)
    results = Results.load(tmp_path / "results.json", "TinyWorld-v0", protocol)
    assert [run.method for run in results.runs] == ["context", "state", "random"]
    for run in results.runs:
        assert run.settings["algorithm"] == "CrossQ"
        assert [point["frames"] for point in run.curve] == [12, 24]
        assert 0 <= run.curve[0]["seconds"] <= run.curve[1]["seconds"] == run.seconds
        assert run.final_return == sum(range(STEPS + 1))
    page = (tmp_path / "TinyWorld-v0.md").read_text()
    assert page.startswith(f"# {WORLD}\n\nMean return in equal time (")
    assert "| context, random weights | 21.00 (1 seed) | " in page
    assert "DrQ" not in page
    assert (tmp_path / "images" / "TinyWorld-v0.png").stat().st_size > 0
    capsys.readouterr()
    assert main(command.split()) == 0
    assert capsys.readouterr().out.count("): finished") == 3


def test_all_methods_have_the_algorithm_that_the_actions_allow():
    for actions, algorithm in (("box", "CrossQ"), ("discrete", "DQN"), ("bits", "PPO")):
        protocol = Protocol(env=WORLD, env_kwargs=(f"actions={actions}",))
        used = {protocol.run(method, protocol.name, 0).algorithm for method in ("context", "pixels", "state")}
        assert used == {algorithm}
        assert set(protocol.left_out) == {"privileged"} | ({"adapted"} if algorithm == "PPO" else set())
    assert (
        Protocol(env=WORLD, env_kwargs=("actions=discrete",), algorithm="PPO").run("pixels", "", 0).algorithm == "PPO"
    )
    assert "state" in Protocol(env=WORLD, env_kwargs=("shows=grey",)).left_out
    assert Protocol(env=WORLD, total_frames=5000).run("adapted", "TinyWorld-v0", 0).adapt_every == 500
    assert Protocol().left_out == {}


def test_files_lie_together_unless_they_are_given():
    placed = BenchmarkSettings(env="ale_py:ALE/Pong-v5").placed()
    assert placed.tasks == ("ALE-Pong-v5",)
    assert (placed.out, placed.docs) == (Path("runs/benchmark-ALE-Pong-v5"),) * 2
    assert placed.results == Path("runs/benchmark-ALE-Pong-v5/results.json")
    assert BenchmarkSettings(env="A-v0", out=Path("here"), docs=Path("there")).placed().docs == Path("there")
    assert BenchmarkSettings().placed() == BenchmarkSettings()


def finished_run(method: str, seed: int, curve: list[tuple[int, float, float]]) -> RunResult:
    points = [{"frames": f, "mean": mean, "std": 0.0, "returns": [mean], "seconds": s} for f, s, mean in curve]
    provenance: dict[str, str] = {}
    return RunResult(method, "A-v0", seed, {"model": "m"}, None, None, points, curve[-1][1], "2026-01-01", provenance)


def test_equal_time_is_that_of_the_fastest_run():
    fast = [finished_run("context", seed, [(50, 30.0, 1.0), (100, 60.0, 4.0 + seed)]) for seed in (0, 1)]
    slow = [finished_run("pixels", 0, [(50, 55.0, 2.0), (100, 110.0, 9.0)])]
    assert [return_at(slow[0], seconds) for seconds in (10, 55, 109, 110)] == [None, 2.0, 2.0, 9.0]
    page = env_page_text(Results("A-v0", Protocol(env=WORLD).shared(), (*fast, *slow)), Path("results.json"))
    assert "(1.0 minutes of training): context, frozen 4.50; pixels, CNN 2.00." in page
    assert "| context, frozen | 4.50 ± 0.71 (2 seeds) | 4.50 ± 0.71 (2 seeds) | 1.0 |" in page
    assert "| pixels, CNN | 9.00 (1 seed) | 2.00 (1 seed) | 1.8 |" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--action-repeat 2", "action_repeat works with --env only, got 2"),
        ("--algorithm SAC", "algorithm works with --env only, got 'SAC'"),
        ("--env Nowhere-v0", "cannot make Nowhere-v0"),
        (f"--env {WORLD} --tasks walker-walk", "unknown task 'walker-walk' of TinyWorld-v0"),
        (f"--env {WORLD} --algorithm DQN", "DQN takes discrete actions only"),
    ],
)
def test_wrong_input_is_one_line_and_begins_nothing(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

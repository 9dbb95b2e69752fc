"""The benchmark on real parts: it trains what is missing, keeps what is there, and refuses what cannot be compared."""

import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model
from tiny_runs import kill_at_second_evaluation

import agents.benchmark.suite
from agents import WrongPerceiver
from agents.benchmark.benchmark import benchmark
from agents.benchmark.features import BenchmarkFeatures
from agents.benchmark.results import Results, find_runs
from agents.benchmark.settings import BenchmarkSettings
from agents.benchmark.suite import METHODS, TASKS, Protocol, RunKey
from agents.cli import main
from agents.training.policy_files import PolicyRecord, only_trainer
from envs.collection.collect import collect
from envs.collection.settings import CollectSettings
from perceiver_obs import CausalPerceiverIO
from perceiver_obs.data.data_record import write_data_record
from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.evaluation.features import context_features

TASK = "cartpole-swingup"  # the fewest agent steps: an action lasts 8 control steps


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model of random weights that tells its data, and that data: 4 episodes of 12 steps."""
    path = tmp_path_factory.mktemp("inputs")
    settings = CollectSettings(
        task=TASK,
        out=str(path / "data"),
        episodes=4,
        max_steps=12,
        action_repeat="planet",
        render_quality="smooth",
        workers=1,
    )
    dataset = collect(settings, progress=False)
    tiny_model(action_dim=1).save_pretrained(path / "model")
    write_data_record(path / "model", [dataset])
    return path


def small(inputs, out, **changes):
    """Settings of runs of 20 agent steps, evaluated twice by an episode."""
    settings = BenchmarkSettings(
        tasks=(TASK,),
        methods=("state", "pca"),
        seeds=(0,),
        model=str(inputs / "model"),
        data=(str(inputs / "data"),),
        out=out / "runs",
        results=out / "results.json",
        docs=out / "docs",
        total_frames=160,
        eval_every=80,
        eval_episodes=1,
        device="cpu",
        progress_bar=False,
    )
    return replace(settings, **changes)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory, pictures):
    """The settings of a benchmark of two methods that has run."""
    settings = small(inputs, tmp_path_factory.mktemp("finished"))
    benchmark(settings)
    return settings


def policies(settings):
    return {path: path.stat().st_mtime_ns for path in sorted(settings.out.rglob("policy.zip"))}


def test_runs_leave_results_a_page_and_curves(finished):
    results = Results.load(finished.results, "dmc100k", finished)
    assert [(run.method, run.task, run.seed) for run in results.runs] == [("state", TASK, 0), ("pca", TASK, 0)]
    state, pca = results.runs
    for run in results.runs:
        assert [point["frames"] for point in run.curve] == [80, 160]
        assert run.final_return == pytest.approx(np.mean(run.curve[-1]["returns"]))
        assert run.seconds > 0
        assert run.provenance["mujoco"]
    assert state.offline == {"control_steps": 0, "rendered": 0, "policies": []}
    assert pca.offline == {"control_steps": 4 * 12 * 8, "rendered": 4 * 13, "policies": ["random", "correlated"]}
    assert state.fingerprint is None
    assert pca.fingerprint is not None
    page = (finished.docs / "dmc100k.md").read_text()
    assert f"| {TASK} | {state.final_return:.0f} (1 seed) | {pca.final_return:.0f} (1 seed) | 759 |" in page
    assert "384 offline + 160 online" in page
    assert "1 of 6 tasks: too few" in page
    with Image.open(finished.docs / "images" / "dmc100k.png") as picture:
        picture.load()
        assert np.asarray(picture).std() > 1
    assert not list(finished.out.rglob("replay_buffer.pkl"))


def test_a_second_call_trains_nothing(finished, capsys):
    before, results = policies(finished), finished.results.read_bytes()
    benchmark(finished)
    assert policies(finished) == before
    assert finished.results.read_bytes() == results
    assert capsys.readouterr().out.count("): finished") == 2


def test_a_killed_run_is_listed_as_unfinished_and_resumed(inputs, tmp_path, monkeypatch, capsys):
    settings = small(inputs, tmp_path, methods=("state",))
    kill_at_second_evaluation(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        benchmark(settings)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="nothing to report"):
        benchmark(replace(settings, report_only=True))
    other = replace(settings, seeds=(1,))
    results = benchmark(other)
    assert [(run.key.seed, run.frames) for run in results.unfinished] == [(0, 80)]
    assert [run.seed for run in results.runs] == [1]
    assert f"- state, {TASK}, seed 0: 80 control steps so far" in (settings.docs / "dmc100k.md").read_text()
    results = benchmark(settings)
    assert "resuming after 80 frames" in capsys.readouterr().out
    assert [run.seed for run in results.runs] == [0, 1]
    assert [point["frames"] for point in results.runs[0].curve] == [80, 160]
    assert results.unfinished == ()
    assert "Not finished" not in (settings.docs / "dmc100k.md").read_text()


def test_a_policy_of_a_shorter_run_does_not_make_a_run_finished(finished, tmp_path):
    """As a run that is being lengthened looks: the policy is there, the curve not yet."""
    shutil.copytree(RunKey("state", TASK, 0).directory(finished.out), RunKey("state", TASK, 0).directory(tmp_path))
    assert [run.ended is None for run in find_runs(tmp_path, finished)] == [False]
    curve = RunKey("state", TASK, 0).directory(tmp_path) / "curve.jsonl"
    curve.write_text(curve.read_text().splitlines()[0] + "\n")
    assert [(run.ended, run.frames) for run in find_runs(tmp_path, finished)] == [(None, 80)]


def test_the_first_seed_comes_first_on_all_tasks_and_methods(inputs, tmp_path, capsys):
    """Every run is held by someone else, so that only the order is seen."""
    tasks = ("walker-walk", TASK)
    settings = small(inputs, tmp_path, methods=("state", "context"), tasks=tasks, seeds=(4, 2), data=())
    keys = [RunKey(method, task, seed) for seed in (4, 2) for task in tasks for method in ("context", "state")]
    with ExitStack() as held:
        for key in keys:
            key.directory(settings.out).mkdir(parents=True)
            held.enter_context(only_trainer(key.directory(settings.out)))
        with pytest.raises(ValueError, match="nothing to report"):
            benchmark(settings)
    lines = [line for line in capsys.readouterr().out.splitlines() if "run " in line and " of " in line]
    assert [line.split("(")[1].split(")")[0] for line in lines] == [str(key) for key in keys]


def test_a_run_that_another_process_trains_is_left_to_it(inputs, tmp_path, capsys):
    settings = small(inputs, tmp_path)
    busy = RunKey("state", TASK, 0).directory(settings.out)
    busy.mkdir(parents=True)
    with only_trainer(busy):
        results = benchmark(settings)
        assert not list(busy.iterdir())
    assert [run.method for run in results.runs] == ["pca"]
    assert f"left out, another process is training in {busy}" in capsys.readouterr().out
    assert [run.method for run in benchmark(settings).runs] == ["state", "pca"], "the lock ends with its holder"


def test_results_of_other_machines_stay_and_own_ones_are_renewed(finished, tmp_path):
    content = json.loads(finished.results.read_text())
    elsewhere = {**content["runs"][0], "task": "cheetah-run", "seed": 7}
    outdated = {**content["runs"][0], "seconds": -1.0}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**content, "runs": [elsewhere, outdated]}))
    results = benchmark(replace(finished, results=path, docs=tmp_path, report_only=True))
    assert [(run.method, run.task, run.seed) for run in results.runs] == [
        ("state", TASK, 0),
        ("state", "cheetah-run", 7),
        ("pca", TASK, 0),
    ]
    assert results.runs[0].seconds > 0
    assert Results.load(path, "dmc100k", finished) == results
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_page_comes_out_the_same_from_the_data_alone(finished, tmp_path):
    settings = replace(finished, out=tmp_path / "nowhere", docs=tmp_path / "docs", report_only=True)
    benchmark(settings)
    for name in ("dmc100k.md", "images/dmc100k.png"):
        assert (settings.docs / name).read_bytes() == (finished.docs / name).read_bytes()


def test_the_protocol_is_the_one_that_runs_have_been_trained_by():
    """Runs whose settings differ in anything are refused, so a change here throws results away."""
    settings = asdict(Protocol().run("state", "walker-walk", 2))
    assert json.loads(json.dumps(settings, default=str)) == {
        "action_repeat": "planet",
        "adapt_data": [],
        "adapt_every": None,
        "adapt_learning_rate": 0.0003,
        "adapt_steps": 300,
        "algorithm": "CrossQ",
        "backend": "auto",
        "batch_size": 256,
        "buffer_size": 100000,
        "camera": None,
        "device": "auto",
        "env": None,
        "env_kwargs": [],
        "eval_episodes": 10,
        "eval_every": 10000,
        "fit": "letterbox",
        "frames_from": "auto",
        "info_keys": [],
        "hyperparameters": {"ent_coef": "auto_0.1"},
        "learning_rate": 0.001,
        "learning_starts": 1000,
        "model": "dmc-small",
        "net_arch": [256, 256],
        "num_envs": 1,
        "observation": "state",
        "out": "runs/policy",
        "prior_data": [],
        "progress_bar": True,
        "record": None,
        "render_quality": "smooth",
        "seed": 2,
        "size": 64,
        "task": "walker-walk",
        "total_frames": 100000,
    }
    assert tuple(BenchmarkSettings().tasks) == TASKS
    assert tuple(BenchmarkSettings().methods) == tuple(METHODS)


def test_the_published_results_are_of_this_protocol():
    """Written by earlier versions, which had another word for the provenance."""
    results = Results.load(
        Path(__file__).parent.parent / "benchmarks" / "results" / "dmc100k.json", "dmc100k", Protocol()
    )
    assert len(results.runs) > 80
    assert all(run.provenance["mujoco"] for run in results.runs)


def test_random_features_are_the_same_network_with_other_weights_alike_in_scale(inputs, tmp_path):
    data = str(inputs / "data")
    features = BenchmarkFeatures(str(inputs / "model"), (data,), tmp_path, "cpu", False)
    directory = features.random(TASK, 0)
    untrained, trained = CausalPerceiverIO.from_pretrained(directory), features.perceiver
    assert untrained.config() == trained.config()
    assert untrained.fingerprint != trained.fingerprint
    assert untrained.fingerprint != CausalPerceiverIO.from_pretrained(features.random(TASK, 1)).fingerprint
    contexts = np.concatenate(context_features(untrained, torch.device("cpu"), "contexts")(RolloutDataset(data)[:]))
    np.testing.assert_allclose(contexts.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(contexts.std(axis=0), 1, atol=2e-2)
    written = [path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")]
    assert features.random(TASK, 0) == directory
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")] == written


def test_features_of_another_model_or_other_rollouts_are_not_mixed(inputs, tmp_path):
    model, data = str(inputs / "model"), str(inputs / "data")
    features = BenchmarkFeatures(model, (data,), tmp_path, "cpu", False)
    features.random(TASK, 0)
    features.pca(TASK, 0)
    tiny_model(action_dim=1, num_latent_channels=16).save_pretrained(tmp_path / "narrow")
    narrow = BenchmarkFeatures(str(tmp_path / "narrow"), (data,), tmp_path, "cpu", False)
    with pytest.raises(ValueError, match="holds a network unlike"):
        narrow.random(TASK, 0)
    with pytest.raises(ValueError, match="has 32 components, the contexts have 16"):
        narrow.pca(TASK, 0)
    twice = BenchmarkFeatures(model, (data, data), tmp_path, "cpu", False)
    for make in (twice.random, twice.pca):
        with pytest.raises(ValueError, match="was made from other rollouts"):
            make(TASK, 0)


def test_a_run_with_other_settings_is_refused(finished, tmp_path):
    record = RunKey("state", TASK, 0).directory(tmp_path) / "policy.json"
    record.parent.mkdir(parents=True)
    content = json.loads((RunKey("state", TASK, 0).directory(finished.out) / "policy.json").read_text())
    content["settings"] |= {"learning_rate": 3e-4, "device": "cuda"}
    record.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"other settings \(learning_rate was 0.0003, is 0.001\)"):
        find_runs(tmp_path, finished)


def test_a_run_on_another_model_is_refused_before_training(inputs, finished, tmp_path):
    settings = small(inputs, tmp_path, methods=("state", "context"))
    record = RunKey("context", TASK, 0).directory(settings.out) / "policy.json"
    record.parent.mkdir(parents=True)
    content = json.loads((RunKey("state", TASK, 0).directory(finished.out) / "policy.json").read_text())
    content["settings"]["observation"], content["fingerprint"] = "context", "0123456789abcdef"
    record.write_text(json.dumps(content))
    with pytest.raises(WrongPerceiver, match=f"context, {TASK}, seed 0.* fingerprint 0123456789abcdef"):
        benchmark(settings)
    assert not policies(settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tasks walker-wlak", "unknown task 'walker-wlak' of dmc100k; did you mean 'walker-walk'?"),
        ("--tasks walker-run", "unknown task 'walker-run' of dmc100k"),
        ("--methods contex", "unknown method 'contex' of dmc100k; did you mean 'context'?"),
        ("--tasks", "no task was chosen"),
        ("--seeds -1", "seeds must be one or more numbers from 0 up, got (-1,)"),
        ("--report-only", "nothing to report: no finished run in runs"),
        ("--methods context --model nowhere", "'nowhere' is neither a directory"),
        ("--methods pca --data nowhere", "no rollout dataset at nowhere"),
        ("--methods pca --tasks walker-walk --data {data}", "none of the 1 datasets holds frames of the protocol"),
        ("--report-only --results {results}", "holds results of another protocol (eval_episodes was 1, is 10"),
    ],
)
def test_wrong_input_is_one_line(inputs, finished, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    options = options.format(data=inputs / "data", results=finished.results).split()
    assert main(["benchmark", "dmc100k", "--out", "runs", "--docs", "docs", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("perceiver-obs benchmark: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_damaged_results_are_named(finished, tmp_path):
    path = tmp_path / "results.json"
    content = json.loads(finished.results.read_text())
    for damaged, message in [
        ("{", "not valid JSON"),
        (json.dumps({**content, "format_version": 9}), "does not hold results of dmc100k"),
        (json.dumps({**content, "runs": [{}]}), "is damaged"),
    ]:
        path.write_text(damaged)
        with pytest.raises(ValueError, match=message):
            Results.load(path, "dmc100k", finished)


def test_the_adapted_method_goes_on_training_the_model(inputs, tmp_path, monkeypatch):
    """On the rollouts of its task and on every frame it meets; the budget says so."""
    monkeypatch.setitem(agents.benchmark.suite.ADAPT, "adapt_steps", 1)
    monkeypatch.setitem(agents.benchmark.suite.ADAPT, "adapt_every", 96)
    settings = small(inputs, tmp_path, methods=("adapted",))
    (run,) = benchmark(settings).runs
    assert (run.method, run.frames) == ("adapted", 160)
    assert run.fingerprint == CausalPerceiverIO.from_pretrained(inputs / "model").fingerprint
    assert run.settings["adapt_data"] == [str(inputs / "data")]
    record = PolicyRecord.load(RunKey("adapted", TASK, 0).directory(settings.out))
    assert record.adaptation["adaptations"] == 1
    assert record.fingerprint != run.fingerprint
    assert run.offline == {"control_steps": 4 * 12 * 8, "rendered": 4 * 13, "policies": ["random", "correlated"]}
    assert "| context, adapted | 384 offline + 160 online |" in (settings.docs / "dmc100k.md").read_text()
    assert not list(settings.out.rglob("online_episodes.npz"))
    before = policies(settings)
    benchmark(settings)
    assert policies(settings) == before


def test_runs_from_before_adaptation_stay_valid(finished, tmp_path):
    shutil.copytree(RunKey("state", TASK, 0).directory(finished.out), RunKey("state", TASK, 0).directory(tmp_path))
    record = RunKey("state", TASK, 0).directory(tmp_path) / "policy.json"
    content = json.loads(record.read_text())
    content["settings"] = {name: value for name, value in content["settings"].items() if "adapt" not in name}
    del content["adaptation"]
    record.write_text(json.dumps(content))
    assert [run.frames for run in find_runs(tmp_path, finished)] == [160]

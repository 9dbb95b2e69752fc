"""Probes find what is there and nothing else, and read the contexts that a policy would get."""

import json
import re
import shutil
from dataclasses import replace
from math import nan

import numpy as np
import pytest
import torch
from tiny_models import small_frames_model
from tiny_runs import write_dataset

from perceiver_obs import CausalPerceiverIO
from perceiver_obs.data.clips import leading_actions
from perceiver_obs.data.data_record import read_data_record
from perceiver_obs.data.rollouts import Episode, RolloutDataset, RolloutWriter
from perceiver_obs.data.splits import split_episodes
from perceiver_obs.data.state_coordinates import StateCoordinates
from perceiver_obs.evaluation.features import context_features, pca_features, random_model
from perceiver_obs.evaluation.probe import probe
from perceiver_obs.evaluation.probe_data import EpisodeList, ProbeSet, ProbeTask, probe_tasks
from perceiver_obs.evaluation.probe_report import mean_r2, mean_r2_of_tasks, summary_tables, verdict
from perceiver_obs.evaluation.regression import ProbeResult, Score, mlp, ridge, score
from perceiver_obs.evaluation.settings import ProbeSettings
from perceiver_obs.evaluation.supervision import Supervision, supervised_model, supervision_settings
from perceiver_obs.evaluation.targets import rewards_around, state_targets
from perceiver_obs.reporting.sections import load_section

pytest_plugins = ("tiny_data",)


@pytest.fixture
def parts() -> dict[str, np.ndarray]:
    """Features of training, validation and test frames."""
    random = np.random.default_rng(0)
    return {name: random.normal(size=(n, 12)) for name, n in {"train": 600, "validation": 200, "test": 300}.items()}


def test_ridge_finds_a_linear_state_in_its_own_units(parts):
    weights = np.random.default_rng(1).normal(size=(12, 2)) * [1, 1000]
    states = {name: features @ weights + [5, -7] for name, features in parts.items()}
    predicted = ridge(parts["train"], states["train"], parts["validation"], states["validation"], [parts["test"]])[0]
    for dimension, each in enumerate(score(states["test"], predicted)):
        assert each.r2 > 0.9999
        assert each.rmse < 1e-3 * each.deviation
        assert each.deviation == pytest.approx(states["test"][:, dimension].std())


def test_ridge_finds_nothing_in_noise(parts):
    random = np.random.default_rng(2)
    states = {name: random.normal(size=(len(features), 1)) for name, features in parts.items()}
    predicted = ridge(parts["train"], states["train"], parts["validation"], states["validation"], [parts["test"]])[0]
    assert abs(score(states["test"], predicted)[0].r2) < 0.1


def test_ridge_with_more_features_than_frames_and_constant_columns():
    random = np.random.default_rng(3)
    features = np.concatenate([random.normal(size=(90, 200)), np.ones((90, 3))], axis=1)
    states = np.stack([features[:, 0], np.full(90, 4.0)], axis=1)
    predicted = ridge(features[:40], states[:40], features[40:60], states[40:60], [features[60:]])[0]
    scores = score(states[60:], predicted)
    assert np.isfinite(predicted).all()
    assert scores[1].rmse == 0
    assert np.isnan(scores[1].r2)


def test_mlp_finds_what_is_not_linear(parts):
    states = {name: np.abs(features[:, :1]) + 3 for name, features in parts.items()}
    arguments = (parts["train"], states["train"], parts["validation"], states["validation"], [parts["test"]])
    linear = score(states["test"], ridge(*arguments)[0])[0]
    network = score(states["test"], mlp(*arguments, seed=0)[0])[0]
    assert linear.r2 < 0.2
    assert network.r2 > 0.6


def test_scores_by_hand():
    states, predicted = np.array([[0.0], [2.0]]), np.array([[1.0], [2.0]])
    only = score(states, predicted)[0]
    assert only.rmse == pytest.approx(np.sqrt(0.5))
    assert only.r2 == pytest.approx(0.5)
    assert score(states, np.array([[3.0], [3.0]]))[0].r2 < 0
    barely, too_little = (score(states, predicted, np.array([least]))[0] for least in (0.9, 1.1))  # of deviation 1
    assert barely == only
    assert np.isnan(too_little.r2)
    assert too_little.rmse == only.rmse


def test_features_are_the_contexts_of_each_episode_alone(tiny_data, tiny_model, tmp_path):
    model = CausalPerceiverIO.from_pretrained(tiny_model)
    short = RolloutDataset(write_dataset(tmp_path / "short", [3, 5], action_size=1, size=32))
    episodes = [*RolloutDataset(tiny_data)[:2], *short]
    for features, episode in zip(context_features(model, torch.device("cpu"), "contexts")(episodes), episodes):
        video = torch.from_numpy(np.array(episode.pixels).transpose(0, 3, 1, 2))[None]
        actions = torch.from_numpy(leading_actions(episode.actions, model.action_dim))[None]
        state = model.init_state(1)
        for time, context in enumerate(features):
            streamed, state = model.step(video[:, time], state, actions[:, time])
            np.testing.assert_allclose(context, streamed[0], atol=1e-4)


def test_pca_reads_three_frames_in_a_row(tiny_data):
    episodes = RolloutDataset(tiny_data)[:4]
    features = pca_features(episodes, num_components=6, seed=0)(episodes)
    assert [each.shape for each in features] == [(25, 6)] * 4
    stacked = np.concatenate(features)
    covariance = np.cov(stacked.T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-2 * covariance.max()


def test_random_model_has_the_shape_but_not_the_weights(tiny_model):
    model = CausalPerceiverIO.from_pretrained(tiny_model)
    untrained = random_model(model, seed=0)
    assert untrained.context_dim == model.context_dim
    assert untrained.fingerprint != model.fingerprint
    assert random_model(model, seed=0).fingerprint == untrained.fingerprint


@pytest.fixture
def two_sets(tmp_path) -> ProbeTask:
    """Noise of one task: eight episodes of exploration, six on-policy."""
    explored = write_dataset(tmp_path / "explored", [9] * 8, action_size=1, size=32, states=True)
    played = write_dataset(tmp_path / "played", [20] * 6, action_size=1, size=32, states=True)
    (task,) = probe_tasks([str(explored)], [str(played)], 0.1, 0.65, 400)
    return task


def test_supervision_trains_every_weight_between_frames_and_contexts_of_a_copy(two_sets, tmp_path):
    model = small_frames_model()
    before = model.fingerprint
    run = supervision_settings(("noise",), tmp_path, 3, 2, seed=0, device=torch.device("cpu"))
    supervised = supervised_model(model, two_sets, run)
    assert model.fingerprint == before
    video = torch.rand(1, 4, 3, 32, 32)
    model.requires_grad_(True).contexts(video, torch.rand(1, 4, 1)).square().sum().backward()
    used = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    learned = {
        n for (n, new), old in zip(supervised.named_parameters(), model.parameters()) if not torch.equal(new, old)
    }
    assert any(name.startswith("predictor.tokenizer.encoder") for name in used)
    assert used <= learned
    assert not supervised.training


def test_supervision_that_is_killed_goes_on_to_the_same_weights(two_sets, tmp_path, monkeypatch):
    def supervise(out: str) -> str:
        run = supervision_settings(("noise",), tmp_path / out, 4, 2, seed=0, device=torch.device("cpu"))
        return supervised_model(small_frames_model(), two_sets, replace(run, checkpoint_every=1)).fingerprint

    whole = supervise("whole")
    batch = Supervision.batch

    def batch_of_a_dying_run(stage, step, rank):
        if step == 3:
            raise KeyboardInterrupt
        return batch(stage, step, rank)

    monkeypatch.setattr(Supervision, "batch", batch_of_a_dying_run)
    with pytest.raises(KeyboardInterrupt):
        supervise("killed")
    steps = []
    monkeypatch.setattr(Supervision, "batch", lambda stage, s, rank: steps.append(s) or batch(stage, s, rank))
    assert supervise("killed") == whole
    assert 0 < len(steps) < 4


def test_no_episode_is_tested_on_that_anything_was_fitted_on(two_sets):
    for each in two_sets.sets:
        fitted, chosen, tested, supervised = (
            {number for _, number in part.places}
            for part in (each.training, each.validation, each.test, each.supervision)
        )
        assert not fitted & chosen
        assert not (fitted | chosen | supervised) & tested
        assert not supervised & chosen
        assert fitted <= supervised
        assert fitted | chosen | tested == set(range(len(each.datasets[0])))


@pytest.mark.parametrize(("count", "fraction", "fitted"), [(20, 0.65, 13), (3, 0.65, 2), (3, 0.1, 2), (4, 0.99, 3)])
def test_the_stated_share_of_a_policys_episodes_is_fitted_on(tmp_path, count, fraction, fitted):
    explored = write_dataset(tmp_path / "explored", [2] * 3, states=True)
    played = write_dataset(tmp_path / "played", [2] * count, states=True)
    (task,) = probe_tasks([str(explored)], [str(played)], 0.1, fraction, 400)
    on_policy = task.sets[1]
    assert len(on_policy.training) + len(on_policy.validation) == fitted
    assert len(on_policy.test) == count - fitted
    held_out = {(str(d.path), d.indices[p]) for d, p in on_policy.test.places}
    assert {(str(played), p) for p in split_episodes(RolloutDataset(played), 0.1)[1]} <= held_out


def test_max_episodes_takes_some_of_every_dataset(tmp_path):
    paths = [str(write_dataset(tmp_path / str(n), [2] * n, states=True)) for n in (40, 50)]
    (task,) = probe_tasks(paths, [], 0.2, 0.65, 8)
    (each,) = task.sets
    assert len(each.training) + len(each.validation) == 8
    assert len(each.test) == 2
    for part in (each.training, each.validation, each.test):
        assert {str(dataset.path) for dataset, _ in part.places} == set(paths)
    assert len(each.supervision) > len(each.training)


def test_a_state_that_is_a_linear_map_of_contexts_is_read_whole(tmp_path):
    model = small_frames_model()
    model.save_pretrained(tmp_path / "model")
    map_ = np.random.default_rng(0).normal(size=(model.context_dim, 2))
    for name, length in (("explored", 12), ("played", 30)):
        bare = RolloutDataset(write_dataset(tmp_path / f"{name}-bare", [length] * 8, action_size=1, size=32))
        writer = RolloutWriter(tmp_path / name, {**bare.meta, "state_names": ["position/x", "velocity/x"]})
        contexts = context_features(model, torch.device("cpu"), "contexts")(bare)
        for number, (episode, each) in enumerate(zip(bare, contexts)):
            fields = {**vars(episode), "states": (each @ map_ + [3, -2]).astype(np.float32)}
            writer.write_episode(number, **fields)
    results = probe(
        ProbeSettings(
            model=str(tmp_path / "model"),
            data=(str(tmp_path / "explored"),),
            on_policy=(str(tmp_path / "played"),),
            out=str(tmp_path / "out"),
            seed=1,  # the tiny model's weights are those of seed 0
            device="cpu",
        )
    )
    for result in results:
        if result.regression == "ridge":
            scores = [score.r2 for score in result.scores.values()]
            assert min(scores) > 0.999 if result.features == "context" else max(scores) < 0.95


def test_where_no_state_was_recorded_the_reward_is_read(tmp_path, capsys):
    model = small_frames_model()
    model.save_pretrained(tmp_path / "model")
    bare = RolloutDataset(write_dataset(tmp_path / "bare", [40] * 8, action_size=1, size=32))
    writer = RolloutWriter(tmp_path / "data", bare.meta)
    weights = np.random.default_rng(0).normal(size=model.context_dim)
    for number, (episode, each) in enumerate(zip(bare, context_features(model, torch.device("cpu"), "contexts")(bare))):
        writer.write_episode(number, **{**vars(episode), "rewards": (each[1:] @ weights).astype(np.float32)})
    options = {"model": str(tmp_path / "model"), "data": (str(tmp_path / "data"),), "device": "cpu", "seed": 1}
    results = probe(ProbeSettings(**options, out=str(tmp_path / "out"), mlp=False))
    context = results[0]
    assert {name for result in results for name in result.scores} == {"reward/now", "reward/next_5"}
    assert context.scores["reward/now"].r2 > 0.999
    assert context.scores["reward/next_5"].r2 < 0.5  # frames of noise say nothing of what comes
    means = [max(0, np.mean([score.r2 for score in result.scores.values()])) for result in results]
    said = (
        "Contexts beat PCA of 3 frames and random weights: "
        f"rewards R² {means[0]:.2f} ({means[0] - means[1]:+.2f} to PCA of 3 frames, "
        f"{means[0] - means[2]:+.2f} to random weights)."
    )
    printed = capsys.readouterr().out
    assert f"probe: {said}\n" in printed
    assert "noise, exploration: tested on 41 frames alone, too few to judge by" in printed
    assert load_section(tmp_path / "out").verdict == said
    assert "the reward the contexts of" in load_section(tmp_path / "out").summary
    saved = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert [each["name"] for each in saved["tasks"]["noise"]["coordinates"]] == ["reward/now", "reward/next_5"]
    assert "mean R² of rewards**" in (tmp_path / "out" / "probe.md").read_text()
    with pytest.raises(ValueError, match="supervised_steps needs rollouts with states, those of noise have none"):
        probe(ProbeSettings(**options, out=str(tmp_path / "supervised"), supervised_steps=1))


@pytest.mark.parametrize(
    ("terminated", "rows"),
    [
        (False, [[nan, nan], [1, 3.5], [2, 4], [3, 4.5], [4, 5], [nan, nan]]),
        (True, [[nan, nan], [1, 14 / 5], [2, 12 / 5], [3, 9 / 5], [4, 1], [5, 0]]),
    ],
)
def test_rewards_around_a_frame(terminated, rows):
    """Frame 1 of five steps: the first led to it, the others are ahead. After a task's end there are none."""
    frames, rewards = np.zeros((6, 4, 4, 3), np.uint8), np.arange(1, 6, dtype=np.float32)
    episode = Episode(frames, np.zeros((5, 1), np.float32), rewards, terminated, not terminated, 0, "any")
    np.testing.assert_allclose(rewards_around(episode), rows)


def result_of(features: str, **r2: float) -> ProbeResult:
    scores = {f"{kind}/x": Score(value, 0.1, 1.0) for kind, value in r2.items()}
    return ProbeResult("noise", "exploration", features, "MLP", scores)


def test_the_verdict_names_what_contexts_do_not_beat():
    context = result_of("context", position=0.9, reward=0.3)
    pca, untrained = "PCA of 3 frames", "random weights"
    results = [context, result_of(pca, position=0.5, reward=0.4), result_of(untrained, position=0.6, reward=-7.0)]
    assert verdict(results) == (
        "Contexts do not beat PCA of 3 frames in rewards: state R² 0.90 (+0.40 to PCA of 3 frames, +0.30 to random "
        "weights); rewards R² 0.30 (-0.10 to PCA of 3 frames, +0.30 to random weights)."
    )
    assert verdict([context]) == ""
    still = [result_of(name, reward=nan) for name in ("context", pca, untrained)]
    assert verdict(still).startswith("Nothing that is recorded varies")


def test_probe_of_two_tasks_with_all_baselines(tiny_data, tiny_model, tmp_path, capsys):
    lengths = [20, 20, 20]
    wild = write_dataset(tmp_path / "wild", lengths, action_size=1, size=32, states=True)
    calm = write_dataset(tmp_path / "calm", lengths, action_size=1, size=32, states=True, spread=0.5)
    settings = ProbeSettings(
        model=str(tiny_model),
        data=(str(tiny_data), str(wild)),
        on_policy=(str(calm),),
        out=str(tmp_path / "out"),
        random_weights=str(tmp_path / "untrained"),
        supervised_steps=2,
        supervised_batch=2,
        device="cpu",
    )
    results = probe(settings)
    sets = [("cartpole-swingup", "exploration"), ("noise", "exploration"), ("noise", "on-policy")]
    features = ["context", "PCA of 3 frames", "random weights", "supervised"]
    expected = {(t, e, f, r) for t, e in sets for f in features for r in ("ridge", "MLP")}
    assert {(each.task, each.episodes, each.features, each.regression) for each in results} == expected
    saved = json.loads((tmp_path / "out" / "probe.json").read_text(), parse_constant=pytest.fail)
    assert len(saved["results"]) == len(results) == len(expected)
    assert set(saved["results"][0]["scores"]["position/slider"]) == {"r2", "rmse", "deviation"}
    cartpole = saved["tasks"]["cartpole-swingup"]
    assert {"name": "velocity/slider", "unit": "m/s", "twins": ""} in cartpole["coordinates"]
    assert saved["tasks"]["noise"]["sets"]["on-policy"]["datasets"] == [str(calm)]
    assert saved["tasks"]["noise"]["sets"]["on-policy"]["test"] == {"episodes": 1, "frames": 21}

    by_task = [
        mean_r2(result, "position/")
        for result in results
        if (result.episodes, result.features, result.regression) == ("exploration", "context", "MLP")
    ]
    mean = mean_r2_of_tasks(results, "exploration", "context", "MLP", "position/")
    assert mean == pytest.approx(np.mean(by_task))
    page = (tmp_path / "out" / "probe.md").read_text()
    table = page.split("**Exploration, MLP: mean R² of positions / velocities / rewards**")[1].split("**")[0]
    assert re.search(rf"\| mean \| {mean:.2f} / ", table)
    assert f"| cartpole-swingup | {by_task[0]:.2f} / " in table
    printed = capsys.readouterr().out
    assert "On-policy, ridge" in printed
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 4  # two sets, two tasks
    assert report.count("<table>") == 4 + 3  # by set and regression; coordinates by task and set
    section = load_section(tmp_path / "out")
    assert section.tables
    best = max(
        mean_r2_of_tasks(results, "exploration", name, "MLP", "velocity/")
        for name in ("PCA of 3 frames", "random weights")
    )
    (compared,) = (each for each in section.comparisons if each.name == "velocities, exploration, MLP R²")
    assert compared.value == pytest.approx(mean_r2_of_tasks(results, "exploration", "context", "MLP", "velocity/"))
    assert compared.baseline == pytest.approx(best)
    assert f"--begin-with {tiny_model} --data {tiny_data} {wild} --out" in compared.command
    assert not (tmp_path / "out" / "supervised").exists()

    untrained = CausalPerceiverIO.from_pretrained(tmp_path / "untrained")
    episodes = [episode for path in (tiny_data, wild, calm) for episode in RolloutDataset(path)]
    contexts = np.concatenate(context_features(untrained, torch.device("cpu"), "contexts")(episodes))
    assert np.abs(contexts.mean(axis=0)).mean() < 0.5  # of those that were fitted on, 0 and 1
    assert 0.5 < contexts.std(axis=0).mean() < 1.5
    assert read_data_record(tmp_path / "untrained") == []


def test_an_on_policy_set_that_the_model_was_trained_on_is_named(tiny_data, tiny_model, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_data, copy)
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps({**meta, "versions": {}}))
    options = {
        "model": str(tiny_model),
        "out": str(tmp_path / "out"),
        "baselines": False,
        "mlp": False,
        "device": "cpu",
    }
    probe(ProbeSettings(data=(str(copy),), on_policy=(str(tiny_data),), **options))
    assert f"The model was trained on {tiny_data}" in capsys.readouterr().out
    assert f"trained on {tiny_data}" in (tmp_path / "out" / "report.html").read_text()
    probe(ProbeSettings(data=(str(tiny_data),), on_policy=(str(copy),), **options))
    assert "The model was trained on" not in capsys.readouterr().out


@pytest.mark.parametrize(("spread", "judged"), [(0.5, True), (0.02, False)])
def test_what_a_policy_holds_nearly_still_has_an_error_and_no_r2(tiny_model, tmp_path, spread, judged):
    lengths = [20, 20, 20]
    wild = write_dataset(tmp_path / "wild", lengths, action_size=1, size=32, states=True)
    calm = write_dataset(tmp_path / "calm", lengths, action_size=1, size=32, states=True, spread=spread)
    settings = ProbeSettings(str(tiny_model), (str(wild),), (str(calm),), str(tmp_path / "out"), device="cpu")
    for result in probe(settings):
        for name, each in result.scores.items():
            if name.startswith("reward/"):
                assert np.isnan(each.r2)  # there is none in this noise
                continue
            assert np.isfinite(each.r2) == (judged or result.episodes == "exploration")
            assert np.isfinite(each.rmse)
    page = (tmp_path / "out" / "probe.md").read_text()
    left_out = re.findall("Left out, .*: noise position/x, noise velocity/x", page)
    assert len(left_out) == (0 if judged else 2)  # ridge and MLP
    scores = json.loads((tmp_path / "out" / "probe.json").read_text())["results"][-1]["scores"]
    assert (scores["velocity/x"]["r2"] is None) == (not judged)


def twin_result(episodes: str, features: str, r2: dict[str, float]) -> ProbeResult:
    scores = {name: Score(value, 0.1, 1.0) for name, value in r2.items()}
    return ProbeResult("walker-walk", episodes, features, "MLP", scores)


def test_twin_limbs_have_a_table_of_their_own(tmp_path):
    limbs = [f"{side}_{limb}" for side in ("right", "left") for limb in ("hip", "knee")]
    names = ["position/rootz", *(f"{kind}/{limb}" for kind in ("position", "velocity") for limb in limbs)]
    coordinates = StateCoordinates(names, "walker-walk")
    empty = EpisodeList([])
    task = ProbeTask(
        "walker-walk", state_targets(coordinates), (ProbeSet("exploration", (), empty, empty, empty, empty),)
    )
    r2 = {
        "position/rootz": 0.5,
        "position/right+left_hip": 0.9,
        "position/right-left_hip": -0.1,
        "position/right+left_knee": 0.7,
        "position/right-left_knee": 0.1,
        "velocity/right+left_hip": 0.4,
        "velocity/right-left_hip": -0.001,
        "velocity/right+left_knee": 0.2,
        "velocity/right-left_knee": float("nan"),
    }
    (table,) = (
        t for t in summary_tables([twin_result("exploration", "context", r2)], [task]) if "look alike" in t.title
    )
    assert table.columns == ("features", "sums", "differences", "hip", "knee", "hip velocity", "knee velocity")
    assert table.rows == (
        ("context, MLP", "0.80 / 0.30", "0.00 / 0.00", "0.90 / -0.10", "0.70 / 0.10", "0.40 / 0.00", "0.20 / –"),
    )


@pytest.mark.parametrize(
    ("data", "on_policy", "message"),
    [
        (["few"], [], "at least 3"),
        (["noise"], ["few"], "at least 3"),
        (["noise"], ["cartpole"], "on-policy episodes of cartpole-swingup, but no exploration"),
        (["noise", "odd"], [], "states of different kinds"),
        (["noise"], ["odd"], "states of different kinds"),
        (["noise", "cartpole"], ["noise"], "as exploration and as on-policy"),
        (["nowhere"], [], "no rollout dataset at"),
    ],
)
def test_datasets_that_cannot_be_probed_are_named(tiny_data, tmp_path, data, on_policy, message):
    write_dataset(tmp_path / "few", [4, 4], states=True)
    write_dataset(tmp_path / "noise", [4, 4, 4], states=True)
    odd = write_dataset(tmp_path / "odd", [4, 4, 4], states=True) / "meta.json"
    odd.write_text(odd.read_text().replace("position/x", "position/y"))
    (tmp_path / "cartpole").symlink_to(tiny_data)
    paths = [[str(tmp_path / name) for name in names] for names in (data, on_policy)]
    with pytest.raises(ValueError, match=message):
        probe_tasks(*paths, 0.1, 0.65, 100)


@pytest.mark.parametrize("field", ["held_out_fraction", "on_policy_fitted"])
def test_shares_lie_between_0_and_1(field):
    for value in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=field):
            ProbeSettings(**{field: value})

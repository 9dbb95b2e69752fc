"""Probes find what is there and nothing else, and read the contexts that a policy would get."""

import json

import numpy as np
import pytest
import torch
from tiny_runs import write_dataset

from envs.rollouts import RolloutDataset
from perceiver_obs import CausalPerceiverIO
from perceiver_obs.training.data import leading_actions
from perceiver_obs.training.probe import ProbeSettings, probe
from perceiver_obs.training.probe_features import context_features, pca_features, random_model, supervised_model
from perceiver_obs.training.probe_regression import mlp, ridge, score
from perceiver_obs.training.probe_report import mean_r2

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


def test_supervision_changes_a_copy(tiny_data, tiny_model):
    model = CausalPerceiverIO.from_pretrained(tiny_model)
    before = model.fingerprint
    taught = supervised_model(model, RolloutDataset(tiny_data), [0, 1, 2], 3, torch.device("cpu"), seed=0)
    assert model.fingerprint == before != taught.fingerprint


def test_probe_of_both_sets_with_all_baselines(tiny_data, tiny_model, tmp_path, capsys):
    settings = ProbeSettings(
        model=str(tiny_model),
        data=str(tiny_data),
        on_policy=str(tiny_data),
        out=str(tmp_path),
        supervised_steps=2,
        device="cpu",
    )
    results = probe(settings)
    features = {"context", "PCA of 3 frames", "random weights", "supervised"}
    expected = {(f, r, e) for f in features for r in ("ridge", "MLP") for e in ("exploration", "on-policy")}
    assert {(each.features, each.regression, each.episodes) for each in results} == expected
    names = RolloutDataset(tiny_data).meta["state_names"]
    assert all(list(each.scores) == names for each in results)
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert len(saved["results"]) == len(results)
    assert set(saved["results"][0]["scores"][names[0]]) == {"r2", "rmse", "deviation"}
    assert all(np.isfinite(mean_r2(each, prefix)) for each in results for prefix in ("position/", "velocity/"))
    printed = capsys.readouterr().out
    assert "on-policy" in printed
    assert "mean of" in printed
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 4


@pytest.mark.parametrize(("spread", "judged"), [(0.5, True), (0.02, False)])
def test_what_a_policy_holds_nearly_still_has_an_error_and_no_r2(tiny_model, tmp_path, spread, judged):
    lengths = [20, 20, 20]
    wild = write_dataset(tmp_path / "wild", lengths, action_size=1, size=32, states=True)
    calm = write_dataset(tmp_path / "calm", lengths, action_size=1, size=32, states=True, spread=spread)
    settings = ProbeSettings(str(tiny_model), str(wild), str(calm), str(tmp_path / "out"), device="cpu")
    for result in probe(settings):
        for each in result.scores.values():
            assert np.isfinite(each.r2) == (judged or result.episodes == "exploration")
            assert np.isfinite(each.rmse)


def test_rollouts_without_states_cannot_be_probed(tiny_model, tmp_path):
    blind = write_dataset(tmp_path / "blind", [4, 4, 4], size=32)
    with pytest.raises(ValueError, match="without states"):
        probe(ProbeSettings(model=str(tiny_model), data=str(blind), out=str(tmp_path / "out"), device="cpu"))


def test_probing_takes_three_episodes_and_states_of_one_kind(tiny_data, tiny_model, tmp_path):
    few = write_dataset(tmp_path / "few", [4, 4], size=32, states=True)
    with pytest.raises(ValueError, match="at least 3"):
        probe(ProbeSettings(model=str(tiny_model), data=str(few), out=str(tmp_path / "out"), device="cpu"))
    other = write_dataset(tmp_path / "other", [4, 4, 4], size=32, states=True)
    settings = ProbeSettings(str(tiny_model), str(tiny_data), str(other), str(tmp_path / "out"), device="cpu")
    with pytest.raises(ValueError, match="states of different kinds"):
        probe(settings)

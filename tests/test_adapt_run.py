"""`train-policy` that adapts its Perceiver: what a run leaves, killing it, what it refuses."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import SIZE, offline_contexts, small_frames_model
from tiny_runs import REPEAT, policy_settings

import agents.adaptation.adapt_context
from agents import EvaluateSettings, TrainPolicySettings, WrongPerceiver, evaluate, train_policy
from agents.training.policy_files import LearningCurve, PolicyRecord
from perceiver_obs import CausalPerceiverIO
from perceiver_obs.data.data_record import write_data_record
from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.objectives.saved_heads import read_heads
from perceiver_obs.training.adaptation import Adaptation, training_settings

TOLERANCE = 1e-5

pytest_plugins = ("tiny_data",)


def run_settings(data, out, model, **changes) -> TrainPolicySettings:
    """A run of 60 agent steps: adaptations after 24 and 48, evaluations after 30 and 60."""
    arguments = dict(
        size=SIZE,
        total_frames=60 * REPEAT,
        eval_every=30 * REPEAT,
        adapt_every=24 * REPEAT,
        adapt_steps=2,
        adapt_learning_rate=1e-2,
        adapt_data=(str(data), str(data)),  # named twice, counted once
        hyperparameters={"n_steps": 3},
    )
    return policy_settings(model, out, **(arguments | changes))


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """The directory of a model that says how it was trained, and that it was trained on nothing."""
    path = tmp_path_factory.mktemp("model")
    small_frames_model().save_pretrained(path)
    write_data_record(path, [])
    training = {"clip_length": 7, "edge_weight": 0.5, "horizons": [0, 1], "forgotten": 3, "data": ["gone"]}
    (path / "settings.json").write_text(json.dumps(training))
    return path


@pytest.fixture(scope="module")
def unbroken(tiny_data, saved_model, tmp_path_factory):
    """The settings of a run that has ended."""
    settings = run_settings(tiny_data, tmp_path_factory.mktemp("runs") / "unbroken", saved_model)
    train_policy(settings)
    return settings


def test_a_run_leaves_its_perceiver_and_the_budget(unbroken, tiny_data, saved_model, tmp_path):
    record = PolicyRecord.load(unbroken.out)
    perceiver = CausalPerceiverIO.from_pretrained(unbroken.out / "perceiver")
    before = CausalPerceiverIO.from_pretrained(saved_model)
    assert record.fingerprint == perceiver.fingerprint != before.fingerprint
    offline = RolloutDataset(tiny_data)
    steps = sum(offline.lengths) - len(offline)
    assert record.adaptation == {
        "began_with": before.fingerprint,
        "adaptations": 2,
        "gradient_steps": 3 * 2,
        "online_frames": 60 * REPEAT,
        "frames": f"{2 * steps:,} offline + 3,000 online; all frames that the policy met are also trained on",
    }
    assert [entry["fingerprint"] for entry in record.offline_data] == [offline.fingerprint]
    result = evaluate(EvaluateSettings(policy=unbroken.out, episodes=1, device="cpu", out=tmp_path / "e.json"))
    assert result.fingerprint == perceiver.fingerprint
    with pytest.raises(WrongPerceiver, match=f"fingerprint {before.fingerprint}"):
        evaluate(EvaluateSettings(policy=unbroken.out, model=str(saved_model), device="cpu"))
    assert training_settings(saved_model).horizons == (1,), "0 steps ahead was never asked"
    assert training_settings(tmp_path) is None


def test_a_model_trained_on_states_adapts_to_states_and_the_record_says_so(tiny_data, saved_model, tmp_path):
    shutil.copytree(saved_model, tmp_path / "model")
    training = {"clip_length": 7, "outline_weight": 0.5, "outline_horizon": 2, "state_weight": 1.0}
    (tmp_path / "model" / "settings.json").write_text(json.dumps(training))
    assert training_settings(tmp_path / "model").edge_weight == 0.5
    assert training_settings(tmp_path / "model").latent_horizon == 2
    changes = dict(total_frames=26 * REPEAT, eval_every=26 * REPEAT, adapt_data=(f"{tiny_data}=2",), adapt_steps=1)
    settings = run_settings(tiny_data, tmp_path / "run", tmp_path / "model", **changes)
    train_policy(settings)
    (checkpoint,) = (settings.out / "checkpoints").iterdir()
    with np.load(checkpoint / "online_episodes.npz") as online:
        assert online["0/000000/states"].shape == (21, 5)
        assert online["0/000000/states"].std(0).min() > 0
    record = PolicyRecord.load(settings.out)
    assert record.privileged == "state"
    assert [entry["name"] for entry in record.offline_data] == ["data"]
    assert CausalPerceiverIO.from_pretrained(settings.out / "perceiver").frame_contract["privileged"] == "state"
    assert training_settings(settings.out / "perceiver").state_weight == 1.0
    assert read_heads(settings.out / "perceiver").tasks == ["cartpole-swingup"]


def test_a_killed_run_goes_on_adapting(unbroken, tmp_path, monkeypatch):
    """Killed after the first adaptation, whose Perceiver it must go on from; the lost steps are played anew."""
    settings = replace(unbroken, out=tmp_path / "run")
    append = LearningCurve.append

    def killed_at_the_second(curve, point):
        append(curve, point)
        raise KeyboardInterrupt

    monkeypatch.setattr(LearningCurve, "append", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train_policy(settings)
    monkeypatch.undo()
    learned, encoded = [], []
    learn, reencode = Adaptation.learn, agents.adaptation.adapt_context.reencode_buffer

    def listen(self, episodes, steps):
        learned.append((self.steps, [episode.steps for episode in episodes], copy.deepcopy(self.model)))
        return learn(self, episodes, steps)

    def look(buffer, rows, model, device):
        encoded.append((learned[-1][2], buffer.observations[: buffer.pos, 0].copy(), rows[0]))
        reencode(buffer, rows, model, device)
        encoded.append((model, buffer.observations[: buffer.pos, 0].copy(), rows[0]))

    monkeypatch.setattr(Adaptation, "learn", listen)
    monkeypatch.setattr(agents.adaptation.adapt_context, "reencode_buffer", look)
    train_policy(settings)
    ((done, lengths, resumed),) = learned
    assert done == 4
    assert lengths == [20, 9, 18], "the step whose transition the checkpoint lacks is gone, and its episode broken off"
    assert resumed.fingerprint != PolicyRecord.load(settings.out).began_with
    assert encoded[1][0].fingerprint != resumed.fingerprint
    for model, observations, episodes in encoded:
        expected = [offline_contexts(model, episode.pixels, list(episode.actions))[:-1] for episode in episodes]
        np.testing.assert_allclose(observations, np.concatenate(expected), atol=TOLERANCE)
    assert PolicyRecord.load(settings.out).adaptation["adaptations"] == 2


def test_a_checkpoint_without_its_frames_is_refused(unbroken, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(unbroken.out, out)
    (out / "checkpoints" / "step-60" / "online_episodes.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"online_episodes\.npz is missing: the run cannot go on adapting"):
        train_policy(replace(unbroken, out=out, total_frames=70 * REPEAT))
    assert (out / "policy.zip").exists()
    evaluate(EvaluateSettings(policy=out, episodes=1, device="cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapt_every": 0}, "adapt_every must be 1 or more, got 0"),
        ({"observation": "state"}, "needs the observation \"context\", got 'state'"),
        ({"algorithm": "PPO"}, "replay buffer such as SAC, got PPO"),
        ({"adapt_data": ("nowhere",)}, "no rollout dataset at nowhere"),
        ({"prior_data": ("nowhere",)}, "no rollout dataset at nowhere"),
        ({"prior_data": ("nowhere",), "adapt_every": None}, "no rollout dataset at nowhere"),
        (
            {"prior_data": ("nowhere",), "adapt_every": None, "algorithm": "PPO"},
            "prior_data needs an algorithm with a replay buffer such as SAC, got PPO",
        ),
        (
            {"prior_data": ("nowhere",), "adapt_every": None, "observation": "pixels"},
            "prior_data needs the observation \"context\", got 'pixels'",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(tiny_data, saved_model, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_policy(run_settings(tiny_data, tmp_path, saved_model, **changes))
    assert not list(tmp_path.iterdir())

"""Frames that a model does not know are named: by task, setting and row, in every shell, and the defaults are known."""

import json
import warnings
from functools import partial

import gymnasium as gym
import pytest
from drawn_env import DrawnEnv
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_models import tiny_model
from tiny_runs import write_dataset

from agents import TrainPolicySettings, VecPerceiverContext
from agents.training.settings import PolicyEnvSettings
from envs import CollectSettings, RolloutDataset, make_dmc
from envs.collection.settings import make_collection_env
from perceiver_obs import CausalPerceiverIO, PerceiverContextVectorWrapper, PerceiverContextWrapper
from perceiver_obs.data.splits import joint_contract, open_datasets
from perceiver_obs.frame_contract import FrameContract, Variant

MADE = {"size": 64, "channels": 3, "action_repeat": 2, "camera": 0, "render_quality": "smooth"}
WALKER = {**MADE, "tasks": ["walker-walk"]}
CARTPOLE = {**WALKER, "tasks": ["cartpole-swingup"], "action_repeat": 8}
TASKS = ("ball_in_cup-catch", "cartpole-swingup", "cheetah-run", "finger-spin", "reacher-easy", "walker-walk")


@pytest.fixture(scope="module")
def bundled() -> FrameContract:
    return FrameContract.of(CausalPerceiverIO.from_pretrained("dmc-small").frame_contract)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (WALKER, []),
        (CARTPOLE, []),
        ({**CARTPOLE, "render_quality": "fast"}, []),
        ({**CARTPOLE, "action_repeat": 1}, ["action_repeat is 1, the model was trained with 8"]),
        ({**CARTPOLE, "action_repeat": 4}, ["action_repeat is 4, the model was trained with 8"]),
        ({**CARTPOLE, "camera": 1}, ["camera is 1, the model was trained with 0"]),
        (
            {**WALKER, "render_quality": "standard"},
            [
                "render_quality is 'standard', the model was trained with 'fast' or 'smooth' "
                "(and hardly with that: 2.9% of its frames)"
            ],
        ),
        (
            {**WALKER, "tasks": ["hopper-hop"]},
            [f"task hopper-hop is new, the model was trained with {', '.join(TASKS)}"],
        ),
        ({**WALKER, "tasks": None, "action_repeat": 3}, ["action_repeat is 3, the model was trained with 2 or 4 or 8"]),
        ({"size": 84}, ["size is 84, the model was trained with 64"]),
        ({**CARTPOLE, "action_repeat": None, "render_quality": None}, []),
        ({}, []),
    ],
)
def test_what_the_bundled_model_knows(bundled, shown, expected):
    assert bundled.differences(FrameContract.of(shown)) == expected


def test_a_warning_may_hold_a_percent_sign():
    """Gymnasium's logger takes its message for a format string."""
    with pytest.warns(UserWarning, match=r"hardly with that: 2\.9% of its frames"):
        PerceiverContextWrapper(make_dmc("walker-walk", render_quality="standard"))


@pytest.mark.parametrize("task", [*TASKS, "cartpole-balance", "reacher-hard", "hopper-hop"])
def test_what_is_made_when_nothing_is_said_is_what_the_bundled_model_knows(bundled, task):
    env = make_dmc(task)
    stated = env.get_wrapper_attr("frame_contract")
    new_task = [] if task in TASKS else [f"task {task} is new, the model was trained with {', '.join(TASKS)}"]
    assert bundled.differences(FrameContract.of(stated)) == new_task
    assert gym.make(f"envs:dmc/{task}-v0").get_wrapper_attr("frame_contract") == stated
    collected = make_collection_env(CollectSettings(task=task))
    assert collected.frame_contract == stated
    for settings in (PolicyEnvSettings(task=task), TrainPolicySettings(task=task)):
        assert (settings.action_repeat, settings.render_quality, settings.camera) == (None, "smooth", None)
    for each in (env, collected):
        each.close()


def make_single(contracts, model):
    return PerceiverContextWrapper(DrawnEnv(contracts[0]), model)


def make_vector(cls, contracts, model):
    return PerceiverContextVectorWrapper(cls([partial(DrawnEnv, each) for each in contracts]), model)


def make_sb3(contracts, model):
    return VecPerceiverContext(DummyVecEnv([partial(DrawnEnv, each) for each in contracts]), model)


VECTORS = {
    "sync": partial(make_vector, SyncVectorEnv),
    "async": partial(make_vector, AsyncVectorEnv),
    "sb3": make_sb3,
}
SHELLS = {"single": make_single, **VECTORS}


def said(make, contracts, model) -> list[str]:
    """The warnings of ours while a shell is made."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(contracts, model).close()
    return [str(each.message).removesuffix("\x1b[0m") for each in caught if "frames may not be" in str(each.message)]


def knowing(contract) -> CausalPerceiverIO:
    model = tiny_model()
    model.frame_contract = contract
    return model


@pytest.mark.parametrize("shell", ["sync", "sb3"])
def test_every_row_is_compared(shell):
    make, model = VECTORS[shell], knowing(WALKER)
    assert said(make, [WALKER] * 3, model) == []
    (message,) = said(make, [WALKER, {**WALKER, "camera": 1}, WALKER], model)
    assert "camera is 1, the model was trained with 0 (row 1)" in message
    assert "rows differ: camera is 1, another row has 0" in message
    (message,) = said(make, [WALKER, CARTPOLE, CARTPOLE], model)
    assert "task cartpole-swingup is new, the model was trained with walker-walk (rows 1, 2)" in message
    assert "rows differ" not in message, "tasks have action repeats of their own"


@pytest.mark.parametrize("shell", VECTORS)
def test_rows_that_differ_are_named_even_where_the_model_knows_both(shell):
    model = knowing({**WALKER, "render_quality": ["smooth", "fast"]})
    (message,) = said(VECTORS[shell], [WALKER, {**WALKER, "render_quality": "fast"}], model)
    assert message.endswith("rows differ: render_quality is 'fast', another row has 'smooth'")


@pytest.mark.parametrize("shell", ["single", "sync", "sb3"])
def test_a_bundled_model_is_not_silent_where_nobody_says_what_frames_show(shell):
    (message,) = said(SHELLS[shell], [None, None], "dmc-small")
    assert "states no frame_contract, and dmc-small saw ball_in_cup-catch, cartpole-swingup" in message
    assert said(SHELLS[shell], [None, None], CausalPerceiverIO.from_pretrained("dmc-small")) == [message]
    assert said(SHELLS[shell], [WALKER, WALKER], "dmc-small") == []
    assert said(SHELLS[shell], [None, None], knowing(WALKER)) == [], "a model of one's own is one's own affair"


@pytest.mark.parametrize("shell", ["sync", "sb3"])
def test_one_row_that_states_nothing_is_named(shell):
    (message,) = said(VECTORS[shell], [WALKER, None], "dmc-small")
    assert message.endswith("(row 1)")


@pytest.mark.parametrize(
    "stated", [[1, 2], {"tasks": [["walker"]]}, {"size": "64"}, {"camera": {"id": 1}}, {"seen": [1]}, {"seen": 3}]
)
def test_malformed_contracts_are_refused(stated):
    with pytest.raises(ValueError, match="frame contract"):
        FrameContract.of(stated)


def test_contracts_survive_json_and_read_what_older_versions_wrote():
    old = {**WALKER, "action_repeat": None, "tasks": ["a", "b"], "data_fingerprint": "abc"}
    contract = FrameContract.of(old)
    assert contract.tasks == ["a", "b"]
    assert contract.to_json() | {"seen": None} == old | {"seen": None}
    mixed = FrameContract.join([FrameContract.of(WALKER).counted(30), FrameContract.of(CARTPOLE).counted(10)], "data")
    stated = json.loads(json.dumps(mixed.to_json()))
    assert FrameContract.of(stated) == mixed
    assert stated["action_repeat"] == [2, 8]
    assert stated["tasks"] == ["cartpole-swingup", "walker-walk"]
    assert FrameContract.of(stated | {"seen": []} | {"tasks": ["x"]}).variants == ()


def data_of(path, lengths, **contract) -> RolloutDataset:
    write_dataset(path, lengths)
    meta = json.loads((path / "meta.json").read_text())
    meta["frame_contract"] |= contract
    (path / "meta.json").write_text(json.dumps(meta))
    return RolloutDataset(path)


def test_a_model_of_mixed_data_knows_all_that_was_mixed_and_nothing_else(tmp_path):
    noise = {"size": 16, "channels": 3, "camera": 0, "render_quality": "fast", "tasks": ["noise"]}
    twice, four = data_of(tmp_path / "2", [9, 9]), data_of(tmp_path / "4", [5, 5], action_repeat=4)
    rare = data_of(tmp_path / "6", [1, 1], action_repeat=6, render_quality="smooth")
    joint = joint_contract([twice, four, twice, rare])
    assert [(each.action_repeat, each.frames) for each in joint.variants] == [(2, 20), (4, 12), (6, 4)]
    assert joint.data_fingerprint == joint_contract([rare, twice, twice, four]).data_fingerprint

    def new(**settings):
        return joint.differences(FrameContract.of(noise | settings), "seen")

    assert new(action_repeat=2) == new(action_repeat=4) == new(action_repeat=6, render_quality="smooth") == []
    assert new(action_repeat=8) == ["action_repeat is 8, seen 2 or 4 or 6"]
    assert new(action_repeat=4, render_quality="smooth") == [
        "action_repeat=4, camera=0, render_quality='smooth' is new together, seen each alone"
    ]
    rarer = FrameContract.join([joint, FrameContract.of(noise | {"action_repeat": 2}).counted(20)])
    assert rarer.differences(FrameContract.of(noise | {"action_repeat": 6, "render_quality": "smooth"}), "seen") == [
        "action_repeat is 6, seen 2 or 4 (and hardly with that: 7.1% of its frames)",
        "render_quality is 'smooth', seen 'fast' (and hardly with that: 7.1% of its frames)",
    ]


def test_frames_of_other_sizes_cannot_be_mixed(tmp_path):
    write_dataset(tmp_path / "a", [3, 3])
    write_dataset(tmp_path / "b", [3, 3], size=32)
    with pytest.raises(ValueError, match=r"a and .*b cannot be mixed: frames of size 16 and 32"):
        open_datasets([str(tmp_path / "a"), str(tmp_path / "b")])


def test_a_part_that_is_unknown_fits_everything():
    known = FrameContract(64, 3, (Variant("walker-walk", None, 0, "fast"),))
    assert known.differences(FrameContract.of({**WALKER, "render_quality": "fast", "action_repeat": 9})) == []
    assert known.differences(FrameContract.of(WALKER)) == [
        "render_quality is 'smooth', the model was trained with 'fast'"
    ]

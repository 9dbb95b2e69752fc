"""Heads of an objective that a run has left: what fits is taken up, by the names of the tasks, and the rest is new."""

from dataclasses import replace

import pytest
import torch
from tiny_runs import write_dataset

from perceiver_obs.data.clips import RolloutClips
from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.objectives.latent import Clips, LatentObjective, LatentTargets
from perceiver_obs.objectives.saved_heads import read_heads, save_heads, take_up_heads

TARGETS = LatentTargets(
    ("cheetah-run", "walker-walk"), (3, 16, 16), ("edge", "contrastive", "reward", "state", "pixel"), 4, 2, num_states=3
)
PER_GROUP = {
    "edge_targets": ("mean", "scale", "change_scale"),
    "rewards": ("of_group.weight", "mean", "scale"),
    "states": ("weight", "bias", "mean", "scale"),
    "pixels": ("background", "whitening"),
}


def objective(seed: int, **changes) -> LatentObjective:
    """One whose tensors are all different."""
    torch.manual_seed(seed)
    made = LatentObjective(replace(TARGETS, **changes), 8, 2)
    for tensor in made.state_dict().values():
        tensor.copy_(torch.rand_like(tensor) + 0.5)
    return made


@pytest.fixture
def saved(tmp_path):
    former = objective(0)
    save_heads(tmp_path, former)
    return former, tmp_path


def test_all_is_taken_up_where_all_is_alike(saved):
    former, directory = saved
    current = objective(1)
    said = take_up_heads(current, directory)
    assert said == (
        f"objective heads of {directory}: edge_targets, dynamics, edge_decoder, contrast, rewards, states, pixels "
        "taken up"
    )
    for name, tensor in former.state_dict().items():
        assert torch.equal(current.state_dict()[name], tensor), name
    assert current.learned_anew() == current.learned_anew(0) == current.learned_anew(1) == []
    frames, actions = torch.rand(2, 4, 3, 16, 16), torch.rand(2, 4, 2)
    clips = Clips(frames, torch.tensor([0, 1]), actions, torch.rand(2, 4), torch.rand(2, 4, 3))
    losses = []
    for each in (former, current):
        torch.manual_seed(0)
        losses.append(each(torch.ones(2, 1, 8), torch.tensor([0]), clips))
    assert losses[0].keys() == {"edge", "contrastive", "reward", "state", "pixel"}
    assert all(torch.equal(loss, losses[1][name]) for name, loss in losses[0].items())


def test_groups_are_those_of_the_same_task(saved):
    """In another order, with a new one between, and states of which a new task has more."""
    former, directory = saved
    current = objective(1, tasks=("walker-walk", "", "hopper-hop", "cheetah-run"), num_states=4)
    before = {name: tensor.clone() for name, tensor in current.state_dict().items()}
    assert take_up_heads(current, directory).endswith("; new tasks: a task without a name, hopper-hop")
    for part, names in PER_GROUP.items():
        for name in (f"{part}.{each}" for each in names):
            theirs, mine = former.state_dict()[name], current.state_dict()[name]
            width = 3 if part == "states" else None
            for here, there in ((0, 1), (3, 0)):
                kept = mine[here][..., :width] if mine.ndim > 1 else mine[here]
                assert torch.equal(kept, theirs[there]), name
            assert torch.equal(mine[1:3], before[name][1:3]), name
    assert torch.equal(current.dynamics.transition.weight, former.dynamics.transition.weight)
    assert current.learned_anew() == current.learned_anew(0) == []
    assert current.learned_anew(2) == ["edge_targets", "rewards", "states", "pixels"]


def test_what_does_not_fit_is_learned_anew_and_said(saved):
    former, directory = saved
    current = objective(1, edge_order=3, frame_shape=(3, 24, 24))
    before = {name: tensor.clone() for name, tensor in current.state_dict().items()}
    assert take_up_heads(current, directory) == (
        f"objective heads of {directory}: dynamics, rewards, states taken up; "
        "edge_targets, edge_decoder, contrast, pixels learned anew"
    )
    for name, tensor in current.state_dict().items():
        taken = name.startswith(("dynamics", "rewards", "states"))
        assert torch.equal(tensor, (former.state_dict() if taken else before)[name]), name
    fewer = objective(1, heads=("reward",))
    assert "edge_targets, dynamics, rewards taken up" in take_up_heads(fewer, directory)


def test_what_was_fitted_to_a_task_stays_and_a_new_one_is_fitted(saved, tmp_path):
    former, directory = saved
    datasets = [
        RolloutDataset(write_dataset(tmp_path / task, [6, 7], task=task)) for task in ("walker-walk", "hopper-hop")
    ]
    clips = RolloutClips(datasets, [[0, 1]] * 2, 4)
    current = objective(1, tasks=("hopper-hop", "walker-walk"))
    take_up_heads(current, directory)
    current.fit(clips, [1, 0], seed=0)
    alone = objective(2, tasks=("hopper-hop", "walker-walk"))
    alone.fit(clips, [1, 0], seed=0)
    for name in ("edge_targets.mean", "edge_targets.change_scale", "rewards.scale", "pixels.background"):
        assert torch.equal(current.state_dict()[name][1], former.state_dict()[name][1]), name
        assert torch.equal(current.state_dict()[name][0], alone.state_dict()[name][0]), name


def test_none_or_a_damaged_file(saved, tmp_path):
    _, directory = saved
    nothing = tmp_path / "nothing"
    assert read_heads(nothing) is None
    assert take_up_heads(objective(1), nothing) == f"objective heads: {nothing} holds none, all are learned anew"
    file = directory / "objective.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"objective\.safetensors does not hold the heads of an objective"):
        read_heads(directory)

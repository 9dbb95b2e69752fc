"""What contexts learn from beside edges and rewards: the state, where it is known, and decoding frames."""

import numpy as np
import pytest
import torch
from tiny_runs import predictor_settings, rollout_meta, tokenizer_settings, write_dataset

from perceiver_obs.data.clips import ClipPlace
from perceiver_obs.data.rollouts import RolloutDataset, RolloutWriter
from perceiver_obs.objectives.pixels import PixelObjective
from perceiver_obs.objectives.states import StateObjective, StateTargets
from perceiver_obs.training.train_predictor import train_predictor
from perceiver_obs.training.train_tokenizer import train_tokenizer


def test_states_are_regressed_linearly_by_group_and_what_is_unknown_counts_for_nothing():
    torch.manual_seed(0)
    objective = StateObjective(context_dim=4, num_states=2, num_groups=2)
    contexts, groups = torch.randn(64, 3, 2, 4), torch.arange(64) % 2
    states = torch.stack([1000 * contexts[..., 0] + 5, 0.01 * contexts[..., 1]], dim=-1)
    states[groups == 1] = torch.stack([-contexts[..., 2], torch.full((64, 3, 2), torch.nan)], dim=-1)[groups == 1]
    for group in range(2):
        objective.fit(group, states[groups == group])
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(300):
        loss = objective(contexts, states, groups)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3
    changed = torch.where(states.isnan(), 7.0, states)
    assert objective(contexts, changed, groups) > loss + 1, "what was unknown was left aside"
    nothing = objective(contexts, torch.full_like(states, torch.nan), groups)
    nothing.backward()
    assert nothing == 0
    assert all(parameter.grad.isfinite().all() for parameter in objective.parameters())


def test_targets_are_the_coordinates_of_each_clip(tmp_path):
    with_states = RolloutDataset(write_dataset(tmp_path / "with", [6, 9], states=True))
    without = RolloutDataset(write_dataset(tmp_path / "without", [6, 9]))
    targets = StateTargets.of([without, with_states])
    clips = targets.clips([ClipPlace(1, 1, 3), ClipPlace(0, 0, 1)], 4)
    np.testing.assert_array_equal(clips[0], with_states[1].states[3:7])
    assert clips[1].isnan().all()
    padded = targets.clips([ClipPlace(1, 1, 3)], 4, size=5)
    np.testing.assert_array_equal(padded[0, :, :2], with_states[1].states[3:7])
    assert padded[..., 2:].isnan().all()
    assert StateTargets.of([without]).size == 0


def test_twin_limbs_are_regressed_as_sums_and_differences(tmp_path):
    names = ["position/right_hip", "position/left_hip"]
    meta = rollout_meta(1, 16, states=True) | {"state_names": names}
    meta["frame_contract"] = meta["frame_contract"] | {"tasks": ["walker-walk"]}
    writer = RolloutWriter(tmp_path, meta)
    zeros = dict(pixels=np.zeros((3, 16, 16, 3), np.uint8), actions=np.zeros((2, 1), np.float32))
    states = np.array([[1, 2], [3, 5], [0, 4]], np.float32)
    writer.write_episode(
        0, **zeros, rewards=np.zeros(2, np.float32), terminated=False, truncated=True, seed=0, policy="p", states=states
    )
    clip = StateTargets.of([RolloutDataset(tmp_path)]).clips([ClipPlace(0, 0, 0)], 3)[0]
    np.testing.assert_array_equal(clip, [[3, -1], [8, -2], [4, -4]])


def moving_square(count: int = 40, length: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips uint8 `[count, length, 3, 16, 16]` of a square on grey, and where it is, `[count, length, 2]`."""
    random = np.random.default_rng(0)
    places = random.integers(0, 13, (count, length, 2))
    clips = np.full((count, length, 3, 16, 16), 100, np.uint8)
    for clip, where in zip(clips.reshape(-1, 3, 16, 16), places.reshape(-1, 2)):
        clip[:, where[0] : where[0] + 4, where[1] : where[1] + 4] = np.array([220, 30, 90])[:, None, None]
    return torch.from_numpy(clips), torch.from_numpy(places).float()


def test_frames_are_decoded_from_contexts_that_hold_where_things_are():
    torch.manual_seed(0)
    clips, places = moving_square()
    objective = PixelObjective(2, (3, 16, 16), num_groups=2)
    objective.fit(1, clips)
    groups, later = torch.ones(len(clips), dtype=torch.long), torch.arange(3)[:, None] + torch.arange(2)
    contexts = (places - 6) / 4
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    first = float(objective(contexts[:, later], clips, later, groups).detach())
    for _ in range(150):
        loss = objective(contexts[:, later], clips, later, groups)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 0.9 < first < 1.5, "the background alone is 1"
    assert loss < 0.5
    assert objective(contexts.flip(0)[:, later], clips, later, groups) > 2 * loss


def test_colours_are_whitened_over_the_data():
    torch.manual_seed(0)
    clips = (torch.rand(8, 4, 3, 16, 16) * torch.tensor([1.0, 0.1, 0.3])[:, None, None]).clamp(0, 1)
    objective = PixelObjective(2, (3, 16, 16), num_groups=1)
    objective.fit(0, clips)
    flat = (clips.flatten(0, 1) - objective.background[0]).movedim(1, -1).flatten(0, -2) @ objective.whitening[0]
    torch.testing.assert_close(torch.cov(flat.T), torch.eye(3), atol=0.05, rtol=0)


def test_a_model_of_frames_trains_on_pixels_and_states(tmp_path):
    data = write_dataset(tmp_path / "data", [20, 22, 24], states=True)
    train_tokenizer(tokenizer_settings(data, tmp_path / "tokenizer"))
    changes = dict(reads="frames", keypoints=None, inputs_per_frame=2, pixel_weight=1.0, state_weight=1.0)
    settings = predictor_settings(data, tmp_path / "tokenizer", tmp_path / "model", **changes)
    model = train_predictor(settings)
    assert model.predictor.frame_adapter is not None
    video = torch.randint(0, 256, (1, 6, 3, 16, 16), dtype=torch.uint8)
    assert model.extract_context(video, torch.zeros(1, 6, 2)).isfinite().all()
    scalars = (tmp_path / "model" / "metrics.jsonl").read_text()
    assert "train/pixel" in scalars
    assert "train/state" in scalars
    assert model.frame_contract["privileged"] == "state"
    assert "simulator state" in (tmp_path / "model" / "report.html").read_text()
    changes |= dict(state_weight=0.0, begin_with=str(tmp_path / "model"), steps=1)
    further = train_predictor(predictor_settings(data, tmp_path / "tokenizer", tmp_path / "further", **changes))
    assert further.frame_contract["privileged"] == "state", "what was learned so stays learned so"
    without = write_dataset(tmp_path / "without", [20, 22])
    with pytest.raises(ValueError, match="needs rollouts with states; none of these hold any"):
        train_predictor(predictor_settings(without, tmp_path / "tokenizer", tmp_path / "refused", state_weight=1.0))


def test_a_model_of_frames_encodes_what_evaluations_ask_for_and_takes_the_tokenizer_of_a_whole_model(tmp_path):
    data = write_dataset(tmp_path / "data", [20, 22, 24, *[21] * 12])
    train_tokenizer(tokenizer_settings(data, tmp_path / "tokenizer"))
    changes = dict(reads="frames", keypoints=None, inputs_per_frame=2)
    settings = predictor_settings(data, tmp_path / "tokenizer", tmp_path / "model", **changes)
    model = train_predictor(settings)
    cached = len(list((tmp_path / "model" / "token_cache").rglob("*.tokens.npy")))
    assert 0 < cached <= 15
    other = predictor_settings(data, tmp_path / "model", tmp_path / "other", **changes)
    again = train_predictor(other)
    before, after = model.tokenizer.state_dict(), again.tokenizer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "no training of the Perceiver changes it"
    assert again.fingerprint == model.fingerprint, "the same tokenizer gives the same model"

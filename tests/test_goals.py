"""Predictions towards a goal: the context of a later frame as condition."""

import numpy as np
import pytest
import torch
from tiny_runs import predictor_settings, rollout_meta, tokenizer_settings

from agents.visualize.generate import generate
from agents.visualize.settings import GenerateSettings
from perceiver_obs import CausalPerceiverIO
from perceiver_obs.data.rollouts import RolloutWriter
from perceiver_obs.training.train_predictor import train_predictor
from perceiver_obs.training.train_tokenizer import train_tokenizer

STAYS, LENGTH = 1, 6  # frames


def episode(to_the_right: bool) -> np.ndarray:
    """Dark, then one half is bright: nothing before says which."""
    frames = np.full((LENGTH, 16, 16, 3), 40, np.uint8)
    frames[STAYS:, :, slice(8, 16) if to_the_right else slice(0, 8)] = 220
    return frames


@pytest.fixture(scope="module")
def two_ways(tmp_path_factory):
    """A dataset of episodes that go left and right, and a model trained on it towards goals."""
    root = tmp_path_factory.mktemp("goals")
    writer = RolloutWriter(root / "data", rollout_meta(1, 16, states=False))
    for index in range(40):
        writer.write_episode(
            index,
            episode(index % 4 < 2),
            np.zeros((LENGTH - 1, 1), np.float32),
            np.zeros(LENGTH - 1, np.float32),
            terminated=False,
            truncated=True,
            seed=index,
            policy="none",
        )
    shared = {"learning_rate": 3e-3, "batch_size": 16, "checkpoint_every": 1000}
    sizes = {"downsample": 8, "num_quantizers": 1, "motion_weight": 0.0}
    train_tokenizer(tokenizer_settings(root / "data", root / "tokenizer", steps=60, **shared, **sizes))
    train_predictor(
        predictor_settings(
            root / "data",
            root / "tokenizer",
            root / "model",
            steps=200,
            clip_length=LENGTH,
            condition="goal",
            edge_weight=0.0,
            contrastive_weight=0.0,
            reward_weight=0.0,
            cross_entropy_weight=1.0,
            keypoints=None,
            token_predictions=None,
            **shared,
        )
    )
    return root


def nearer_to_the_right(frame: torch.Tensor) -> bool:
    left, right = (torch.from_numpy(episode(side)[-1]).permute(2, 0, 1) / 255 for side in (False, True))
    return bool((frame - right).abs().mean() < (frame - left).abs().mean())


def test_continuations_end_at_their_goals(two_ways):
    model = CausalPerceiverIO.from_pretrained(two_ways / "model")
    videos = torch.stack([torch.from_numpy(episode(side)).permute(0, 3, 1, 2) for side in (False, True)])
    goals = model.extract_context(videos)[:, -1]
    future = model.generate(videos[:, :STAYS], LENGTH - STAYS, temperature=0.0, condition=goals)
    assert [nearer_to_the_right(frames[-1]) for frames in future] == [False, True]


def test_the_report_and_the_command_take_the_goal(two_ways, tmp_path):
    facts = (two_ways / "model" / "section.json").read_text()
    assert "against its goal" in facts
    for number, to_the_right in ((0, True), (2, False)):
        settings = GenerateSettings(
            model=str(two_ways / "model"),
            data=str(two_ways / "data"),
            out=str(tmp_path / str(number)),
            episode=number,
            num_context_frames=STAYS,
            num_frames=LENGTH - STAYS,
            goal=True,
            device="cpu",
        )
        last = torch.from_numpy(generate(settings)[-1]).permute(2, 0, 1) / 255
        assert nearer_to_the_right(last) is to_the_right


def test_a_model_without_goals_says_so(tmp_path):
    settings = GenerateSettings(model="dmc-small", out=str(tmp_path), goal=True, num_frames=2, device="cpu")
    with pytest.raises(ValueError, match="goal needs a model trained with --condition goal; dmc-small was"):
        generate(settings)

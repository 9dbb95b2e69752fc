"""PCA of stacked frames: the same along an episode as for the whole episode, and safely kept on disk."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import PolicyEnvSettings, make_policy_env
from agents.wrappers.vec_pca import VecFramePCA
from envs import make_dmc
from envs.collection.collect import collect
from envs.collection.settings import CollectSettings
from perceiver_obs.evaluation.frame_pca import PCA_FILE, FramePCA, stack_frames

REPEAT = 50  # cartpole's episodes of 1000 control steps take 20 agent steps
COMMON = {"task": "cartpole-swingup", "action_repeat": REPEAT, "render_quality": "fast"}


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    out = tmp_path_factory.mktemp("pca") / "data"
    return list(collect(CollectSettings(**COMMON, out=str(out), episodes=3, workers=1), progress=False))


@pytest.fixture(scope="module")
def pca(episodes):
    return FramePCA.fit(episodes, num_components=8, seed=0)


def test_features_along_episodes_are_those_of_whole_episodes(pca, tmp_path):
    """Two episodes and a bit in two environments, against frames recorded beside them."""
    pca.save(tmp_path)
    venv = VecFramePCA(DummyVecEnv([lambda: make_dmc(**COMMON)] * 2), tmp_path)
    references = [make_dmc(**COMMON) for _ in range(2)]
    actions = np.random.default_rng(0).uniform(-1, 1, (45, 2, 1)).astype(np.float32)
    venv.seed(3)
    features = venv.reset()
    frames = [[env.reset(seed=3 + row)[0]] for row, env in enumerate(references)]
    num_ends = 0
    for action in actions:
        compare(features, pca, frames)
        features, _, dones, infos = venv.step(action)
        for row, env in enumerate(references):
            frame, _, terminated, truncated, _ = env.step(action[row])
            frames[row].append(frame)
            if terminated or truncated:
                assert dones[row]
                compare(infos[row]["terminal_observation"][None], pca, [frames[row]])
                frames[row] = [env.reset()[0]]
                num_ends += 1
    assert num_ends == 4
    venv.close()
    for env in references:
        env.close()


def compare(features, pca, frames):
    expected = [pca(stack_frames(np.stack(each), [len(each) - 1]))[0] for each in frames]
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_components_are_scaled_to_deviation_one_and_keep_the_variance(pca, episodes):
    stacks = np.concatenate([stack_frames(e.pixels, range(len(e.pixels))) for e in episodes])
    features = pca(stacks)
    np.testing.assert_allclose(features.std(axis=0, ddof=1), 1, atol=1e-2)
    pixels = torch.from_numpy(stacks.reshape(len(stacks), -1).astype(np.float32) / 255)
    exact = torch.linalg.svdvals(pixels - pixels.mean(0))[:8] / np.sqrt(len(stacks) - 1)
    torch.testing.assert_close(pca.scale, exact, rtol=1e-2, atol=0)


def test_before_an_episode_begins_its_first_frame_stands_in(episodes):
    pixels = np.asarray(episodes[0].pixels)
    stacks = stack_frames(pixels, [0, 1, 5])
    for stack, times in zip(stacks, [(0, 0, 0), (1, 0, 0), (5, 4, 3)]):
        np.testing.assert_array_equal(stack, pixels[list(times)])


def test_what_is_loaded_is_what_was_saved(pca, episodes, tmp_path):
    pca.save(tmp_path)
    loaded = FramePCA.load(tmp_path)
    stacks = stack_frames(episodes[1].pixels, [0, 7])
    np.testing.assert_array_equal(loaded(stacks), pca(stacks))
    assert loaded.fingerprint == pca.fingerprint
    assert loaded.fingerprint != FramePCA.fit(episodes[:2], num_components=8, seed=0).fingerprint


def test_missing_damaged_and_unfitting_projections_are_named(pca, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pca\.safetensors is missing"):
        FramePCA.load(tmp_path)
    pca.save(tmp_path)
    path = tmp_path / PCA_FILE
    whole = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # no view of the file
    for content in (whole[:-100], b"", b"pickle"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="holds no whole PCA"):
            FramePCA.load(tmp_path)
    for change, metadata in [({}, {}), ({}, {"frame_shape": "9,9,3"}), ({"scale": torch.ones(3)}, None)]:
        save_file({**tensors, **change}, path, {"frame_shape": "64,64,3"} if metadata is None else metadata)
        with pytest.raises(ValueError, match="holds no whole PCA"):
            FramePCA.load(tmp_path)
    path.write_bytes(whole)
    settings = PolicyEnvSettings(**COMMON, observation="pca", model=str(tmp_path), size=32)
    with pytest.raises(ValueError, match=r"reads uint8 frames \(64, 64, 3\).*32, 32"):
        make_policy_env(settings)

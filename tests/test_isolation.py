"""Global random generators and torch's default dtype: neither read nor changed by what we make, load, fit and train."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from global_state import untouched
from moving_square import MovingSquare
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_models import SIZE, small_frames_model
from tiny_runs import predictor_settings, tokenizer_settings

from agents import PerceiverFeaturesExtractor, VecPerceiverContext, add_rollouts
from agents.visualize.generate import generate
from agents.visualize.settings import GenerateSettings
from agents.wrappers.vec_pca import VecFramePCA
from envs import make_dmc
from envs.collection.policies import PolicyContext
from envs.collection.sb3_policy import Sb3Policy, load_sb3
from perceiver_obs import (
    CausalPerceiverIO,
    ContextEncoder,
    PerceiverContextVectorWrapper,
    PerceiverContextWrapper,
    VQPTTokenizer,
)
from perceiver_obs.context_encoder import _load_shared
from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.evaluation.frame_pca import FramePCA
from perceiver_obs.evaluation.probe import probe
from perceiver_obs.evaluation.settings import ProbeSettings
from perceiver_obs.objectives.perceptual import PerceptualDistance
from perceiver_obs.training.train_predictor import train_predictor
from perceiver_obs.training.train_tokenizer import train_tokenizer

pytest_plugins = ("tiny_data",)

make_square = partial(MovingSquare, SIZE)
FRAMES = np.stack([make_square().reset(seed=seed)[0] for seed in range(6)])


@pytest.fixture
def model(tmp_path):
    """The directory of a model that this process has not loaded yet."""
    small_frames_model().save_pretrained(tmp_path / "model")
    _load_shared.cache_clear()
    return str(tmp_path / "model")


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def square_venv():
    return DummyVecEnv([make_square])


def stacks_of_two():
    return gym.spaces.Box(0, 255, (SIZE, SIZE, 6), np.uint8)


MAKERS = {
    "model": CausalPerceiverIO.from_pretrained,
    "encoder": ContextEncoder,
    "wrapper": lambda model: PerceiverContextWrapper(make_square(), model).reset(seed=0),
    "vector": lambda model: PerceiverContextVectorWrapper(gym.vector.SyncVectorEnv([make_square]), model).reset(seed=0),
    "sb3": lambda model: VecPerceiverContext(square_venv(), model).reset(),
    "extractor": lambda model: PerceiverFeaturesExtractor(stacks_of_two(), model),
    "trainable": lambda model: PerceiverFeaturesExtractor(stacks_of_two(), model, trainable=True),
    "perceptual": lambda _: PerceptualDistance(),
    "dmc": lambda _: make_dmc("cartpole-swingup", size=16, render_quality="fast").reset(),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_making_and_loading_draws_nothing(model, make):
    with untouched():
        make(model)


def test_fitting_and_probing_draws_nothing(tiny_data, model, tmp_path):
    with untouched():
        dataset = RolloutDataset(tiny_data)
        pca = FramePCA.fit(dataset[:3], 4, seed=0)
        VecFramePCA(square_venv(), pca).reset()
        probe(ProbeSettings(model=model, data=(str(tiny_data),), out=str(tmp_path / "probe"), supervised_steps=1))
    torch.manual_seed(7)
    assert FramePCA.fit(dataset[:3], 4, seed=0).fingerprint == pca.fingerprint


def test_training_and_generating_draws_nothing_and_computes_in_float32(
    tiny_data, tiny_tokenizer, tiny_model, tmp_path, float64
):
    torch.manual_seed(7)
    with untouched():
        tokenizer = train_tokenizer(tokenizer_settings(tiny_data, tmp_path / "tokenizer"))
        model = train_predictor(predictor_settings(tiny_data, tiny_tokenizer, tmp_path / "model"))
        arguments = {"model": str(tiny_model), "data": str(tiny_data), "out": str(tmp_path / "future")}
        frames = [generate(GenerateSettings(**arguments, num_frames=3, temperature=1.0, seed=s)) for s in (0, 0, 1)]
    expected = VQPTTokenizer.from_pretrained(tiny_tokenizer).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tokenizer.state_dict().items())
    assert model.fingerprint == CausalPerceiverIO.from_pretrained(tiny_model).fingerprint
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])


def test_saved_policies_load_and_act_from_generators_of_their_own(tiny_data, model, tmp_path):
    small = {"buffer_size": 500, "learning_starts": 1, "policy_kwargs": {"net_arch": [8]}, "seed": 5}
    contexts = VecPerceiverContext(square_venv(), model)
    with_contexts = SAC("MlpPolicy", contexts, **small)
    with untouched():
        assert add_rollouts(with_contexts, [tiny_data]) == sum(map(len, RolloutDataset(tiny_data)))
    path = tmp_path / "policy.zip"
    PPO("MlpPolicy", DummyVecEnv([lambda: gym.make("Pendulum-v1")]), seed=5).save(path)
    context = PolicyContext(
        gym.spaces.Box(-2, 2, (1,)), frame_size=64, step_seconds=0.01, state_names=("x", "y", "speed")
    )
    frame, state = np.zeros((64, 64, 3), np.uint8), np.ones(3, np.float32)
    actions = []
    for seed in (1, 1, 2):
        with untouched():
            load_sb3(path)
            policy = Sb3Policy(path, context)
            policy.begin(np.random.default_rng(seed))
            actions.append([policy.act(frame, state), policy.act(frame, state)])
        torch.rand(1)
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])
    assert actions[0][0] != actions[0][1]


def test_a_seeded_policy_is_the_same_whether_its_perceiver_was_loaded_before(model):
    def weights():
        kwargs = {"features_extractor_class": PerceiverFeaturesExtractor, "features_extractor_kwargs": {"model": model}}
        policy = PPO("CnnPolicy", square_venv(), seed=0, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=kwargs)
        policy.learn(8)
        return policy.policy.state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_contexts_are_the_same_in_float32_whatever_the_default_dtype(model, request):
    video = torch.from_numpy(FRAMES).permute(0, 3, 1, 2)[None]
    stacked = torch.from_numpy(np.concatenate(FRAMES[:2], axis=-1)[None])

    def contexts():
        _load_shared.cache_clear()
        wrapper = PerceiverContextWrapper(make_square(), model)
        vector = PerceiverContextVectorWrapper(gym.vector.SyncVectorEnv([make_square] * 2), model)
        steps = [wrapper.reset(seed=0)[0], *(wrapper.step(np.ones(1, np.float32))[0] for _ in range(3))]
        batched = [vector.reset(seed=0)[0], vector.step(np.ones((2, 1), np.float32))[0]]
        extracted = PerceiverFeaturesExtractor(stacks_of_two(), model)(stacked.float() / 255)
        return [*steps, *batched, extracted.numpy(), CausalPerceiverIO.from_pretrained(model).extract_context(video)]

    expected = contexts()
    request.getfixturevalue("float64")
    for found, context in zip(contexts(), expected, strict=True):
        assert found.dtype == context.dtype
        np.testing.assert_array_equal(found, context)


@pytest.mark.parametrize("changes", [{}, {"quantizer": "fsq", "use_3d_conv": True, "timescales": ("fast", "slow")}])
def test_models_made_in_float64_read_and_predict_frames(float64, changes):
    model = small_frames_model(**changes)
    video = torch.from_numpy(FRAMES).permute(0, 3, 1, 2)[None]
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert model.extract_context(video).dtype == torch.float32
    assert model.reconstruct(video).dtype == torch.float32
    assert ContextEncoder(model.double()).push(FRAMES[:1]).dtype == np.float32
    model.float()
    assert model.generate(video, 2, mode="maskgit", steps=2).shape == (1, 2, 3, SIZE, SIZE)
    model.train()(video, 3)["loss"].backward()
    model.tokenizer(video).loss.backward()

"""`PerceiverFeaturesExtractor`: what it reads, and what SB3 may and may not do to its weights."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage
from staggered_envs import make_short, make_shorts
from staggered_episodes import SEED, TOLERANCE, random_actions
from tiny_models import tiny_model

from agents import PerceiverFeaturesExtractor, WrongPerceiver
from perceiver_obs import CausalPerceiverIO

STACK = 5


@pytest.fixture(scope="module")
def stacks():
    """Two staggered environments under `VecFrameStack`; made once, reset often."""
    venv = VecFrameStack(DummyVecEnv(make_shorts()[1:]), STACK)
    yield venv
    venv.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with a model of random weights."""
    directory = tmp_path_factory.mktemp("perceiver")
    tiny_model().save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def episode():
    """The frames of a real episode, uint8 `[T, H, W, C]`."""
    env = make_short(6)
    frames = [env.reset(seed=SEED)[0]]
    frames += [env.step(action)[0] for action in random_actions()[:6, 0]]
    env.close()
    return np.stack(frames)


def stack_space(num_frames, channels_first=True):
    shape = (3 * num_frames, 64, 64) if channels_first else (64, 64, 3 * num_frames)
    return spaces.Box(0, 255, shape, np.uint8)


def stacked(frames):
    """uint8 `[T, H, W, C]` → `[1, T·C, H, W]`, oldest first."""
    return torch.from_numpy(np.concatenate(frames.transpose(0, 3, 1, 2))[None])


def last_context(model, frames):
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    return model.eval().extract_context(video)[:, -1].numpy()


def make_policy(algorithm, venv, model, **extractor):
    arguments = {PPO: {"n_steps": 8, "batch_size": 8, "n_epochs": 1}, SAC: {"learning_starts": 4, "batch_size": 4}}
    kwargs = {
        "features_extractor_class": PerceiverFeaturesExtractor,
        "features_extractor_kwargs": {"model": model, **extractor},
        "net_arch": [16],
    }
    if algorithm is SAC:
        arguments[SAC] |= {"buffer_size": 50, "train_freq": 4}
    return algorithm("CnnPolicy", venv, seed=0, device="cpu", policy_kwargs=kwargs, **arguments[algorithm])


def extractors(policy: BasePolicy) -> list[PerceiverFeaturesExtractor]:
    return [module for module in policy.modules() if isinstance(module, PerceiverFeaturesExtractor)]


def weights(model: CausalPerceiverIO) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(model: CausalPerceiverIO, before: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} has changed"


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
def test_contexts_equal_those_of_the_episode_so_far(stacks, trainable, channels_first):
    """From the first frame on, over real episodes of different lengths, zero frames before a start masked."""
    model = tiny_model()
    assert model.receptive_field == STACK
    venv = VecTransposeImage(stacks) if channels_first else stacks
    extractor = PerceiverFeaturesExtractor(venv.observation_space, model, trainable)
    assert extractor.features_dim == model.context_dim
    venv.seed(SEED)
    observations = venv.reset()
    histories: list[list[np.ndarray]] = [[], []]
    for action in random_actions(num_rows=2):
        newest = observations[:, -3:].transpose(0, 2, 3, 1) if channels_first else observations[..., -3:]
        contexts = extractor(torch.from_numpy(observations).float() / 255).detach().numpy()
        for history, frame, context in zip(histories, newest, contexts, strict=True):
            history.append(frame.copy())
            np.testing.assert_allclose(context[None], last_context(model, np.stack(history)), atol=TOLERANCE)
        observations, _, dones, _ = venv.step(action)
        for row in np.flatnonzero(dones):
            histories[row].clear()


def test_all_scales_of_pixels_give_the_same(episode):
    extractor = PerceiverFeaturesExtractor(stack_space(STACK), tiny_model())
    pixels = stacked(episode[:STACK])
    expected = extractor(pixels)
    assert torch.equal(extractor(pixels.float() / 255.0), expected)
    assert torch.equal(extractor(pixels.float()), expected)


def test_only_zeros_before_the_first_frame_are_masked(episode):
    """A black frame within an episode, or the newest one, is a frame like any other."""
    model = tiny_model()
    extractor = PerceiverFeaturesExtractor(stack_space(STACK), model)

    def clip_context(frames):
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
        return model.eval().contexts(video)[:, -1].detach().numpy()

    within, all_black, before = (episode[:STACK].copy() for _ in range(3))
    within[2] = 0
    all_black[:] = 0
    before[:2] = 0
    for frames, seen in ((within, within), (all_black, all_black[-1:]), (before, before[2:])):
        np.testing.assert_allclose(extractor(stacked(frames)), clip_context(seen), atol=1e-5)
    for frames, other in ((within, within[3:]), (all_black, all_black), (before, before)):
        assert np.abs(extractor(stacked(frames)).numpy() - clip_context(other)).max() > 5e-3


def test_frames_that_the_model_cannot_read_are_refused():
    model = tiny_model()
    make = partial(PerceiverFeaturesExtractor, model=model)
    for shape in [(8, 64, 64), (64, 64), (9, 32, 32), (64, 64, 4), (2, 9, 64, 64)]:
        with pytest.raises(ValueError, match=rf"\(64, 64, 3\).*got shape \({shape[0]}"):
            make(spaces.Box(0, 255, shape, np.uint8))
    with pytest.raises(TypeError, match=r"uint8.*float32"):
        make(spaces.Box(0, 1, (9, 64, 64), np.float32))
    with pytest.raises(TypeError, match="Dict"):
        make(spaces.Dict({"pixels": stack_space(2)}))
    with pytest.raises(ValueError, match="layout='HWC'"):
        make(stack_space(3), layout="HWC")


def test_a_shape_that_fits_both_layouts_needs_to_be_told():
    model = tiny_model(video_shape=(2, 3, 24, 24))
    space = spaces.Box(0, 255, (24, 24, 24), np.uint8)
    with pytest.raises(ValueError, match="fits both HWC and CHW"):
        PerceiverFeaturesExtractor(space, model)
    pixels = torch.randint(0, 256, (1, 24, 24, 24), dtype=torch.uint8)
    first = PerceiverFeaturesExtractor(space, model, layout="CHW")(pixels)
    last = PerceiverFeaturesExtractor(space, model, layout="HWC")(pixels.permute(0, 2, 3, 1))
    assert torch.equal(first, last)


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_frozen_weights_are_one_copy_that_learning_leaves_alone(stacks, saved, algorithm):
    policy = make_policy(algorithm, stacks, saved)
    held = extractors(policy.policy)
    shared = held[0].model
    assert all(extractor.model is shared for extractor in held)
    assert len(held) == (3 if algorithm is SAC else 1)
    before = weights(shared)
    assert_equal(CausalPerceiverIO.from_pretrained(saved), before)
    assert all(extractor.model is shared for extractor in extractors(copy.deepcopy(policy.policy)))
    policy.learn(16)
    policy.policy.train(True)
    assert not any(module.training for module in shared.modules())
    assert_equal(shared, before)
    inside = {id(tensor) for tensor in shared.parameters()}
    assert not inside & {id(tensor) for tensor in policy.policy.parameters()}
    assert not list(held[0].parameters())
    assert not list(held[0].buffers())


def test_a_model_object_is_left_as_it_is_and_shared_by_its_weights(stacks):
    model = tiny_model(seed=1).train()
    first = PerceiverFeaturesExtractor(stacks.observation_space, model)
    second = PerceiverFeaturesExtractor(stacks.observation_space, copy.deepcopy(model))
    assert first.model is second.model
    assert first.model is not model
    assert model.training
    assert all(tensor.requires_grad for tensor in model.parameters())


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_saved_policies_hold_the_fingerprint_and_no_weights(stacks, saved, tmp_path, algorithm):
    perceiver = tmp_path / "perceiver"
    tiny_model().save_pretrained(perceiver)
    policy = make_policy(algorithm, stacks, str(perceiver))
    stored = policy.policy.state_dict()
    assert not any("perceiver" in name for name in stored)
    assert {bytes(v.tolist()).decode() for k, v in stored.items() if k.endswith("_extra_state")} == {
        extractors(policy.policy)[0].fingerprint
    }
    policy.save(tmp_path / "policy.zip")
    observations = stacks.reset()
    loaded = algorithm.load(tmp_path / "policy.zip", device="cpu")
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], policy.predict(observations, deterministic=True)[0]
    )
    tiny_model(seed=1).save_pretrained(perceiver)
    with pytest.raises(WrongPerceiver, match=extractors(policy.policy)[0].fingerprint):
        algorithm.load(tmp_path / "policy.zip", device="cpu")


def test_pickled_extractors_name_their_model(stacks, saved):
    extractor = PerceiverFeaturesExtractor(stacks.observation_space, saved)
    pickled = pickle.dumps(extractor)
    assert len(pickled) < len(pickle.dumps(stacks.observation_space)) + 5_000, "no weights"
    again = pickle.loads(pickled)
    assert again.model is extractor.model
    from_object = PerceiverFeaturesExtractor(stacks.observation_space, tiny_model(seed=2))
    assert pickle.loads(pickle.dumps(from_object)).fingerprint == from_object.fingerprint


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_trainable_weights_begin_pretrained_and_learn(stacks, saved, tmp_path, algorithm):
    policy = make_policy(algorithm, stacks, saved, trainable=True)
    pretrained = CausalPerceiverIO.from_pretrained(saved)
    before = weights(pretrained)
    for extractor in extractors(policy.policy):
        assert_equal(extractor.perceiver, before)
    policy.learn(16)
    trained = extractors(policy.policy)[0].perceiver
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    parameters = {name for name, _ in trained.named_parameters()}
    assert changed <= parameters, "codebooks and statistics stay put"
    assert any("tokenizer" in name for name in changed), "gradients reach the convolutions"
    assert any("tokenizer" not in name for name in changed)
    assert not trained.training
    policy.save(tmp_path / "policy.zip")
    loaded = algorithm.load(tmp_path / "policy.zip", device="cpu")
    assert_equal(extractors(loaded.policy)[0].perceiver, weights(trained))
    observations = stacks.reset()
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], policy.predict(observations, deterministic=True)[0]
    )


def test_gradients_are_those_of_the_loss(episode):
    """Every layer on the way from the pixels to the context gets a gradient, the frozen copy none."""
    model = tiny_model()
    extractor = PerceiverFeaturesExtractor(stack_space(STACK), model, trainable=True)
    extractor(stacked(episode[:STACK])).square().sum().backward()
    reached = {n for n, p in extractor.perceiver.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("tokenizer.encoder" in name for name in reached)
    assert any("cross" in name or "attention" in name for name in reached)
    frozen = PerceiverFeaturesExtractor(stack_space(STACK), model)
    assert not frozen(stacked(episode[:STACK])).requires_grad

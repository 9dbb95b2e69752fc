"""The parts of `perceiver-obs watch`: the picture, its palette, read-outs and directions."""

import numpy as np
import pytest

from envs import make_dmc
from perceiver_obs.evaluation.regression import main_directions, read_states
from perceiver_obs.reporting.animation import Palette
from perceiver_obs.reporting.episode_picture import EpisodePicture
from perceiver_obs.reporting.episode_view import EpisodeView, Reading

TOP, SIDE = 122, 192


def some_view(**changes) -> EpisodeView:
    random = np.random.default_rng(0)
    count = 8
    frames = random.integers(0, 256, (3, count, 32, 32, 3), dtype=np.uint8)
    waves = np.sin(np.arange(count)[:, None] * [1.0, 0.7, 0.4])
    reading = Reading("slider", "m", waves[:, 0], waves[:, 1])
    arguments = dict(
        title="task",
        subtitle="how",
        footnote="note",
        frames=frames[0],
        reconstructed=frames[1],
        predicted=frames[2, :-2],
        horizon=2,
        rewards=np.ones(count - 1, np.float32),
        step_seconds=0.1,
        traces=waves,
        shares=np.array([0.6, 0.3, 0.1]),
        positions=[reading, reading],
        velocities=[reading],
        token_shape=(4, 4, 2),
        context_dim=32,
    )
    return EpisodeView(**(arguments | changes))


def test_nothing_moves_but_frames_lines_and_the_clock():
    picture = EpisodePicture(some_view())
    assert picture.scale == 6
    drawn = np.stack([picture.draw(time) for time in range(len(picture))])
    moved = (drawn != drawn[0]).any(axis=(0, 3))
    height, width = moved.shape
    still = np.ones_like(moved)
    still[20:40, width // 2 :] = False  # the clock
    still[TOP : TOP + SIDE] = False
    column = (width - 2 * 28 - 2 * 24) / 3
    for left in (28 + place * (column + 24) for place in range(3)):  # inside the axes: their labels stand still too
        still[TOP + SIDE + 66 : height - 58, round(left + 36) : round(left + column) + 1] = False
    assert moved[~still].any()
    assert not moved[still].any()
    np.testing.assert_array_equal(drawn[3], picture.draw(3))  # whatever was drawn before


@pytest.mark.parametrize("column", [0, 1, 2])
def test_each_trace_is_drawn_in_its_own_column(column):
    view = some_view()
    changed = [
        {"traces": view.traces * [1, 1, -1]},
        {"positions": [view.positions[0], Reading("slider", "m", view.traces[:, 0], -view.traces[:, 1])]},
        {"velocities": [Reading("slider", "m", view.traces[:, 2], view.traces[:, 1])]},
    ][column]
    before, after = (EpisodePicture(v).draw(7) for v in (view, some_view(**changed)))
    rows, columns = np.nonzero((before != after).any(axis=2))
    third = (before.shape[1] - 2 * 28 - 2 * 24) / 3 + 24
    assert rows.min() > TOP + SIDE
    assert 28 + column * third <= columns.min() < columns.max() < 28 + (column + 1) * third


def test_the_error_of_a_reading_is_in_its_unit():
    true = np.arange(10.0)
    assert Reading("x", "m", true, true).error == 0
    assert Reading("x", "m", true, true + [2, -2] * 5).error == pytest.approx(2)


def test_palette_keeps_the_commonest_colours_and_takes_the_nearest_of_others():
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture[:32] = 255
    picture[32:40] = (11, 110, 153)
    image = Palette(picture)(picture)
    shown = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(shown[:40], picture[:40])
    colors = np.array(image.getpalette()).reshape(-1, 3)
    distances = np.square(picture[40:, :, None].astype(int) - colors).sum(axis=3)
    np.testing.assert_array_equal(np.square(shown[40:].astype(int) - picture[40:]).sum(axis=2), distances.min(axis=2))


def test_states_are_read_by_a_linear_map_of_other_episodes():
    random = np.random.default_rng(0)
    contexts = [random.normal(size=(40, 6)) for _ in range(7)]
    weights = random.normal(size=(6, 2)) * [1, 100]
    states = [each @ weights + [3, -50] for each in contexts]
    read = read_states(contexts[1:], states[1:], contexts[0])
    np.testing.assert_allclose(read, states[0], rtol=1e-3, atol=1e-2)
    assert np.abs(read_states(contexts[1:3], states[1:3], contexts[0]) - states[0]).mean() < 0.1


def test_main_directions_hold_the_variance_they_say():
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.normal(size=(5, 5)))[0]
    independent = random.normal(size=(4000, 5)) * [4, 2, 1, 0, 0]
    traces, shares = main_directions(independent @ rotation + 7, 3)
    np.testing.assert_allclose(shares, np.array([16, 4, 1]) / 21, atol=0.02)
    np.testing.assert_allclose(traces.var(axis=0) / (independent.var(axis=0).sum()), shares, rtol=1e-6)
    np.testing.assert_allclose(np.abs(np.corrcoef(traces.T, independent[:, :3].T)[:3, 3:]), np.eye(3), atol=0.06)
    constant, none = main_directions(np.ones((4, 5)), 3)
    assert not constant.any()
    assert not none.any()


def test_states_have_units():
    for task, some in {
        "cartpole-swingup": {"position/slider": "m", "position/hinge_1_cos": "", "velocity/hinge_1": "rad/s"},
        "walker-walk": {"position/rootz": "m", "position/right_hip": "rad", "velocity/rootx": "m/s"},
        "quadruped-walk": {"position/root_z": "m", "position/root_qw": "", "velocity/root_wx": "rad/s"},
        "reacher-easy": {"position/target_x": "m", "position/wrist": "rad"},
    }.items():
        env = make_dmc(task).unwrapped
        units = dict(zip(env.state_names, env.state_units))
        assert len(env.state_names) == len(env.state_units)
        assert some.items() <= units.items()
        env.close()

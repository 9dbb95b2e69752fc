"""States in coordinates that frames can show: right values, right units, and nothing lost that frames do show."""

import numpy as np
import pytest

from envs import make_dmc
from perceiver_obs.data.state_coordinates import StateCoordinates


def rolled(task: str, steps: int = 4, **arguments):
    """An environment without frames worth the name, its recorded states and dm_control's own values at each."""
    env = make_dmc(task, size=1, render_quality="fast", state_in_info=True, **arguments)
    random = np.random.default_rng(0)
    _, info = env.reset(seed=3, options={"random_init": True})
    yield env, info["state"]
    for _ in range(steps):
        info = env.step(random.uniform(-1, 1, env.unwrapped.action_size))[-1]
        yield env, info["state"]
    env.close()


def named(env, state, task: str) -> dict[str, float]:
    coordinates = StateCoordinates(env.unwrapped.state_names, task)
    return dict(zip([c.name for c in coordinates.coordinates], coordinates(state)))


@pytest.mark.parametrize("task", ["reacher-easy", "reacher-hard"])
def test_the_reachers_target_is_relative_to_the_finger_tip_as_dm_control_has_it(task):
    for env, state in rolled(task):
        found = named(env, state, task)
        physics = env.unwrapped.physics
        to_target = [found["position/finger_to_target_x"], found["position/finger_to_target_y"]]
        np.testing.assert_allclose(to_target, physics.finger_to_target(), atol=1e-4)
        wrist = physics.named.data.qpos["wrist"]
        assert found["position/wrist_cos"] == pytest.approx(np.cos(wrist), abs=1e-5)
        assert found["position/wrist_sin"] == pytest.approx(np.sin(wrist), abs=1e-5)
        assert not {"position/wrist", "position/target_x", "position/target_y"} & found.keys()


def test_the_fingers_target_is_relative_to_the_spinners_tip_where_both_are_drawn():
    for env, state in rolled("finger-turn_hard"):
        found = named(env, state, "finger-turn_hard")
        to_target = [found["position/tip_to_target_x"], found["position/tip_to_target_z"]]
        np.testing.assert_allclose(to_target, env.unwrapped.physics.to_target(), atol=1e-4)
        assert {"position/hinge_cos", "position/hinge_sin"} <= found.keys()  # the tip tells half-turns apart


def test_a_spinner_without_a_tip_counts_by_twice_its_angle():
    for env, state in rolled("finger-spin", action_repeat=20):
        found = named(env, state, "finger-spin")
        angle = float(env.unwrapped.physics.named.data.qpos["hinge"][0])
        doubled = [found["position/doubled_hinge_cos"], found["position/doubled_hinge_sin"]]
        np.testing.assert_allclose(doubled, [np.cos(2 * angle), np.sin(2 * angle)], atol=1e-5)
        turned = dict(zip(env.unwrapped.state_names, state))
        turned |= {"position/hinge_cos": np.cos(angle + np.pi), "position/hinge_sin": np.sin(angle + np.pi)}
        assert named(env, list(turned.values()), "finger-spin") == pytest.approx(found, abs=1e-5)
        assert not [name for name in found if "target" in name]  # it is transparent there


def test_the_walkers_legs_become_sums_and_differences_and_its_root_stays():
    for env, state in rolled("walker-walk"):
        found, recorded = named(env, state, "walker-walk"), dict(zip(env.unwrapped.state_names, state))
        assert len(found) == len(recorded)
        for kind in ("position", "velocity"):
            for limb in ("hip", "knee", "ankle"):
                right, left = recorded[f"{kind}/right_{limb}"], recorded[f"{kind}/left_{limb}"]
                assert found[f"{kind}/right+left_{limb}"] == pytest.approx(right + left, abs=1e-5)
                assert found[f"{kind}/right-left_{limb}"] == pytest.approx(right - left, abs=1e-5)
        assert all(found[name] == pytest.approx(recorded[name]) for name in found if "left" not in name)
    twins = {c.name: c.twins for c in StateCoordinates(env.unwrapped.state_names, "walker-walk").coordinates}
    assert twins["velocity/right+left_knee"] == "sum"
    assert twins["position/right-left_hip"] == "difference"
    assert {twins[name] for name in twins if "left" not in name} == {""}


def test_a_target_is_left_out_along_axes_on_which_the_camera_travels():
    names = ["position/target_x", "position/target_y", "velocity/rootx", "velocity/rooty"]
    assert [c.name for c in StateCoordinates(names, "swimmer-swimmer6").coordinates] == names[2:]
    fixed = ["position/rootx", "position/rooty", *names]
    assert [c.name for c in StateCoordinates(fixed, "swimmer-swimmer6").coordinates] == fixed


@pytest.mark.parametrize(
    "task",
    [
        *("acrobot-swingup", "ball_in_cup-catch", "cartpole-two_poles", "cheetah-run", "finger-turn_easy"),
        *("fish-swim", "hopper-hop", "humanoid-walk", "lqr-lqr_2_1", "manipulator-bring_peg", "pendulum-swingup"),
        *("point_mass-easy", "quadruped-escape", "reacher-easy", "stacker-stack_2", "swimmer-swimmer6"),
        "walker-run",
    ],
)
def test_units_are_those_of_the_simulator(task):
    env = make_dmc(task, size=1).unwrapped
    coordinates = StateCoordinates(env.state_names, task).coordinates
    units = {coordinate.name: coordinate.unit for coordinate in coordinates}
    recorded = dict(zip(env.state_names, env.state_units))
    env.close()
    kept = units.keys() & recorded.keys()
    assert {name: units[name] for name in kept} == {name: recorded[name] for name in kept}
    made = {name.partition("/")[0]: set() for name in units}
    for name in units.keys() - kept:
        made[name.partition("/")[0]].add(units[name])
    assert made["position"] <= {"m", "rad", ""}
    assert made["velocity"] <= {"rad/s"}  # of twin limbs
    order = [coordinate.name.startswith("position/") for coordinate in coordinates]
    assert order == sorted(order, reverse=True)


def test_states_of_other_tasks_stay_as_they_are():
    names = ["velocity/right_x", "position/wrist", "speed", "position/left_x"]
    for task in ("my-robot", None, "reacher-easy", "walker-walk"):  # the last two without what they would need
        coordinates = StateCoordinates(names, task)
        states = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        found = [coordinate.name for coordinate in coordinates.coordinates]
        assert sorted(found) == sorted(names)
        np.testing.assert_array_equal(coordinates(states), states[..., [names.index(name) for name in found]])
    assert {coordinate.unit for coordinate in StateCoordinates(names, "my-robot").coordinates} == {""}
    with pytest.raises(ValueError, match="states of 4 entries"):
        coordinates(np.zeros((2, 3)))

"""Random starts: a dm_control task begun from a pose and a motion that its own start would not give."""

from typing import Any

import numpy as np

_FREE, _BALL, _SLIDE, _HINGE = range(4)  # mjtJoint
_TRIES = 20
_MAX_SPEED = 2.0  # standard deviation of joint velocities, m/s and rad/s
_SPRING_DEFLECTION = 0.2  # rad or m; joints held by springs are stable only near their rest


def randomise_start(physics: Any, random: np.random.RandomState) -> None:
    """Move a freshly reset `Physics` towards a random pose, as far as that makes no new contacts, and set it in motion.

    Limited joints are drawn from their whole range, free hinges from the full turn, orientations from all. Where the
    body stands stays as it was, and in water it starts at rest.
    """
    start, contacts = physics.data.qpos.copy(), physics.data.ncon
    for reach in np.linspace(1.0, 0.0, _TRIES):
        pose = start + reach * (_random_pose(physics.model, start, random) - start)
        _normalise_quaternions(physics.model, pose)
        physics.data.qpos[:] = pose
        physics.after_reset()
        if physics.data.ncon <= contacts:
            break
    if physics.model.opt.density == 0:  # drag on sudden speeds makes the swimming tasks unstable
        speed = random.uniform(0.0, _MAX_SPEED)
        physics.data.qvel[:] = speed * random.normal(size=physics.model.nv)
        physics.after_reset()


def _random_pose(model: Any, start: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    pose = start.copy()
    for joint in range(model.njnt):
        at, kind = model.jnt_qposadr[joint], model.jnt_type[joint]
        if kind in (_FREE, _BALL):
            quaternion = at + (3 if kind == _FREE else 0)
            pose[quaternion : quaternion + 4] = random.normal(size=4)
        elif model.jnt_limited[joint]:
            pose[at] = random.uniform(*model.jnt_range[joint])
        elif model.jnt_stiffness[joint] > 0:
            pose[at] += random.uniform(-_SPRING_DEFLECTION, _SPRING_DEFLECTION)
        elif kind == _HINGE:
            pose[at] = random.uniform(-np.pi, np.pi)
    return pose


def _normalise_quaternions(model: Any, pose: np.ndarray) -> None:
    for joint in range(model.njnt):
        kind = model.jnt_type[joint]
        if kind in (_FREE, _BALL):
            at = model.jnt_qposadr[joint] + (3 if kind == _FREE else 0)
            pose[at : at + 4] /= np.linalg.norm(pose[at : at + 4])

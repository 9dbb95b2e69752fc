"""The true state of a dm_control task as one named float vector, for probes and state baselines."""

import numpy as np

_FREE, _BALL, _SLIDE, _HINGE = range(4)  # mjtJoint
_TRACKING_CAMERAS = (1, 2)  # mjtCamLight: track, trackcom
# Goals that dm_control draws anew for each episode and that no joint holds.
_TARGETS = {
    "dog-fetch": ("geom", "target", "xyz"),
    "finger": ("site", "target", "xz"),
    "fish": ("geom", "target", "xyz"),
    "manipulator-bring_ball": ("body", "target_ball", "xz"),
    "manipulator-bring_peg": ("body", "target_peg", "xz"),
    "manipulator-insert_ball": ("body", "target_ball", "xz"),
    "manipulator-insert_peg": ("body", "target_peg", "xz"),
    "reacher": ("geom", "target", "xy"),
    "stacker": ("body", "target", "xz"),
    "swimmer": ("geom", "target", "xy"),
}


class StateReader:
    """Reads joint positions, the target's position and joint velocities from a dm_control `Physics`.

    Hinges without limits count as cosine and sine, so that a full turn is no jump; the sign of a quaternion is
    chosen so that its first entry is not negative. Where the camera travels with the body, its absolute
    horizontal position is left out: no frame shows it.

    Attributes:
        names: one name for each dimension: "position/<joint>", "position/<joint>_cos", "position/target_x",
            "velocity/<joint>".
        units: of each dimension, "m", "rad", "m/s" or "rad/s"; "" where it has none (cosines, sines, quaternions).
    """

    def __init__(self, physics, task: str, camera: int):
        self._quaternions: list[int] = []
        num_qpos, num_qvel = physics.model.nq, physics.model.nv
        cos, sin, qvel, target = np.cumsum([num_qpos, num_qpos, num_qpos, num_qvel])
        positions: list[tuple[str, int, str]] = []
        velocities: list[tuple[str, int, str]] = []
        hidden = _hidden_axes(physics.model, camera)
        for joint in range(physics.model.njnt):
            name = physics.model.id2name(joint, "joint") or f"joint{joint}"
            kind = int(physics.model.jnt_type[joint])
            at, vel = int(physics.model.jnt_qposadr[joint]), qvel + int(physics.model.jnt_dofadr[joint])
            if kind in (_FREE, _BALL):
                axes = ["x", "y", "z"] if kind == _FREE else []
                quaternion = at + len(axes)
                self._quaternions.append(quaternion)
                shown = [(i, axis) for i, axis in enumerate(axes) if (joint, axis) not in hidden]
                positions += [(f"{name}_{axis}", at + i, "m") for i, axis in shown]
                positions += [(f"{name}_q{axis}", quaternion + i, "") for i, axis in enumerate("wxyz")]
                velocities += [(f"{name}_{axis}", vel + i, "m/s") for i, axis in enumerate(axes)]
                velocities += [(f"{name}_w{axis}", vel + len(axes) + i, "rad/s") for i, axis in enumerate("xyz")]
                continue
            unit = "rad" if kind == _HINGE else "m"
            if kind == _HINGE and not physics.model.jnt_limited[joint]:
                positions += [(f"{name}_cos", cos + at, ""), (f"{name}_sin", sin + at, "")]
            elif (joint, "slide") not in hidden:
                positions.append((name, at, unit))
            velocities.append((name, vel, f"{unit}/s"))

        self._target = _TARGETS.get(task) or _TARGETS.get(task.split("-")[0])
        if self._target:
            positions += [(f"target_{axis}", target + "xyz".index(axis), "m") for axis in self._target[2]]
        self.names = tuple(f"position/{n}" for n, _, _ in positions) + tuple(f"velocity/{n}" for n, _, _ in velocities)
        self.units = tuple(unit for _, _, unit in positions + velocities)
        self._columns = np.array([i for _, i, _ in positions + velocities])

    def __call__(self, physics) -> np.ndarray:
        """The state now, float32 [S]."""
        qpos = physics.data.qpos.copy()
        for at in self._quaternions:
            if qpos[at] < 0:
                qpos[at : at + 4] *= -1
        target = np.zeros(3)
        if self._target:
            element, name, _ = self._target
            positions = {"geom": "geom_xpos", "site": "site_xpos", "body": "xpos"}[element]
            target = getattr(physics.named.data, positions)[name]
        everything = np.concatenate([qpos, np.cos(qpos), np.sin(qpos), physics.data.qvel, target])
        return everything[self._columns].astype(np.float32)


def _hidden_axes(model, camera: int) -> set[tuple[int, str]]:
    """(joint, axis) pairs of horizontal root motion that a camera travelling with the body does not show."""
    if camera < 0:
        return set()
    body = int(model.cam_bodyid[camera])
    travels = body != 0 and (model.cam_mode[camera] in _TRACKING_CAMERAS or model.cam_mode[camera] == 0)
    if not travels:
        return set()
    hidden = set()
    for joint in range(model.njnt):
        if model.jnt_bodyid[joint] != model.body_rootid[body]:
            continue
        if model.jnt_type[joint] == _FREE:
            hidden |= {(joint, "x"), (joint, "y")}
        elif model.jnt_type[joint] == _SLIDE and abs(model.jnt_axis[joint][2]) < 0.5:
            hidden.add((joint, "slide"))
    return hidden

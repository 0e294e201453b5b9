"""What happens in one trial of a peg, an arm a column: force, damping and depth over time.

    python -m benchmarks.studies.insertion --policy runs/square/policy --out insertion.png

Without a policy, the scripted trajectory. A line an arm is printed, the picture is written to --out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from realrl import envs
from realrl.cell.evaluate import held_out
from realrl.envs.assembly import CONTROLS, LEVELS, TRUTH
from realrl.envs.mujoco.assembly import AssemblyEnv
from realrl.policies.folder import load_policy
from realrl.types import Array, Policy

AXES = ("x", "y", "z")


def trial(task: str, policy: Policy, seed: int) -> tuple[Array, bool, float]:
    """(trace [T, 11], whether it succeeded, its peak force, N) of one trial."""
    env = envs.make(task)
    assert isinstance(env, AssemblyEnv)
    env.trace = []
    obs, info = env.reset(seed=seed)
    ended, state = False, policy.start(1)
    while not ended:
        seen = {key: torch.as_tensor(value)[None, None] for key, value in obs.items()}
        plan, state = policy.act(seen, state, greedy=True, rng=[torch.Generator()])
        obs, _, terminated, truncated, info = env.step(np.asarray(plan.action)[0, 0])
        ended = terminated or truncated
    return np.array(env.trace), bool(info["success"]), float(obs["privileged"][TRUTH["peak"]])


def draw(found: dict[str, tuple[Array, bool, float]], out: Path) -> None:
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
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    found = {}
    for control in args.controls:
        task = f"assembly/{args.arm}" + ("" if control == "direct" else f"-{control}")
        policy = load_policy(args.policy)[0] if args.policy else envs.expert(task)
        trace, success, peak = found[control] = trial(task, policy, held_out(args.start + 1, 0)[-1])
        print(f"{control}: {'in' if success else 'not in'} after {trace[-1, 0]:.1f} s, peak {peak:.1f} N, "
              f"damping at the end {trace[-1, 5:8].round().tolist()} N s/m")
    draw(found, args.out)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What happens in one trial of a peg or a block, an arm a column: force, damping and how far it came over time.

    python -m benchmarks.studies.insertion --policy runs/square/policy --out insertion.png --film insertion.mp4

Without a policy, the scripted trajectory. A line an arm is printed, the picture is written to --out, a film of the last arm, with the
wrench that the sensor feels beside the peg, to --film. A run's report has the same of its own policy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from realrl import envs
from realrl.envs.assembly import CONTROLS, LEVELS, TRACE
from realrl.files import write_bytes
from realrl.policies.folder import load_policy, read_recall
from realrl.report.insertion import DEPTH, RAISED, film, trial
from realrl.scene import Scene

Told = dict[str, Any]


def draw(found: dict[str, Told], out: Path) -> None:
    """A column an arm: force, damping and how far it came."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(3, len(found), figsize=(4 * len(found), 7), sharex="col", sharey="row", squeeze=False)
    for column, (name, told) in enumerate(found.items()):
        force, damping, depth = axes[:, column]
        trace = told["trace"]
        for what, place, width in (("force", force, 0.7), ("damping", damping, 1.2)):
            for axis, values in zip("xyz", trace[:, TRACE[what]].T, strict=True):
                place.plot(trace[:, 0], values, linewidth=width, label=axis)
        title, unit, scale, _ = RAISED if trace.shape[1] > TRACE["joints"].stop else DEPTH
        depth.plot(trace[:, 0], scale * trace[:, TRACE["above"]], color="black")
        force.set_title(f"{name}: {'done' if told['success'] else 'not done'}, peak {told['peak']:.0f} N")
        depth.set_xlabel("s")
    for row, label in zip(axes[:, 0], ("force [N]", "damping [N s/m]", f"{title.lower()} [{unit}]"), strict=True):
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
    parser.add_argument("--controls", nargs="+", default=["direct", "adapted", "braced"], choices=CONTROLS)
    parser.add_argument("--start", type=int, default=0, help="which held-out start")
    parser.add_argument("--out", type=Path, default=Path("insertion.png"))
    parser.add_argument("--film", type=Path, help="a film of the last of the controls")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    found = {}
    for control in args.controls:
        task = f"assembly/{args.arm}" + ("" if control == "direct" else f"-{control}")
        policy = load_policy(args.policy)[0] if args.policy else envs.expert(task)
        env, told = trial(task, policy, Scene(recall=read_recall(args.policy) if args.policy else 0), args.start)
        found[control], trace = told, told["trace"]
        print(f"{control}: {'done' if told['success'] else 'not done'} after {trace[-1, 0]:.1f} s, peak {told['peak']:.1f} N, "
              f"damping at the end {trace[-1, TRACE['damping']].round().tolist()} N s/m")
    draw(found, args.out)
    print(args.out)
    if args.film:
        write_bytes(args.film, film(env, trace))
        print(args.film)
    return 0


if __name__ == "__main__":
    sys.exit(main())

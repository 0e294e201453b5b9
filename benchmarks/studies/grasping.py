"""Does a hand grasp, and where does it fail: `python -m benchmarks.studies.grasping RUN ...`.

RUN is the folder of a `realrl train hil-serl --task contact/pick-peg`. Printed for every thousand control steps of practice, as means over
episodes: how they ended (won; won without help; the peg lost; cut by the clock), whether the peg was ever held, and whether the robot
itself took it; how often the robot shut, opened, and commanded for nothing; how often the peg was let go; their steps. Then the same of
what the run deployed, without noise and without a person, from held-out starts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from realrl.cell.collect import Collector
from realrl.cell.evaluate import held_out
from realrl.data.store import Store
from realrl.envs.contact import OPENING, PICK_FULL, holds
from realrl.policies.folder import load_policy
from realrl.scene import COMMAND, CollectConfig
from realrl.types import Array, Episode, RealrlError, Source

HEAD = ("won", "alone", "lost", "clock", "held", "took it", "shuts", "opens", "in vain", "let go", "steps")


def main(words: list[str] | None = None) -> int:
    """Print the table of every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--episodes", type=int, default=100, help="held-out episodes")
    args = parser.parse_args(words)
    for run in args.runs:
        episodes = list(Store.open(run / "dataset").read(images=False))
        practice = [e for e in episodes if e.policy == "hil-serl"]
        if not practice or practice[0].obs.get("privileged", np.zeros((1, 0))).shape[1] != PICK_FULL:
            raise RealrlError(f"{run}: no practice of picking in it: give the folder of a realrl train hil-serl --task contact/pick-peg")
        print(f"{run.name}\n  {'':>12}" + "".join(f"{name:>9}" for name in HEAD))
        ends = np.cumsum([len(e) for e in practice])
        for at in range(0, int(ends[-1]), 1000):
            line(f"{at}", [e for e, end in zip(practice, ends, strict=True) if at <= end - 1 < at + 1000])
        if (run / "policy").is_dir():
            policy, task = load_policy(run / "policy")
            with Collector(task, CollectConfig(workers=1)) as collector:
                line("deployed", list(collector.collect(policy, held_out(args.episodes), greedy=True)))
    return 0


def line(name: str, episodes: list[Episode]) -> None:
    """Means over some episodes."""
    if episodes:
        print(f"  {name:>12}" + "".join(f"{x:9.2f}" for x in np.mean([counts(e) for e in episodes], 0)))


def counts(episode: Episode) -> Array:
    """The numbers of `HEAD` of one episode."""
    full, robot, command = episode.obs["privileged"], episode.source == Source.POLICY, episode.action[:, -1]
    held, shut = holds(full), full[:-1, OPENING] < 0.5
    shuts, opens = robot & (command >= COMMAND), robot & (command <= -COMMAND)
    taken, let = held[1:] & ~held[:-1], held[:-1] & ~held[1:]
    won, lost = episode.succeeded, episode.terminated and not episode.succeeded
    found: Array = np.array([won, won and robot.all(), lost, episode.truncated, held.any(), (taken & robot).any(), (shuts & ~shut).sum(),
                             (opens & shut).sum(), (shuts & shut).sum() + (opens & ~shut).sum(), let.sum(), len(episode)], float)
    return found


if __name__ == "__main__":
    sys.exit(main())

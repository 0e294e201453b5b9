"""What a trained world model expects, beside what happened: `python -m benchmarks.studies.dreams RUN --out dreams.png`.

RUN is the folder of a `realrl train daydreamer`. The model sees the first 5 observations of recorded stretches, then dreams on with the
actions that were really sent. Printed: the error of the readings (in symlog), steps ahead, beside that of saying that all stays as it is,
over 256 stretches; drawn: the readings that moved most in one of them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from realrl import config
from realrl.algos.daydreamer import DaydreamerConfig, Dreamer
from realrl.data.store import Store
from realrl.learn.replay import Replay
from realrl.nets.twohot import symlog
from realrl.policies.folder import load_policy
from realrl.policies.recurrent import RecurrentPolicy
from realrl.run import Run
from realrl.types import RealrlError

SEEN, AHEAD = 5, (1, 5, 15, 30)


def main(words: list[str] | None = None) -> int:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("dreams.png"))
    args = parser.parse_args(words)
    agent, replay = told(args.run)
    s = replay.segments(256, SEEN + max(AHEAD) - 1, torch.Generator().manual_seed(0))
    whole = s.valid.all(0)
    truth, dreamt = symlog(s.obs["state"])[:, whole], agent.foresee(s, SEEN)[:, whole]
    print("steps ahead  dreamt  stays as it is")
    for n in AHEAD:
        wrong, copied = (dreamt[n - 1] - truth[SEEN + n - 1]).abs().mean(), (truth[SEEN - 1] - truth[SEEN + n - 1]).abs().mean()
        print(f"{n:11d}  {wrong:6.3f}  {copied:14.3f}")
    draw(truth, dreamt, args.out)
    return 0


def told(run: Path) -> tuple[Dreamer, Replay]:
    """The learner of a run as its last checkpoint has it, and the run's practice. Raises RealrlError for another run."""
    cfg = config.from_dict(DaydreamerConfig, config.read(run / "config.yaml"), source=str(run / "config.yaml"))
    policy, _ = load_policy(run / "policy")
    if not isinstance(policy, RecurrentPolicy):
        raise RealrlError(f"{run}: its policy is no world model's: give the folder of a realrl train daydreamer")
    agent, replay = Dreamer(policy, cfg.dream, seed=0), Replay()
    with Run(run, resume=True) as book:
        book.load("daydreamer", agent=agent)
    for episode in Store.open(run / "dataset").read(images=bool(policy.senses)):
        if episode.policy == "daydreamer":
            replay.extend([replace(episode, obs={key: episode.obs[key] for key in ("state", *policy.senses)})])
    return agent, replay


def draw(truth: torch.Tensor, dreamt: torch.Tensor, out: Path) -> None:
    """The six readings that moved most, in the stretch in which they did."""
    moved = truth.std(0)
    stretch = int(moved.sum(-1).argmax())
    fig, axes = plt.subplots(2, 3, figsize=(11, 5), sharex=True, constrained_layout=True)
    for axis, reading in zip(axes.flat, moved[stretch].topk(6).indices.tolist(), strict=True):
        axis.plot(truth[:, stretch, reading], label="what happened")
        axis.plot(range(SEEN, len(truth)), dreamt[:, stretch, reading], label="dreamt")
        axis.axvline(SEEN - 1, color="0.7", lw=1)
        axis.set_title(f"reading {reading}")
    axes[0, 0].legend()
    fig.savefig(out, dpi=90)


if __name__ == "__main__":
    sys.exit(main())

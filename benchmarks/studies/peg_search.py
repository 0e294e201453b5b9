"""How a hand searches for its slot, and whether its critics know a better way: `python -m benchmarks.studies.peg_search RUN ...`.

RUN is the folder of a `realrl train hil-serl --task contact/...`. Printed for every thousand control steps: of the steps that the policy
began in contact on the slot's rim, how many stayed in contact and how many fell in, how far the peg was tilted (median; the person's steps
besides, mrad), how many fell in where it was tilted by less than 25 mrad and by more, and how many episodes were solved alone. Then, at
such moments of the last hundred episodes: by how much two critics differ over sideways actions, and whether they agree on the better one.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch

from realrl import config
from realrl.algos.hil_serl import HILConfig
from realrl.data.store import Store
from realrl.envs.contact import TILT, TILTED, TRUTH
from realrl.learn.sac import SAC
from realrl.policies.gaussian import GaussianPolicy
from realrl.run import Run
from realrl.types import Array, Episode, RealrlError, Source

PRESS = 17  # in the state: the force upwards
TOUCH, RIM = 0.15, (-1.5, 1.0)  # felt as contact; mm under the slot's mouth within which the tip is on its rim
TILTS = 25.0  # mrad; from there on a corner is low enough to be felt
SIDEWAYS = (-0.6, -0.3, 0.0, 0.3, 0.6)


def main(words: list[str] | None = None) -> int:
    """Print both tables of every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    for run in parser.parse_args(words).runs:
        episodes = [e for e in Store.open(run / "dataset").read(images=False) if e.policy == "hil-serl"]
        if not episodes or "privileged" not in episodes[0].obs or episodes[0].action.shape[1] > 6:
            raise RealrlError(f"{run}: no practice of a simulated peg in it: give the folder of a realrl train hil-serl --task contact/peg")
        print(run.name)
        search(episodes)
        agreement(run, episodes[-100:])
    return 0


def search(episodes: list[Episode]) -> None:
    """What became of contact, by thousands of control steps."""
    ends = np.cumsum([len(e) for e in episodes])
    print("  steps   in contact   stays   falls in   tilt  the person's   falls in upright, tilted   solved alone")
    for at in range(0, int(ends[-1]), 1000):
        some = [e for e, end in zip(episodes, ends, strict=True) if at <= end - 1 < at + 1000]
        if not some:
            continue
        found, shown = (np.concatenate([touching(e, who) for e in some]) for who in (Source.POLICY, Source.HUMAN))
        alone = np.mean([e.succeeded and bool((e.source == Source.POLICY).all()) for e in some])
        stays, falls, _ = found.mean(0) if len(found) else (np.nan,) * 3
        tilted = found[:, 2] >= TILTS
        low, high = (float(f[:, 1].mean()) if len(f) else np.nan for f in (found[~tilted], found[tilted]))
        tilt, his = (float(np.median(f[:, 2])) if len(f) else np.nan for f in (found, shown))
        print(f"  {at:5d}  {len(found):10d}  {stays:6.2f}  {falls:9.3f}  {tilt:5.0f}  {his:12.0f}  {low:17.3f}  {high:6.3f}  {alone:13.2f}")


def touching(episode: Episode, who: Source) -> Array:
    """Of every step that somebody began in contact on the rim [n, 3]: whether it is in contact after it, whether it fell in, and how far
    the peg was tilted, mrad."""
    depth = 1000 * episode.obs["privileged"][:, TRUTH][:, 2]
    touch = np.abs(episode.obs["state"][:, PRESS]) > TOUCH
    rim = (depth > RIM[0]) & (depth < RIM[1])
    on = touch[:-1] & rim[:-1] & (episode.source == who)
    tilt = 1000 * TILTED * np.abs(episode.obs["state"][:-1, TILT]).max(1)
    return np.stack([touch[1:] & (np.abs(depth[1:]) < 1), depth[1:] > 1, tilt], 1)[on].astype(float)


@torch.no_grad()
def agreement(run: Path, episodes: list[Episode]) -> None:
    """Two critics over a grid of sideways actions, where the hand presses."""
    cfg = config.from_dict(HILConfig, config.read(run / "config.yaml"), source=str(run / "config.yaml"))
    size = episodes[0].obs["state"].shape[1], episodes[0].action.shape[1]
    agent = SAC(GaussianPolicy(cfg.policy, *size), cfg.sac, seed=0)
    with Run(run, resume=True) as book:
        if book.load("hil-serl", agent=agent) is None:
            raise RealrlError(f"{run} has no checkpoint yet: name one that has")
    cond = torch.from_numpy(np.concatenate([pressed(e, cfg.policy.n_obs) for e in episodes]))
    if not len(cond):
        print("  no moments of contact")
        return
    action = agent.policy.distribution(cond)[0].tanh()
    q = []
    for x, y in product(SIDEWAYS, SIDEWAYS):
        action[:, 0], action[:, 1] = x, y
        q.append(agent.critic(torch.cat([cond, action], -1))[:2, :, 0])
    one, other = (lambda v: v - v.mean(-1, keepdim=True))(torch.stack(q, -1))
    spread, apart = (torch.cat([one, other]).std(-1).mean(), ((one - other).std(-1) / 2**0.5).mean())
    alike = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one.numpy(), other.numpy(), strict=True)])
    print(f"  {len(cond)} moments of contact: values of sideways actions spread by {spread:.4f}, the critics differ by {apart:.4f}, "
          f"correlation {alike:.2f}")


def pressed(episode: Episode, n_obs: int) -> Array:
    """What the policy looked at [n, n_obs * D] whenever the hand pressed."""
    state = episode.obs["state"].astype(np.float32)
    steps = np.flatnonzero(np.abs(state[:-1, PRESS]) > 2 * TOUCH)
    back = np.clip(steps[:, None] + np.arange(1 - n_obs, 1), 0, None)
    seen: Array = state[back].reshape(len(steps), n_obs * state.shape[1])
    return seen


if __name__ == "__main__":
    sys.exit(main())

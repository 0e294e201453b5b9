"""Recordings that others made, from the folder to a policy by one command, held-out error beside what anybody can predict.

    python -m benchmarks.real_data --data ../shared/data
    python -m benchmarks.real_data --data ../shared/data --lerobot LEROBOT_ENVIRONMENT/bin/python
    python -m benchmarks.real_data --data ../shared/data --who flow

Every set below --data is imported with the flags that its page of docs/howto/your-data.md names, then `realrl train bc --data SET` runs as
it is, for each seed, or `realrl train flow` with --who flow. Held-out episodes are the same for all seeds; nothing is chosen on them. With
--lerobot the diffusion policy of that environment (pip install lerobot) is fitted to the same decisions with the same gradient steps and
batches, its own network (narrower, see --width), horizon and normalisation, and asked for the same held-out plans; ours runs once more with
that budget. Rows go to benchmarks/results/real_data.jsonl.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.common import RESULTS, ROOT, Part, Table, arguments, published_tables, run_parts
from realrl import config
from realrl.algos.bc import BCConfig
from realrl.algos.flow import FlowTrainConfig
from realrl.cell.foresight import Examiner
from realrl.cell.recordings import Material, read
from realrl.data.views import ChunkView
from realrl.policies.folder import load_policy
from realrl.types import RealrlError

PEER = ROOT / "benchmarks" / "lib" / "lerobot_peer.py"
SHARED = 8  # first actions of a plan that both policies are compared on
SUCCESS, LAST = ("--option", "success=true"), ("--option", "last=drop")
SETS: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> (below --data, flags of its import; none: read where it lies)
    "reachy2 (3 episodes)": ("reachy2_apple_storage", ()),
    "widowx, 4 cameras (25)": ("bridge_widowx_debug", ("--fps", "5")),
    "adroit door, people (25)": ("adroit_hand_dapg/demonstrations", ("--option", "clip=true", *LAST, *SUCCESS)),
    "pusht, people (206)": ("pusht_human/pusht_cchi_v7_replay.zarr.zip", ("--option", "keys=state", *SUCCESS, *LAST)),
    "aloha insertion (1)": ("lerobot_single_episodes/aloha_sim_insertion_human", ()),
    "aloha transfer (1)": ("lerobot_single_episodes/aloha_sim_transfer_cube_human", ()),
    "umi cup (1)": ("lerobot_single_episodes/umi_cup_in_the_wild", ()),
    "pusht, lerobot's (1)": ("lerobot_single_episodes/pusht", ()),
    **{f"robosuite {task} (1)": (f"robosuite_human/{task}/panda/demo.hdf5", SUCCESS)
       for task in ("door", "lift", "nut-assembly", "pick-place", "stack", "wipe")}}
LABELLED = ("pusht, lerobot's (1)",)  # recorded as no success, which nobody's PushT is: labelled as worth imitating
PLAIN, WITHOUT = "no reference", ("reachy2 (3 episodes)", "pusht, people (206)")
FLOW = "flow"
AGAINST = ("reachy2 (3 episodes)", "adroit door, people (25)", "pusht, people (206)")


@dataclass(frozen=True)
class Setting:
    """What a run of the script is given."""

    data: Path
    out: Path
    table: Table
    smoke: bool
    lerobot: str | None
    steps: int
    width: int

    def folder(self, name: str) -> Path:
        """Where a set lies that `train --data` takes."""
        place = self.out / "sets" / name.replace(" ", "-").replace(",", "").replace("'", "").replace("(", "").replace(")", "")
        source, flags = self.data / SETS[name][0], SETS[name][1]
        if not place.exists():
            if (source / "info.json").is_file():
                published_tables(source, place)
            else:
                found = next(iter(sorted(source.glob("door*.pickle"))), source)
                _realrl("data", "import", str(found), "--out", str(place), *flags)
            if name in LABELLED:
                _realrl("data", "label", str(place), "--success", "all")
        return place


def _realrl(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "realrl", *words], capture_output=True, text=True)
    if done.returncode:
        raise RealrlError(f"realrl {' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")


# ---- ours, as it is


def ours(setting: Setting, name: str, seed: int, who: str = "default") -> None:
    """`realrl train bc --data SET`, nothing else; or `train flow`; or the plain policy, which draws whole actions, to see what the
    reference is for."""
    run, began = setting.out / "runs" / f"{setting.folder(name).name}-{seed}-{who.replace(' ', '-')}", time.monotonic()
    plain = ("--policy.reference", "none") if who == PLAIN else ()
    quick = ("--imitation.steps", "20", "--distill.steps", "5") if setting.smoke else ()
    shutil.rmtree(run, ignore_errors=True)
    method = "flow" if who == FLOW else "bc"
    _realrl("train", method, "--data", str(setting.folder(name)), "--run", str(run), "--seed", str(seed), *plain, *quick)
    summary = json.loads((run / "summary.json").read_text())
    last, student = (next(s["foresight"] for s in summary["stages"] if s["name"] == stage) for stage in ("imitation", "one-step"))
    cfg = config.load(FlowTrainConfig if who == FLOW else BCConfig, run / "config.yaml")
    setting.table.put({"set": name, "seed": seed, "who": who, "steps": cfg.imitation.steps, "chunk": cfg.policy.chunk,
                       "error": last["mean_error"] | {"one-step": student["mean_error"]["one-step"]},
                       "of_range": last["error_of_range"] | {"one-step": student["error_of_range"]["one-step"]},
                       "joints": len(last["joints"]), "decisions": last["decisions"], "episodes": last["episodes"],
                       "followed": float(np.mean(last["followed"] or 1.0)), "wall_s": round(time.monotonic() - began, 1),
                       **({"reading": last["reading"]} if "reading" in last else {})})


# ---- LeRobot's diffusion policy on the same decisions


def against(setting: Setting, name: str, seed: int) -> None:
    """Both with the same gradient steps, from numbers alone."""
    assert setting.lerobot is not None
    budget = ("--imitation.steps", str(setting.steps), "--imitation.batch", "64", "--sight.kind", "state", "--no-one-step")
    run = setting.out / "runs" / f"{setting.folder(name).name}-{seed}-equal"
    shutil.rmtree(run, ignore_errors=True)
    began = time.monotonic()
    _realrl("train", "bc", "--data", str(setting.folder(name)), "--run", str(run), "--seed", str(seed), *budget)
    mine, cfg = time.monotonic() - began, config.load(BCConfig, run / "config.yaml")
    material = read(str(setting.folder(name)), cfg.recorded, cfg.sight, run / "cache")
    policy, _ = load_policy(run / "policy")
    examiner = _examiner(material, max(policy.chunk, SHARED), policy.n_obs)
    joint = min(policy.chunk, SHARED)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.savez(place / "in.npz", **_arrays(material, examiner))
        began = time.monotonic()
        told = (setting.steps, 64, seed, torch.get_num_threads(), setting.width)
        done = subprocess.run([setting.lerobot, str(PEER), folder, *map(str, told)], capture_output=True, text=True)
        if done.returncode:
            raise RealrlError(f"lerobot: {done.stderr.strip().splitlines()[-1]}")
        theirs, theirs_s = np.load(place / "out.npy")[:, :joint], time.monotonic() - began
    cost = json.loads(done.stdout.strip().splitlines()[-1])
    truth, mask = examiner.truth[:, :joint], examiner.valid[:, :joint, None]
    error = lambda said: np.abs(np.clip(said, material.robot.low, material.robot.high) - truth).__mul__(mask).sum((0, 1)) / mask.sum()
    said = {"realrl": examiner.ask(policy, True)[:, :joint], "lerobot": material.robot.to_robot(theirs),
            **{who: chunks[:, :joint] for who, chunks in examiner.baselines.items()}}
    span = 2 * material.robot.half
    setting.table.put({"set": name, "seed": seed, "who": "equal steps", "steps": setting.steps, "chunk": joint,
                       "error": {who: float(error(x).mean()) for who, x in said.items()},
                       "of_range": {who: float((error(x) / span).mean()) for who, x in said.items()},
                       "decisions": len(examiner.rows), "wall_s": round(mine, 1), "lerobot_wall_s": round(theirs_s, 1), **cost})


def _examiner(material: Material, chunk: int, n_obs: int) -> Examiner:
    views = [ChunkView(episodes, chunk=chunk, n_obs=n_obs, gamma=1.0) for episodes in (material.demos, material.held_out)]
    return Examiner(material.robot, views[0], views[1])


def _arrays(material: Material, examiner: Examiner) -> dict[str, Any]:
    """Decisions in LeRobot's layout: two observations, sixteen actions that begin with the one before the plan."""
    seen = ChunkView(material.demos, chunk=15, n_obs=2, gamma=1.0)
    batch = seen.batch()
    before = torch.cat([seen.actions[:1], seen.actions[:-1]])
    before = torch.where(seen.first[:, None], seen.actions, before)  # an episode's first action stands for the one before it
    return {"state": batch.obs["state"].numpy(), "action": torch.cat([before[:, None], batch.action], 1).numpy(),
            "pad": torch.cat([torch.zeros(len(batch), 1, dtype=torch.bool), ~batch.valid], 1).numpy(),
            "held_state": examiner.batch.obs["state"].numpy()}


# ---- the script


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0, 1, 2))
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--who", nargs="+", default=["bc"], choices=["bc", FLOW], help="what is trained (default: bc)")
    parser.add_argument("--lerobot", metavar="PYTHON", help="python of an environment with lerobot")
    parser.add_argument("--steps", type=int, default=1000, help="gradient steps of the comparison with lerobot")
    parser.add_argument("--width", type=int, default=128, help="of the first of the three levels of lerobot's U-Net; its default, 512, has "
                        "more than 200 million parameters, which one processor core moves in many seconds a step")
    args = parser.parse_args(words)
    out = args.out / ("smoke" if args.smoke else "real_data")
    table = Table((out if args.smoke else RESULTS) / "real_data.jsonl", ("set", "seed", "who"))
    setting = Setting(args.data.resolve(), out, table, args.smoke, args.lerobot, 5 if args.smoke else args.steps, args.width)
    return min(run_parts(_parts(setting, args.sets, args.seeds, args.who), args.budget), 1)


def _parts(setting: Setting, sets: Sequence[str], seeds: Sequence[int], who: Sequence[str]) -> list[Part]:
    def part(name: str, seed: int, who: str, work: Any) -> Part:
        done = lambda: setting.table.find(name, seed, who) is not None
        return Part(f"{name}, seed {seed}, {who}", done, partial(work, setting, name, seed))

    mine = [part(name, seed, "default", ours) for seed in seeds for name in sets if "bc" in who]
    mine += [part(name, seed, FLOW, partial(ours, who=FLOW)) for seed in seeds for name in sets if FLOW in who]
    mine += [part(name, seed, PLAIN, partial(ours, who=PLAIN)) for seed in seeds for name in sets if name in WITHOUT and "bc" in who]
    peers = [part(name, seed, "equal steps", against) for seed in seeds for name in sets if name in AGAINST and setting.lerobot]
    return mine + peers


if __name__ == "__main__":
    sys.exit(main())

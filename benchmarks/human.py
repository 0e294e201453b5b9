"""Recordings of people and of a real robot, made by others: imported, imitated, replayed.

    python -m benchmarks.human --data ../shared/data

- door: 25 human demonstrations of Adroit door, imitated from state; success under the environment's threshold (hinge at 1.35 rad, which
  most demonstrations do not reach) and the door open (more than 1 rad at any time), from 100 held-out starts of the environment, from
  100 with a demonstrator's arm pose before doors that no demonstration saw, and from the 25 demonstrated starts themselves.
- pusht: 206 human demonstrations of PushT, imitated from keypoints; best coverage of an episode from 100 held-out starts, and
  Diffusion Policy's score, the best of min(coverage / 0.95, 1).
- pusht images: the same recordings with their images, imported, cached, and imitated from the images and the disc's place alone.
- reachy: three episodes of a real Reachy 2, LeRobot v3 tables: a short imitation, judged on the third episode.
- robosuite: one human episode of six tasks, its actions played again.

Each takes what it finds below --data: adroit_hand_dapg/door_human.npz (https://github.com/aravindr93/hand_dapg),
pusht_human/pusht_cchi_v7_replay.zarr.zip (https://diffusion-policy.cs.columbia.edu/data), reachy2_apple_storage (a LeRobot v3 folder's
info.json, tasks.parquet, episodes_file-000.parquet, file-000.parquet), robosuite_human/*/panda/demo.hdf5 (robosuite's own examples).
Rows go to benchmarks/results/human.jsonl; the same command goes on where it was stopped.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.common import RESULTS, Part, Table, arguments, machine, published_tables, run_parts
from benchmarks.lib.door import DOOR, HINGE, OPEN, DemonstratedDoor, human_door, smooth
from realrl import envs
from realrl.cell.collect import Collector, MakeEnv
from realrl.cell.evaluate import held_out, wilson
from realrl.cell.playback import player, replay
from realrl.data import formats
from realrl.data.cache import FrameCache
from realrl.data.formats import open_dataset
from realrl.data.store import Store
from realrl.data.views import ChunkView
from realrl.data.windows import ImageWindows
from realrl.envs import pusht, robosuite
from realrl.files import derive, write_json
from realrl.generative.diffusion import imitation_loss
from realrl.learn.imitation import Imitation, ImitationConfig, generator
from realrl.nets.encoder import EncoderConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import load_policy, save_policy
from realrl.scene import CollectConfig, SightConfig
from realrl.types import Array, Episode, Obs, Plan, RealrlError, State

EPISODES = 100
PUSHT = PolicyConfig(chunk=16, n_obs=2, blocks=4)
EXECUTED = 8  # of PushT's 16 planned actions, as in Diffusion Policy


@dataclass(frozen=True)
class Setting:
    """What a run of the script is given."""

    data: Path
    out: Path
    table: Table
    smoke: bool
    device: str = "cpu"
    image_steps: int = 5000

    def fit(self, cfg: ImitationConfig) -> ImitationConfig:
        """The budget of a fit."""
        return replace(cfg, steps=20, warmup=5, batch=8) if self.smoke else cfg

    @property
    def episodes(self) -> int:
        """How many held-out starts."""
        return 1 if self.smoke else EPISODES


class Executing:
    """A policy of which only the first `chunk` planned actions are carried out before it plans again."""

    def __init__(self, policy: DiffusionPolicy, chunk: int) -> None:
        self.policy, self.chunk, self.n_obs, self.name = policy, chunk, policy.n_obs, policy.name

    def start(self, batch: int) -> State:
        """Nothing to remember."""
        return self.policy.start(batch)

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """The beginning of the plan."""
        plan, state = self.policy.act(obs, state, greedy=greedy, rng=rng)
        return Plan(plan.action[:, :self.chunk]), state


def fit(cfg: PolicyConfig, train: Sequence[Episode], check: Sequence[Episode], imitation: ImitationConfig, seed: int) -> tuple[
        DiffusionPolicy, dict[str, float]]:
    """A diffusion policy fitted to `train` and what it cost: the denoising loss on `check` before and after, seconds."""
    view, held = (ChunkView(e, chunk=cfg.chunk, n_obs=cfg.n_obs, gamma=1.0) for e in (train, check))
    return fit_views(cfg, view, held, train[0].action.shape[-1], imitation, seed)


def fit_views(cfg: PolicyConfig, view: ChunkView | ImageWindows, held: ChunkView | ImageWindows, actions: int, imitation: ImitationConfig,
              seed: int, device: str | torch.device = "cpu") -> tuple[DiffusionPolicy, dict[str, float]]:
    """`fit` on decisions, with pictures where they have any; a view lies on the policy's device."""
    torch.manual_seed(derive(seed, "weights"))
    if isinstance(view, ImageWindows):
        numbers, senses = view.view, {key: camera.shape for key, camera in view.frames.cameras.items()}
    else:
        numbers, senses = view, {key: tuple(x.shape[1:]) for key, x in view.frames.items() if key.startswith("images.")}
    policy = DiffusionPolicy(cfg, numbers.frames["state"].shape[-1], actions, senses=senses, name="imitation").to(device)
    policy.fit_senses(numbers.frames)
    before, began, cpu = _loss(policy, held), time.monotonic(), time.process_time()
    trainer = Imitation(policy, view, imitation, seed=derive(seed, "imitation"))
    while trainer.step < imitation.steps:
        losses = trainer.update()
        if trainer.step % 1000 == 0:
            said = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            print(f"   step {trainer.step} of {imitation.steps}: {said}, {time.monotonic() - began:.0f} s", flush=True)
    trainer.finish()
    cost = {"wall_s": round(time.monotonic() - began, 1), "cpu_s": round(time.process_time() - cpu, 1), "steps": imitation.steps,
            "batch": imitation.batch, "parameters": sum(p.numel() for p in policy.actor.parameters())}
    return policy.with_head("ddim"), {**cost, "loss_before": before, "loss": _loss(policy, held), "loss_train": _loss(policy, view)}


@torch.no_grad()
def _loss(policy: DiffusionPolicy, view: ChunkView | ImageWindows) -> float:
    """The denoising loss over all decisions (a thousand of them where there are pictures), the noise always the same."""
    random = generator(0, "validation", device=policy.device)
    index = torch.randint(len(view), (1000,), generator=generator(0, "looked at")) if policy.encoder else torch.arange(len(view))
    index = index.to(policy.device)
    batch = view.batch(index)
    cond = policy.encode(batch.obs)
    return float(np.mean([float(imitation_loss(policy.diffusion, policy.net, batch.action, batch.valid, cond, random))
                          for _ in range(4)]))


def mean(values: Sequence[float]) -> dict[str, float]:
    """Mean with its 95 % interval (normal, over episodes)."""
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "low": float(np.mean(values)) - half, "high": float(np.mean(values)) + half, "n": len(values)}


def run_episodes(task: str, make: MakeEnv, policy: Any, seeds: Sequence[int], greedy: bool) -> list[Episode]:
    """Whole episodes, in the order of the seeds."""
    with Collector(task, CollectConfig(workers=1, envs_per_worker=50), make=make) as collector:
        found = collector.collect(policy, seeds, greedy=greedy)
        return sorted(found, key=lambda e: e.seed if e.seed is not None else -1)


# -- Adroit door ----------------------------------------------------------------------------------------------------------------------


def door_parts(setting: Setting, seed: int) -> list[Part]:
    """Imitation of the human door demonstrations."""
    def run() -> None:
        demos = [smooth(e) for e in human_door(_file(setting.data / "adroit_hand_dapg" / "door_human.npz"))]
        train, check = demos[1:], demos[:1]
        policy, cost = fit(DOOR, train, check, setting.fit(ImitationConfig(steps=10_000, batch=128)), seed)
        save_policy(policy, setting.out / "human" / f"door-s{seed}", task="adroit/door")
        own = partial(envs.make, "adroit/door", reward="dense", horizon=300)
        starts: dict[str, tuple[MakeEnv, list[int]]] = {
            "held-out": (own, held_out(setting.episodes)),
            "held-out, demonstrated arm": (partial(DemonstratedDoor, demos, False), held_out(setting.episodes)),
            "demonstrated": (partial(DemonstratedDoor, demos, True), list(range(min(len(demos), setting.episodes))))}
        for name, (make, seeds) in starts.items():
            for sampler, greedy in SAMPLERS.items():
                episodes = run_episodes("adroit/door", make, policy, seeds, greedy)
                success = sum(bool(e.success.any()) for e in episodes)
                opened = sum(bool((e.obs["state"][:, HINGE] > 1.0).any()) for e in episodes)
                setting.table.put({"what": "door", "seed": seed, "starts": name, "sampler": sampler, **cost, "demos": len(train),
                                   "success": vars(wilson(success, len(episodes))), "opened": vars(wilson(opened, len(episodes))),
                                   "hinge": mean([float(e.obs["state"][:, HINGE].max()) for e in episodes])})

    def person() -> None:
        demos = human_door(_file(setting.data / "adroit_hand_dapg" / "door_human.npz"))
        hinge = [float(e.obs["state"][:, HINGE].max()) for e in demos]
        again = list(replay([smooth(e) for e in demos], "adroit/door"))
        setting.table.put({"what": "door", "seed": None, "starts": "demonstrated", "sampler": "person",
                           "success": vars(wilson(sum(h >= OPEN for h in hinge), len(hinge))),
                           "opened": vars(wilson(sum(h > 1.0 for h in hinge), len(hinge))), "hinge": mean(hinge),
                           "replayed_success": sum(float(r.observed[:, HINGE].max()) >= OPEN for r in again),
                           "replayed_opened": sum(float(r.observed[:, HINGE].max()) > 1.0 for r in again)})

    def done(seed: int | None, sampler: str, starts: str = "demonstrated") -> bool:
        return setting.table.find("door", seed, starts, sampler) is not None

    return [Part("door: the people", lambda: done(None, "person"), person),
            Part(f"door: imitation, seed {seed}", lambda: done(seed, "exploring"), run)]


# -- PushT ----------------------------------------------------------------------------------------------------------------------------

SAMPLERS = {"noise left out": True, "exploring": False}


def pusht_demos(setting: Setting) -> list[Episode]:
    """The human recordings as the task "pusht/pusht" observes them, without the last action, which nothing follows."""
    file = setting.data / "pusht_human" / "pusht_cchi_v7_replay.zarr.zip"
    read = formats.read(_file(file), keys=("state",), action_range=(0.0, pusht.SIZE), last="drop")
    return list(itertools.islice(read.episodes, 3 if setting.smoke else None))


def as_keypoints(episode: Episode) -> Episode:
    """A recording as "pusht/keypoints" observes it."""
    return replace(episode, obs={"state": pusht.keypoints(episode.obs["state"].astype(np.float64)).astype(np.float32)})


def pusht_parts(setting: Setting, seed: int) -> list[Part]:
    """Imitation of the human PushT demonstrations, one in twenty of them held back for the loss."""
    def run() -> None:
        demos = [as_keypoints(e) for e in pusht_demos(setting)]
        train, check = [e for i, e in enumerate(demos) if i % 20], demos[::20]
        policy, cost = fit(PUSHT, train, check, setting.fit(ImitationConfig(steps=40_000, batch=128)), seed)
        save_policy(policy, setting.out / "human" / f"pusht-s{seed}", task="pusht/keypoints")
        make = partial(envs.make, "pusht/keypoints", reward="dense")
        for sampler, greedy in SAMPLERS.items():
            episodes = run_episodes("pusht/keypoints", make, Executing(policy, EXECUTED), held_out(setting.episodes), greedy)
            setting.table.put({"what": "pusht", "seed": seed, "starts": "held-out", "sampler": sampler, **cost, "demos": len(train),
                               **covered([e.reward for e in episodes])})

    def person() -> None:
        world = pusht.PushTEnv("pusht", "dense", pusht.HORIZON)
        demos = pusht_demos(setting)
        best = [np.array([world.reset_to(state)[1]["coverage"] for state in e.obs["state"]]) for e in demos]
        apart = [float(r.distance.max()) for r in replay(demos, "pusht/pusht")]
        setting.table.put({"what": "pusht", "seed": None, "starts": "demonstrated", "sampler": "person", **covered(best),
                           "replay_px": {"median": float(np.median(apart)), "largest": max(apart)}})

    def done(seed: int | None, sampler: str, starts: str) -> bool:
        return setting.table.find("pusht", seed, starts, sampler) is not None

    return [Part("pusht: the people", lambda: done(None, "person", "demonstrated"), person),
            Part(f"pusht: imitation, seed {seed}", lambda: done(seed, "exploring", "held-out"), run)]


def covered(coverages: Sequence[Array]) -> dict[str, Any]:
    """What a row says of PushT episodes, from the coverage at each step of each."""
    return {"coverage": mean([float(c.max()) for c in coverages]), "score": mean([pusht.score(c) for c in coverages]),
            "success": vars(wilson(sum(bool(c.max() >= pusht.SOLVED) for c in coverages), len(coverages)))}


def from_images(device: str) -> PolicyConfig:
    """The policy that sees; trained on a GPU by the denoising loss alone, as Diffusion Policy is, and with a wider net."""
    if device == "cpu":
        return PUSHT
    return replace(PUSHT, hidden=512, encoder=EncoderConfig(size=128, latent=128, recon=0.0, kl=0.0))


def images_parts(setting: Setting, seed: int) -> list[Part]:
    """The recordings with their images: imported into a dataset, and imitated from its cache of decoded frames."""
    sight = SightConfig(kind="rgb", height=96, width=96)
    folder = setting.out / "human" / ("pusht-images-smoke" if setting.smoke else "pusht-images")
    file = setting.data / "pusht_human" / "pusht_cchi_v7_replay.zarr.zip"

    def imported() -> None:
        began = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        read = formats.read(_file(file), keys=("img", "state"), action_range=(0.0, pusht.SIZE), last="drop")
        store = Store.create(folder, task="pusht/pusht", fps=read.fps, codec="ffv1")
        error = []
        for episode in itertools.islice(read.episodes, 3 if setting.smoke else None):
            store.append([_seen(episode)])
            if len(store) <= 20:
                again = store.read([len(store) - 1])[0].obs["images.top"]
                error.append(float(np.abs(again.astype(np.int16) - _seen(episode).obs["images.top"]).mean()))
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        setting.table.put({"what": "pusht images", "seed": None, "starts": "demonstrated", "sampler": "import", "demos": len(store),
                           "frames": store.frames, "mean_error_of_255": float(np.mean(error)), "bytes": size,
                           "wall_s": round(time.monotonic() - began, 1)})

    def views() -> tuple[ChunkView | ImageWindows, ChunkView | ImageWindows, int]:
        """What is learnt from, what is held back, and how many demonstrations: from the cache on disk, or all in a GPU's memory."""
        if setting.device == "cuda":
            read = formats.read(_file(file), keys=("img", "state"), action_range=(0.0, pusht.SIZE), last="drop")
            demos = [_seen(e) for e in itertools.islice(read.episodes, 3 if setting.smoke else None)]
            held = partial(ChunkView, chunk=PUSHT.chunk, n_obs=PUSHT.n_obs, gamma=1.0, device=setting.device)
            return held([e for i, e in enumerate(demos) if i % 20]), held(demos[::20]), len(demos)
        if not folder.exists():
            imported()
        store = Store.open(folder)
        windows = partial(ImageWindows, store, FrameCache.build(store, progress=False), chunk=PUSHT.chunk, n_obs=PUSHT.n_obs, gamma=1.0,
                          next_images=False)
        view, check = (windows(episodes=[i for i in range(len(store)) if bool(i % 20) == train]) for train in (True, False))
        return view, check, len(store)

    def fitted() -> tuple[DiffusionPolicy, dict[str, Any]]:
        """The policy and what it cost; fitted only where no earlier run of this script has left it."""
        place = setting.out / "human" / f"pusht-images{'-smoke' if setting.smoke else ''}-s{seed}"
        if (place / "cost.json").exists():
            return load_policy(place)[0].with_head("ddim"), json.loads((place / "cost.json").read_text())
        view, held, demos = views()
        imitation = setting.fit(ImitationConfig(steps=setting.image_steps, batch=64 if setting.device == "cpu" else 256))
        policy, cost = fit_views(from_images(setting.device), view, held, 2, imitation, seed, setting.device)
        save_policy(policy, place, task="pusht/pusht", sight=sight)
        cost |= {"demos": demos, "fitted_on": machine()["gpu" if setting.device == "cuda" else "cpu"]}
        write_json(place / "cost.json", cost)
        return policy.cpu(), cost

    def run() -> None:
        policy, cost = fitted()
        make = partial(envs.make, "pusht/pusht", reward="dense", sight=sight)
        for sampler, greedy in SAMPLERS.items():
            episodes = run_episodes("pusht/pusht", make, Executing(policy, EXECUTED), held_out(setting.episodes), greedy)
            setting.table.put({"what": "pusht images", "seed": seed, "starts": "held-out", "sampler": sampler, **cost,
                               **covered([e.reward for e in episodes])})

    def done(seed: int | None, starts: str, sampler: str) -> bool:
        return setting.table.find("pusht images", seed, starts, sampler) is not None

    fit = Part(f"pusht with images: imitation, seed {seed}", lambda: done(seed, "held-out", "exploring"), run)
    if setting.device == "cuda":  # no dataset is made
        return [fit]
    return [Part("pusht with images: import", lambda: done(None, "demonstrated", "import"), imported), fit]


def _seen(episode: Episode) -> Episode:
    """A recording as "pusht/pusht" shows it to eyes: the disc's place and the table from above."""
    picture = next(x for key, x in episode.obs.items() if key.startswith("images."))
    return replace(episode, obs={"state": episode.obs["state"][:, :2].astype(np.float32), "images.top": picture})


# -- Reachy 2 -------------------------------------------------------------------------------------------------------------------------


def reachy_part(setting: Setting, seed: int) -> Part:
    """A few hundred steps of imitation of two episodes, the denoising loss and the action error on the third."""
    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            episodes = open_dataset(published_tables(setting.data / "reachy2_apple_storage", Path(folder))).read(images=False)
        limit = max(float(np.abs(e.action).max()) for e in episodes[:2])  # radians; joint targets, beyond 1
        scaled = [replace(e, action=np.clip(e.action / limit, -1, 1)) for e in episodes]
        steps = ImitationConfig(steps=500, batch=128, warmup=50)
        policy, cost = fit(PolicyConfig(chunk=8), scaled[:2], scaled[2:], setting.fit(steps), seed)
        setting.table.put({"what": "reachy", "seed": seed, "starts": "third episode", "sampler": "noise left out", **cost, "demos": 2,
                           "error_rad": limit * _action_error(policy, scaled[2:]),
                           "hold_rad": limit * _hold_error(scaled[2], policy.chunk)})

    return Part("reachy: imitation", lambda: setting.table.find("reachy", seed, "third episode", "noise left out") is not None, run)


def _action_error(policy: DiffusionPolicy, episodes: Sequence[Episode]) -> float:
    """Mean absolute difference between planned and recorded actions, every tenth decision."""
    view = ChunkView(episodes, chunk=policy.chunk, n_obs=policy.n_obs, gamma=1.0)
    batch = view.batch(torch.arange(0, len(view), 10))
    rng = [np.random.default_rng(i) for i in range(len(batch))]
    plan, _ = policy.act({"state": batch.obs["state"].numpy()}, policy.start(len(batch)), greedy=True, rng=rng)
    return float((torch.from_numpy(plan.action) - batch.action).abs().mean(-1)[batch.valid].mean())


def _hold_error(episode: Episode, chunk: int) -> float:
    """The same for the plan to keep the last action: what an imitation has to beat."""
    last = episode.action[:-chunk]
    return float(np.mean([np.abs(episode.action[i + 1:len(last) + i + 1] - last).mean() for i in range(chunk)]))


# -- robosuite ------------------------------------------------------------------------------------------------------------------------


def robosuite_parts(setting: Setting) -> list[Part]:
    """Every human episode played again in the installed robosuite."""
    def run(file: Path) -> None:
        read = formats.read(file, last="drop")
        episode = next(iter(read.episodes))
        version = str((read.meta.get("env_args") or {}).get("env_version", ""))
        task = f"{'robosuite-1.0' if version.startswith('1.0') else 'robosuite'}/{read.task}"
        world, began = player(task), time.monotonic()
        assert isinstance(world, robosuite.RobosuiteEnv)
        try:
            result = next(replay([_bounded(episode)], world))
            apart = np.linalg.norm(world.gripper(episode.obs["state"]) - world.gripper(result.observed), axis=-1)
        finally:
            world.close()
        far, cm = apart > 0.01, 100 * apart
        setting.table.put({"what": "robosuite", "seed": None, "starts": file.parent.parent.name, "sampler": "replay", "steps": len(result),
                           "recorded_by": version, "gripper_cm": {"median": float(np.median(cm)), "largest": float(cm.max()),
                                                                  "last": float(cm[-1])},
                           "within_1cm": int(far.argmax()) if far.any() else len(result), "solved": result.succeeded,
                           "wall_s": round(time.monotonic() - began, 1)})

    files = sorted((setting.data / "robosuite_human").glob("*/panda/demo.hdf5"))

    def done(file: Path) -> bool:
        return setting.table.find("robosuite", None, file.parent.parent.name, "replay") is not None

    return [Part(f"robosuite: {f.parent.parent.name}", partial(done, f), partial(run, f)) for f in files]


def _bounded(episode: Episode) -> Episode:
    """What the simulator did with actions beyond [-1, 1]: it clipped them."""
    return replace(episode, action=np.clip(episode.action, -1.0, 1.0))


# -- the script -----------------------------------------------------------------------------------------------------------------------


def _file(path: Path) -> Path:
    if not path.is_file():
        raise RealrlError(f"{path} is absent: see --help for where the recordings come from")
    return path


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0, 1, 2))
    parser.add_argument("--data", type=Path, default=os.environ.get("REALRL_RECORDINGS"), help="folder of the recordings; default: the "
                        "environment variable REALRL_RECORDINGS")
    kinds = ("robosuite", "reachy", "door", "pusht", "images")
    parser.add_argument("--parts", nargs="+", default=list(kinds), choices=kinds)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where PushT's images are learnt from; on a GPU by a "
                        "larger network")
    parser.add_argument("--image-steps", type=int, default=5000, help="gradient steps on PushT's images")
    args = parser.parse_args(words)
    if args.data is None:
        parser.error("name the folder of the recordings with --data DIR or REALRL_RECORDINGS")
    out, results = (args.out / "smoke", args.out / "smoke") if args.smoke else (args.out, RESULTS)
    table = Table(results / "human.jsonl", ("what", "seed", "starts", "sampler"))
    setting = Setting(args.data, out, table, args.smoke, args.device, args.image_steps)
    make: dict[str, Callable[[], list[Part]]] = {
        "robosuite": lambda: robosuite_parts(setting), "images": lambda: [p for s in args.seeds for p in images_parts(setting, s)],
        "reachy": lambda: [reachy_part(setting, s) for s in args.seeds],
        "door": lambda: [p for s in args.seeds for p in door_parts(setting, s)],
        "pusht": lambda: [p for s in args.seeds for p in pusht_parts(setting, s)]}
    return min(run_parts([part for kind in args.parts for part in make[kind]()], args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())

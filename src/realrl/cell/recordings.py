"""Somebody's recordings as a task: what is observed, what an action means, who is to be imitated, what is kept back.

Nothing is asked that the data set can tell: names, rate and pictures come from its description, limits and the kind of control from the
actions themselves.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from realrl.cell.kept_back import kept_back, of_each_text, one_text_each
from realrl.data import depth
from realrl.data.cache import FrameCache, Size, resize
from realrl.data.errors import typed
from realrl.data.formats import open_dataset
from realrl.data.formats.lerobot import astray, changing, unfilmed
from realrl.data.reading import proposal, renamed
from realrl.data.spread import flat_names
from realrl.data.store import Recordings
from realrl.data.tools.habits import grouped
from realrl.learn.imitation import worthy
from realrl.robots.embodiment import Control, Embodiment, limits
from realrl.scene import RecordedConfig, SightConfig, SightKind
from realrl.types import Array, Episode, RealrlError, TaskSpec

SECONDS = 0.4  # of a plan
PASSES = 30  # over the decisions, of 128 at a time
LAGS, CLEARLY = (1, 2, 4), 0.1  # control steps after which an action is compared with what it did; by how much one correlation must win
NEAR = 0.5  # of how far an action moves: a measured number nearer than that is what it drives


@dataclass(frozen=True)
class Material:
    """A recorded set, ready to learn from: actions in [-1, 1], states as float32 vectors, pictures of one size.

    demos, held_out: what is imitated, and what is kept to compare with; rest: everything else, failures above all; notes: what a person
    should know of how it was read.
    """

    spec: TaskSpec
    robot: Embodiment
    demos: list[Episode]
    held_out: list[Episode]
    rest: list[Episode]
    notes: list[str]


def sized(cfg: Any) -> Any:
    """The configuration of a method that imitates (fields policy, imitation, sight) with defaults that suit the set cfg.data: two fifths of
    a second a plan, two observations for the speed, a network wider than what it has to draw, cameras where there are any. Of a plan that
    is too wide for that the clean chunk is predicted: as velocity, Adroit's door (448 numbers a plan) was not learned beyond its
    reference."""
    store = opened(cfg.data, cfg.recorded)
    features = store.info["features"]
    actions = int(np.prod((features.get("action") or {}).get("shape") or [1]))
    chunk = min(max(round(SECONDS * store.fps), 4), 16)
    eyes = {depth.is_depth(f) for name, f in features.items() if f.get("dtype") in ("video", "image") and name.startswith("observation.")}
    kind: SightKind = ("rgb" if False in eyes else "pointcloud" if "observation.pointcloud" in features else
                       "depth" if eyes else "state")
    hidden, wide = (256 if 2 * chunk * actions <= 256 else 512), 2 * chunk * actions > 512
    policy = replace(cfg.policy, chunk=chunk, n_obs=2, hidden=hidden, reference="linear",
                     diffusion=replace(cfg.policy.diffusion, predict="sample" if wide else "velocity"))
    steps = int(np.clip(PASSES * store.frames / 128, 1500, 6000 if kind == "state" else 2000))
    imitation = replace(cfg.imitation, steps=steps, batch=128 if kind == "state" else 32, validation=0.1)
    cfg = replace(cfg, one_step=True) if hasattr(cfg, "one_step") else cfg
    cfg = replace(cfg, distill=replace(cfg.distill, steps=min(cfg.distill.steps, 600)))
    if hasattr(cfg, "offline"):  # nothing comes in between two rounds, and nobody can practise
        cfg = replace(cfg, offline=replace(cfg.offline, rounds=1), stages=tuple(stage for stage in cfg.stages if stage != "online"))
    return replace(cfg, policy=policy, imitation=imitation, sight=replace(cfg.sight, kind=kind))


def opened(data: str, cfg: RecordedConfig, **options: Any) -> Recordings:
    """The set, its columns by our names. options: others of `open_dataset`."""
    names = dict(pair.partition("=")[::2] for pair in cfg.names)
    return open_dataset(data, names=names, tolerance=cfg.tolerance, data_path=cfg.data_path, video_path=cfg.video_path, **options)


def read(data: str, cfg: RecordedConfig, sight: SightConfig, spare: Path, told: bool = False) -> Material:
    """Read a set. spare: where decoded pictures are kept if the set's own folder cannot be written; told: whether who learns from it is
    told what to do, so that every demonstration has one text, the set's name where it has none.

    Raises RealrlError for one that nothing can be imitated from, naming what is wrong and the flag that mends it.
    """
    notes: list[str] = []
    store, films = _filmed(data, cfg, sight, notes)
    _look(store, sight.kind, bool(films or notes), data, notes)
    notes += store.notes
    episodes = store.read(images=False)
    if not episodes:
        raise RealrlError(f"{data}: an empty data set, there is nothing to imitate")
    keys = state_keys(episodes[0], cfg, data, proposal(store.info["features"]))
    episodes = [_plain(e, keys, sight.kind == "pointcloud", data, i) for i, e in enumerate(episodes)]
    numbers = _imitated(episodes, data, notes)
    texts = sorted({episodes[i].task for i in numbers})
    if len(texts) > 1 and not told:
        notes.append(f"{len(texts)} task texts among the demonstrations, which the policy is not told: it does what all have in common "
                     "('realrl train flow' learns a policy that is told)")
    if (several := changing(store)) and not told:
        notes.append(f"the task's text changes inside {grouped(several)}, each is imitated whole and under its first text: 'realrl data "
                     "trim' cuts episodes")
    pictures = _pictures(store, films, (sight.height, sight.width), spare)
    seen = [replace(e, obs=e.obs | {sense: pictures[sense][i] for sense in films}) for i, e in enumerate(episodes)]
    shown = [seen[i] for i in numbers]
    if told:
        shown = one_text_each(store, dict(zip(numbers, shown, strict=True)), bool(several), data, notes)
    demos, held_out = (kept_back if len({e.task for e in shown}) == 1 or not told else of_each_text)(shown, cfg.held_out, data, notes)
    if (steps := sum(len(e) for e in demos)) < 2:
        raise RealrlError(f"{data}: {steps} step to imitate beside what is kept to compare with, there is nothing to learn from it: record "
                          "more")
    robot = _embodiment(store, keys, demos, cfg, films)
    rest = [_boxed(e, robot) for i, e in enumerate(seen) if i not in numbers]
    demos, held_out = [_boxed(e, robot) for e in demos], [_boxed(e, robot, limited=False) for e in held_out]
    first = demos[0]
    senses = {key: x.shape[1:] for key, x in first.obs.items() if key != "state"}
    spec = TaskSpec("recorded", Path(data).resolve().name, first.obs["state"].shape[-1], first.action.shape[-1],
                    max(len(e) for e in episodes), 1 / robot.fps, first.task, senses, control=robot.control)
    return Material(spec, robot, demos, held_out, rest, notes)


def _imitated(episodes: Sequence[Episode], data: str, notes: list[str]) -> list[int]:
    """Which episodes are demonstrations. Raises RealrlError where there is none."""
    good = worthy(episodes)
    if not good:
        raise RealrlError(f"{data}: its {len(episodes)} episodes are marked failures and all returns are equal, there is nothing to "
                          f"imitate: say which succeeded with 'realrl data label {typed(data)}'")
    if not any(e.succeeded for e in episodes):
        notes.append(f"{'no episode ended in success' if any(e.judged for e in episodes) else 'nothing says how episodes ended'}: "
                     f"{'all' if len(good) == len(episodes) else 'those of higher return,'} {len(good)} are imitated "
                     f"('realrl data label {typed(data)}' says which succeeded)")
    return [i for i, e in enumerate(episodes) if any(e is g for g in good)]


# ---- observations


def state_keys(episode: Episode, cfg: RecordedConfig, data: str, offered: Mapping[str, str] | None = None) -> list[str]:
    """Which observations make up the state, in order. offered: our name -> a column that looks like it. Raises RealrlError where one is
    missing or nothing is a vector."""
    vectors = [key for key, x in episode.obs.items() if (x.ndim == 2 or (x.ndim > 2 and key == "state")) and x.dtype.kind in "fiub"]
    if cfg.state:
        wanted = [key.removeprefix("observation.") for key in cfg.state]
        if lost := [key for key in wanted if key not in vectors]:
            raise RealrlError(f"{data}: no vector observation.{lost[0]} in it; --recorded.state can name {', '.join(vectors) or 'nothing'}")
        return wanted
    found = ["state"] if "state" in vectors else vectors
    if not found:
        column = (offered or {}).get("observation.state", "COLUMN")
        raise RealrlError(f"{data}: no observation.state and no other vector in it, there is nothing to act upon beside pictures: name the "
                          f"column that holds the robot's joints, {renamed({'observation.state': column})}")
    return found


def _filmed(data: str, cfg: RecordedConfig, sight: SightConfig, notes: list[str]) -> tuple[Recordings, dict[str, str]]:
    """(the set, without the episodes that lack a video where that is wished, the cameras to look through: our name -> theirs)."""
    if sight.kind == "state":
        return opened(data, cfg, **({"cameras": (), "missing": "episodes"} if cfg.missing == "episodes" else {})), {}
    store = opened(data, cfg)
    stills = [name.removeprefix("observation.") for name, f in store.info["features"].items() if f.get("dtype") == "image"]
    films, gone = {}, unfilmed(store)
    if unknown := [key for key in sight.cameras or () if key not in (*store.cameras, *stills)]:
        raise RealrlError(f"{data}: no camera {unknown[0]} in it; there are {', '.join((*store.cameras, *stills)) or 'none'} "
                          "(--sight.cameras)")
    for key in sight.cameras or [*store.cameras, *stills]:
        lost = gone.get(key, [])
        if lost and cfg.missing == "refuse":
            astray(store, key, lost[0])
        if len(lost) == len(store) or (lost and cfg.missing == "camera"):
            notes.append(f"camera {key} left out: {len(lost)} of {len(store)} episodes have no video of it")
            continue
        deep = depth.is_depth(store.info["features"].get(f"observation.{key}", {}))
        if sight.kind != ("depth" if deep else "rgb"):
            notes.append(f"camera {key} left out: it sees {'distances' if deep else 'colours'}, the run {sight.kind} (--sight.kind)")
            continue
        if lost and cfg.missing == "refuse":
            raise RealrlError(f"{store.dir}: {len(lost)} of {len(store)} episodes have no video of {key} (episode {lost[0]} is the first): "
                              "add --recorded.missing episodes to leave them out, or --recorded.missing camera to do without the camera")
        films[_sense(key, deep)] = key
    if any(key in gone for key in films.values()) or cfg.missing == "episodes":
        store = opened(data, cfg, cameras=[key for key in films.values() if key in store.cameras], missing="episodes")
    return store, films


def _look(store: Recordings, kind: SightKind, told: bool, data: str, notes: list[str]) -> None:
    """Note a cloud of another name that nobody looks at. told: whether there is a camera, or something was said of those there are.

    Raises RealrlError where a run shall look and the set shows nothing of that kind.
    """
    features, blind = store.info["features"], "--sight.kind state learns from the numbers alone"
    cloud = proposal(features).get("observation.pointcloud")
    named = f"{cloud} looks like a point cloud: {renamed({'observation.pointcloud': cloud})}" if cloud else ""
    if kind == "pointcloud" and "observation.pointcloud" not in features:
        raise RealrlError(f"{data}: no observation.pointcloud in it{f', but {named}' if named else ''}; {blind}")
    if kind in ("rgb", "depth") and not told:
        flat = [name for name, f in features.items() if len(sides := [n for n in f["shape"] if n > 1]) == 2 and min(sides) >= 8]
        planes = f"; {', '.join(flat)}: written as plain numbers, write pictures of 16 bits, in millimetres" if flat else ""
        raise RealrlError(f"{data}: no camera in it sees {'colours' if kind == 'rgb' else 'distances'}{planes}; {blind}")
    if named and kind == "state":
        notes.append(f"{named} and --sight.kind pointcloud look at it")


def _sense(key: str, deep: bool) -> str:
    """A camera's name as policies know it."""
    name = next((key.removeprefix(p) for p in ("images.", "image.", "depth.") if key.startswith(p)), key)
    return f"{'depth' if deep else 'images'}.{name}"


def _pictures(store: Recordings, films: Mapping[str, str], size: Size, spare: Path) -> dict[str, list[Array]]:
    """All pictures of each camera, an array [T+1, height, width, 3] an episode; videos are decoded once and kept beside the data set."""
    filmed = [key for key in films.values() if key in store.cameras]
    cache = FrameCache.build(store, size=size, names=filmed, folder=None if os.access(store.dir, os.W_OK) else spare) if filmed else None
    found: dict[str, list[Array]] = {}
    for sense, key in films.items():
        if cache is not None and key in filmed:
            edges = cache.cameras[key].first
            found[sense] = [cache.gather({key: np.arange(a, b)})[key].numpy() for a, b in itertools.pairwise(edges)]
        else:
            found[sense] = [resize(store.read([e])[0].obs[key], size) for e in range(len(store))]
    return found


def _plain(episode: Episode, keys: Sequence[str], clouds: bool, data: str, number: int) -> Episode:
    """The episode with its numbers alone: one float32 state, float32 actions, and point clouds where they are looked at."""
    state = np.concatenate([episode.obs[key].reshape(len(episode) + 1, -1) for key in keys], 1).astype(np.float32)
    action = episode.action.reshape(len(episode), -1).astype(np.float32)
    for name, x in (("observation", state), ("action", action), ("reward", episode.reward[:, None])):
        if not (fine := np.isfinite(x).all(1)).all():
            raise RealrlError(f"{data}: episode {number}: NaN or infinity in its {name} at step {int(np.argmin(fine))}: leave it out, with "
                              f"'realrl data import {typed(data)} --out NEW --leave-out {number}'")
    seen = {key: x.astype(np.float32) for key, x in episode.obs.items() if clouds and key == "pointcloud"}
    return replace(episode, obs={"state": state, **seen}, action=action, extra={})


def _boxed(episode: Episode, robot: Embodiment, *, limited: bool = True) -> Episode:
    """The episode with actions as a policy sends them, [-1, 1] inside the limits. limited: what was recorded beyond is cut off there."""
    boxed = robot.to_box(episode.action)
    boxed = np.clip(boxed, -1.0, 1.0) if limited else boxed
    return replace(episode, action=boxed, proposed=boxed)


# ---- what actions mean


def _embodiment(store: Recordings, keys: Sequence[str], demos: Sequence[Episode], cfg: RecordedConfig,
                films: Mapping[str, str]) -> Embodiment:
    """The robot that recorded this."""
    info = store.info
    actions, states = np.concatenate([e.action for e in demos]), np.concatenate([e.obs["state"][:-1] for e in demos])
    joints = _names(info["features"].get("action"), actions.shape[1], "action")
    senses = [name for key in keys for name in _names(info["features"].get(f"observation.{key}"), 0, key)]
    senses = senses if len(senses) == states.shape[1] else [f"state {i}" for i in range(states.shape[1])]
    still = follower(actions, states, joints, senses)
    control: Control = cfg.control if cfg.control != "auto" else "absolute" if say_where(demos) else "relative"
    if control == "relative":
        still = np.full(len(joints), -1)
    own = "action.proposed" in info["features"] and np.abs(actions).max() <= 1.001  # recorded here: they are a policy's already
    low, high = (-np.ones(len(joints)), np.ones(len(joints))) if own else limits(actions, len(demos))
    low, high = _given(cfg.low, low, "low"), _given(cfg.high, high, "high")
    units = (cfg.units * len(joints) if len(cfg.units) == 1 else cfg.units) or ("",) * len(joints)
    robot = Embodiment(str(info.get("robot_type") or "unknown"), tuple(joints), units, tuple(low.tolist()), tuple(high.tolist()),
                       tuple(senses), float(info.get("fps") or store.fps), control, dict(films), tuple(still.tolist()),
                       tuple(np.abs(actions).max(0).astype(float).tolist()))
    return robot


def _given(told: Sequence[float], found: Array, name: str) -> Array:
    if not told:
        return found
    if len(told) not in (1, len(found)):
        raise RealrlError(f"--recorded.{name} has {len(told)} numbers, there are {len(found)} joints: give one each, or one for all")
    return np.broadcast_to(np.asarray(told, np.float64), found.shape)


def _names(feature: Mapping[str, Any] | None, count: int, prefix: str) -> list[str]:
    """A feature's names for its numbers, in whatever nesting others wrote them; counted ones where there are none."""
    feature = feature or {}
    size = int(np.prod(feature.get("shape") or [count])) or count
    found = flat_names(feature.get("names"))
    return found if len(found) == size else [f"{prefix} {i}" for i in range(size)]


def say_where(demos: Sequence[Episode]) -> bool:
    """Whether actions are places rather than motions: on most joints that move, they go with where the robot is a few steps later more
    than with how far it went until then, in whatever unit."""
    place, way = np.zeros(demos[0].action.shape[1]), np.zeros(demos[0].action.shape[1])
    for lag in LAGS:
        rows = [(e.action[:len(e) - lag + 1], e.obs["state"][:len(e) - lag + 1], e.obs["state"][lag:]) for e in demos if len(e) > lag]
        if rows:
            action, before, after = (np.concatenate(x).astype(np.float64) for x in zip(*rows, strict=True))
            place = np.maximum(place, _together(action, after))
            way = np.maximum(way, _together(action, after - before))
    moving = place + way > 0
    return bool(moving.any()) and bool((place > way + CLEARLY)[moving].mean() > 0.5)


def _together(x: Array, y: Array) -> Array:
    """The largest |correlation| of each number of x [N, A] with any of y [N, D], [A]; 0 where one stands still."""
    x, y = x - x.mean(0), y - y.mean(0)
    size = np.sqrt((x ** 2).sum(0))[:, None] * np.sqrt((y ** 2).sum(0))
    found: Array = (np.abs(x.T @ y) / np.where(size > 1e-12, size, np.inf)).max(1)
    return found


def follower(actions: Array, states: Array, joints: Sequence[str], senses: Sequence[str]) -> Array:
    """For each joint the number of the state that its action drives [A]: of its name, of its place where both have the same size, or the
    one that it stays nearest to; -1 where none is near."""
    places = {name: i for i, name in enumerate(senses)}
    if all(name in places for name in joints) and len(set(joints)) == len(joints) and len(places) == len(senses):
        return np.array([places[name] for name in joints])
    if len(joints) == len(senses):
        return np.arange(len(joints))
    distance = np.abs(actions[:, :, None] - states[:, None, :]).mean(0) if actions.shape[1] * states.shape[1] * len(actions) < 5e7 else \
        np.stack([np.abs(actions - states[:, s:s + 1]).mean(0) for s in range(states.shape[1])], 1)
    nearest = distance.argmin(1)
    moves = np.abs(actions - np.median(actions, 0)).mean(0)
    return np.where(distance[np.arange(len(joints)), nearest] < NEAR * moves, nearest, -1)

"""Recordings for a policy that is told what to do: one or several sets, the texts of their episodes, the robots that recorded them.

Sets of one robot become one, so that nothing but the text tells their tasks apart; every other robot has layers of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from realrl.cell.recordings import PASSES, SECONDS, Material, opened, read
from realrl.data import depth
from realrl.nets.text import words
from realrl.robots.embodiment import RATE, Embodiment
from realrl.scene import SightKind
from realrl.types import Episode


def sized(cfg: Any) -> Any:
    """The configuration of a flow policy (fields data, also, policy, imitation, distill, sight) with defaults that suit its sets: two
    fifths of a second a plan, two states for the speed, a linear reference, cameras where all have some."""
    stores = [opened(data, cfg.recorded) for data in (cfg.data, *cfg.also)]
    chunk = min(max(round(SECONDS * max(store.fps for store in stores)), 4), 16)
    seen = [{name for name, f in store.info["features"].items() if f.get("dtype") in ("video", "image") and not depth.is_depth(f)
             and name.startswith("observation.")} for store in stores]
    kind: SightKind = "rgb" if set.intersection(*seen) else "state"
    steps = int(np.clip(PASSES * sum(store.frames for store in stores) / 128, 1500, 6000))
    policy = replace(cfg.policy, plan=chunk, chunk=chunk, n_obs=2, reference="linear")
    return replace(cfg, policy=policy, sight=replace(cfg.sight, kind=kind, height=128, width=128), one_step=True,
                   imitation=replace(cfg.imitation, steps=steps, batch=128, validation=0.1),
                   distill=replace(cfg.distill, steps=min(cfg.distill.steps, 500), batch=256, chains=500))


def read_all(cfg: Any, spare: Path) -> dict[str, Material]:
    """The sets cfg.data and cfg.also, a material a robot: "recorded/NAME" -> what it recorded. spare: see `read`.

    Raises RealrlError as `read` does. One robot that other cameras saw counts as another.
    """
    found: dict[str, Material] = {}
    for number, data in enumerate(dict.fromkeys((cfg.data, *cfg.also))):
        got = read(data, cfg.recorded, cfg.sight, spare if number == 0 else spare.with_name(f"{spare.name}-{number}"), told=True)
        task = next((task for task, other in found.items() if same(other.robot, got.robot) and other.spec.senses == got.spec.senses), None)
        if task is not None:
            found[task] = joined(found[task], got)
            continue
        name, twins = got.spec.name, sum(other.spec.name.partition("~")[0] == got.spec.name for other in found.values())
        name = f"{name}~{twins + 1}" if twins else name
        found[f"{got.spec.suite}/{name}"] = replace(got, spec=replace(got.spec, name=name))
    texts = _alike(found)
    first = next(iter(found.values()))
    if all(len({e.task for e in material.demos}) == 1 for material in found.values()):
        first.notes.append(f"one task text, {texts[0]!r}: language cannot matter here, the policy does this whatever it is told" if
                           len(texts) == 1 else "one task text a robot: language cannot matter here, each does its own task")
    return found


def settled(cfg: Any, found: Mapping[str, Material]) -> Any:
    """The configuration with the robots that recorded as its tasks; of one text nobody needs a reader."""
    one = len({e.task for material in found.values() for e in material.demos}) == 1
    policy = replace(cfg.policy, reader="words") if one else cfg.policy
    return replace(cfg, task=next(iter(found)), tasks=tuple(found), policy=policy)


def _alike(found: Mapping[str, Material]) -> list[str]:
    """Write texts that say the same alike, as the first one does: a full stop is no other task. The texts that there are."""
    first: dict[tuple[str, ...], str] = {}
    for material in found.values():
        for e in (*material.demos, *material.held_out):
            e.task = first.setdefault(tuple(words(e.task)), " ".join(e.task.split()))
    return list(first.values())


def same(one: Embodiment, other: Embodiment) -> bool:
    """Whether two sets were recorded by one kind of robot: of the same names, units and meaning."""
    what = ("robot", "actions", "units", "state", "control", "drives")
    return all(getattr(one, name) == getattr(other, name) for name in what) and abs(one.fps - other.fps) <= RATE * one.fps


def joined(one: Material, other: Material) -> Material:
    """Two sets of one robot as one: limits that hold both, in which all actions are counted anew."""
    low = tuple(np.minimum(one.robot.low, other.robot.low).tolist())
    high = tuple(np.maximum(one.robot.high, other.robot.high).tolist())
    reached = tuple(np.maximum(one.robot.reached, other.robot.reached).tolist()) if one.robot.reached and other.robot.reached else ()
    robot = replace(one.robot, low=low, high=high, reached=reached)
    moved = {what: [_counted_anew(e, m.robot, robot) for m in (one, other) for e in getattr(m, what)]
             for what in ("demos", "held_out", "rest")}
    return Material(replace(one.spec, horizon=max(one.spec.horizon, other.spec.horizon)), robot, notes=[*one.notes, *other.notes], **moved)


def _counted_anew(episode: Episode, old: Embodiment, new: Embodiment) -> Episode:
    """The episode with actions in [-1, 1] of other limits."""
    boxed = new.to_box(episode.action.astype(np.float64) * old.half + old.middle)
    return replace(episode, action=boxed, proposed=boxed)

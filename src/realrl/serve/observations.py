"""Recorded observations of a saved policy: as it saw them, from what its run recorded or learned from, or from a data set that is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from realrl import config
from realrl.cell.recordings import opened, state_keys
from realrl.data.cache import resize
from realrl.data.store import Recordings
from realrl.policies.exported import sense_type
from realrl.policies.folder import Saved, read_robot
from realrl.scene import RecordedConfig
from realrl.types import Array, Episode, Obs, RealrlError

EPISODES = 8  # that observations are taken from, evenly spread


@dataclass(frozen=True)
class Recorded:
    """observations: each entry [1, H, ...]; actions, state: what the data set calls their numbers; fps: its rate."""

    data: Path
    observations: list[Obs]
    actions: list[str]
    state: list[str]
    fps: float


def recorded(folder: Path, about: Mapping[str, Any], policy: Saved, data: Path | None, count: int) -> Recorded:
    """At most `count` observations for the policy in `folder`, whose policy.json says `about`. Raises RealrlError where none are known, and
    where they are not what it looks at."""
    cfg = _run_config(folder)
    raw = cfg.get("recorded") or {}
    own = str(about["task"]).startswith("recorded/")
    names = config.from_dict(RecordedConfig, raw, source=str(folder.parent / "config.yaml")) if own and isinstance(raw, dict) else \
        RecordedConfig()
    place, store = _opened([data] if data else _nearby(folder, cfg), names, folder)
    robot = read_robot(folder)
    cameras = {} if robot is None else robot.cameras
    chosen = sorted({int(i) for i in np.linspace(0, len(store) - 1, min(len(store), EPISODES))})
    found: list[Obs] = []
    for number in chosen:
        episode = store.read([number])[0]
        keys = state_keys(episode, names, str(place)) if own else ["state"]
        steps = np.unique(np.linspace(0, len(episode) - 1, -(-count // len(chosen))).astype(int))
        rows = np.maximum(steps[:, None] + np.arange(1 - policy.n_obs, 1), 0)  # [n, H], an episode's first one is repeated
        frames = {"state": _state(episode, keys, policy, place)[rows]}
        for key, shape in policy.senses.items():
            frames[key] = _sense(episode, cameras.get(key, key), key, shape, rows, place)
        found += [{key: x[i:i + 1] for key, x in frames.items()} for i in range(len(rows))]
    return Recorded(place, found[:count], _names(store, "action", policy.action_dim), _names(store, "observation.state", policy.obs_dim),
                    float(store.fps))


def _run_config(folder: Path) -> Mapping[str, Any]:
    """The configuration of the run that a policy's folder lies in, empty where there is none."""
    file = folder.resolve().parent / "config.yaml"
    return config.read(file) if file.is_file() else {}


def _nearby(folder: Path, cfg: Mapping[str, Any]) -> list[Path]:
    """Where a policy's run recorded, and what it learned from, as far as they are there."""
    named = [folder.resolve().parent / "dataset", *([Path(cfg["data"])] if isinstance(cfg.get("data"), str) else [])]
    return [place for place in named if (place / "meta/info.json").is_file()]


def _opened(places: list[Path], names: RecordedConfig, folder: Path) -> tuple[Path, Recordings]:
    """The first of these data sets that holds anything. Raises RealrlError where none does."""
    for place in places:
        if len(store := opened(str(place), names)):
            return place, store
    what = f"{places[-1]}: an empty data set" if places else f"{folder}: no recorded observations lie near it"
    raise RealrlError(f"{what}, and without them nobody knows whether the graph says the same: name the data set the policy was trained on "
                      "with --data")


def _state(episode: Episode, keys: list[str], policy: Saved, place: Path) -> Array:
    if lost := [key for key in keys if key not in episode.obs]:
        raise RealrlError(f"{place}: it holds no observation.{lost[0]}: name the data set the policy was trained on with --data")
    state = np.concatenate([episode.obs[key].reshape(len(episode) + 1, -1) for key in keys], 1).astype(np.float32)
    if state.shape[1] != policy.obs_dim:
        raise RealrlError(f"{place}: its states have {state.shape[1]} numbers, the policy takes {policy.obs_dim}: name the data set it was "
                          "trained on with --data")
    return state


def _sense(episode: Episode, theirs: str, key: str, shape: tuple[int, ...], rows: Array, place: Path) -> Array:
    """Frames [n, H, *shape] of a sense at rows [n, H], pictures brought to its size."""
    if theirs not in episode.obs:
        raise RealrlError(f"{place}: it holds no observation.{theirs}, which the policy looks at: name the data set it was trained on with "
                          "--data")
    frames = episode.obs[theirs][rows.ravel()]
    if key.startswith(("images.", "depth.")):
        frames = resize(frames, (shape[0], shape[1]))
    if frames.shape[1:] != shape:
        raise RealrlError(f"{place}: its {theirs} has shape {list(frames.shape[1:])}, the policy takes {list(shape)}: name the data set it "
                          "was trained on with --data")
    return frames.astype(sense_type(key), copy=False).reshape(*rows.shape, *shape)


def _names(store: Recordings, column: str, count: int) -> list[str]:
    """What the data set calls a column's numbers; counted ones where it does not say."""
    names = store.info["features"].get(column, {}).get("names")
    flat = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
    return flat if len(flat) == count else [f"{column} {i}" for i in range(count)]

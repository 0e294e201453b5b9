"""Pickles of demonstrations, read as data (`unpickle`): no code of a file ever runs.

Two layouts are known. DAPG (Rajeswaran et al. 2018, the human Adroit demonstrations): a list of episodes, each a dictionary of
`observations` [T, D], `actions` [T, A], `rewards` [T] and the simulator's `init_state_dict`. HIL-SERL (Luo et al. 2024, what its
recorder of demonstrations and its training buffers write): a list of transitions, each a dictionary of `observations`,
`actions`, `next_observations`, `rewards`, `masks`, `dones` and mostly `infos`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.formats import common, senses
from realrl.data.formats.common import Imported
from realrl.data.formats.unpickle import load
from realrl.types import Array, Episode, Obs, RealrlError, Source

NAME = "pickle"
DAPG_FPS, HIL_FPS = 100, 10  # Adroit's frame skip 5 of 2 ms; the Franka environments of HIL-SERL
HIL_KEYS = {"observations", "actions", "next_observations", "rewards", "dones"}


def detect(path: Path) -> bool:
    """Whether it is a file that is named and begins like a pickle."""
    try:
        if path.suffix not in (".pkl", ".pickle") or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(1) in (b"\x80", b"(", b"]")
    except OSError:
        return False


def read(path: Path, *, task: str | None = None, fps: float | None = None, clip: bool = False, last: str = "repeat",
         success: bool = False, images: bool = True) -> Imported:
    """The episodes of a DAPG or HIL-SERL pickle, whichever it is.

    task: its text, by default the file's name; fps: control steps a second, which neither layout says (100 and 10 by default);
    clip: cut actions to [-1, 1], as the simulator did when it recorded them; last: a DAPG episode has no observation after its
    last action, "repeat" lets the last one stand for it, "drop" leaves that action out; success: a DAPG file does not say which
    episodes succeeded, true takes all of them for successes; images: false skips HIL-SERL's cameras.
    Raises RealrlError for a damaged file, one that would run code, and one in another layout.
    """
    path, ending, rate = Path(path), common.check_last(last), common.rate_of(fps, Path(path))
    items = load(path)
    text = path.stem.removesuffix("_demos") if task is None else task
    if not isinstance(items, (list, tuple)) or not items or not all(isinstance(x, dict) for x in items):
        raise RealrlError(f"{path} holds no list of dictionaries; DAPG episodes and HIL-SERL transitions are read")
    _check_unfolded(items, path)
    if items[0].keys() >= HIL_KEYS:
        return _hil_serl(path, items, text, rate or HIL_FPS, fps is None, clip, images)
    if items[0].keys() >= {"observations", "actions", "rewards"}:
        make = partial(_dapg_episode, fps=rate or DAPG_FPS, task=text, clip=clip, last=ending, success=success)
        return Imported(text, rate or DAPG_FPS, "adroit", (make(x, f"{path}: episode {i}") for i, x in enumerate(items)),
                        _dapg_notes(items, path, fps is None, clip, success), {"layout": "DAPG"}, len(items))
    keys = ", ".join(ascii(k)[:40] for k in list(items[0])[:8])
    raise RealrlError(f"{path} holds dictionaries of {keys}; DAPG episodes and HIL-SERL transitions are read")


# ---- DAPG


def _dapg_episode(raw: dict[Any, Any], where: str, *, fps: float, task: str, clip: bool, last: common.Last, success: bool) -> Episode:
    obs, action = _matrix(raw, "observations", where), _matrix(raw, "actions", where)
    reward = _array(raw.get("rewards"), f"{where}: rewards").reshape(-1)
    extra = {}
    start = raw.get("init_state_dict")
    for name, value in start.items() if isinstance(start, dict) else ():
        extra["init_" + common.key_name(str(name), Path(where))] = np.array(_array(value, f"{where}: init_state_dict"), np.float64)
    if obs.shape[1] == 39 and action.shape[1] == 28 and "init_door_body_pos" in extra and len(obs):
        extra["init_qpos"] = door_qpos(obs[0])
    made = common.episode({"state": obs.astype(np.float32)}, _clipped(action, clip), fps=fps, task=task, policy="human",
                          source=Source.HUMAN, reward=reward, extra=extra, last=last, where=where)
    return common.with_success(made) if success else made


def _dapg_notes(items: Sequence[dict[Any, Any]], path: Path, default_fps: bool, clip: bool, success: bool) -> list[str]:
    notes = ["DAPG: extra['init_*'] holds each episode's initial simulator state; the rewards are those of the recording's simulator"]
    actions = [_matrix(x, "actions", f"{path}: episode {i}") for i, x in enumerate(items)]
    wide = sum(int((np.abs(a) > 1).sum()) for a in actions)
    if wide:
        share = 100 * wide / max(1, sum(a.size for a in actions))
        mend = ", clipped" if clip else "; clip=True cuts them, as the simulator did"
        notes.append(f"{share:.1f} % of the action entries leave [-1, 1]{mend}")
    if default_fps:
        notes.append(f"the file does not say its rate, {DAPG_FPS} steps a second are assumed; fps= says another")
    if not success:
        notes.append("the file does not say which episodes succeeded, so that stays unknown; success=True takes all for successes")
    return notes


def door_qpos(obs: Array) -> Array:
    """The joint positions [30] that the first observation [39] of an Adroit door episode implies.

    The recorded state lacks the arm's pose. The observation holds every joint but the slide of the arm; that follows from where the
    palm is, by the kinematics of the arm: the slide moves it along one axis, three turns at the forearm, two at the wrist.
    Lengths in metres and angles in radians are those of the Adroit model (adroit_door.xml).
    """
    a = np.asarray(obs, np.float64)
    wrist = np.array([0, 0, 0.034]) + _turn(0, a[4]) @ np.array([0.007, -0.05, 0.07])
    palm = _turn(0, a[0]) @ _turn(1, a[1]) @ _turn(2, a[2]) @ (np.array([0, 0, 0.396]) + _turn(1, a[3]) @ wrist)
    w, x, y, z = 5.63312174e-04, -5.62863772e-04, 7.06824957e-01, 7.07388045e-01  # how the forearm is mounted
    mount = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                      [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                      [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
    slide = mount[:, 2] @ (a[29:32] - np.array([0, -0.7, 0.2]) - mount @ palm)
    return np.concatenate([[slide], a[:27], [a[28], a[27]]])  # arm, hand, door hinge, latch


def _turn(axis: int, angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out = np.eye(3)
    out[i, i], out[i, j], out[j, i], out[j, j] = c, -s, s, c
    return out


# ---- HIL-SERL


@dataclass
class _Moment:
    """One transition, checked. obs, next_obs: each [...] without a leading axis."""

    obs: Obs
    next_obs: Obs
    action: Array
    reward: float
    done: bool
    success: bool
    intervened: bool
    penalty: float


def _hil_serl(path: Path, items: Sequence[dict[Any, Any]], task: str, fps: float, default_fps: bool, clip: bool, images: bool
              ) -> Imported:
    recorded = any(isinstance(x.get("infos"), dict) and "intervene_action" in x["infos"] for x in items)
    by_hand = "demo_buffer" in path.parent.parts[-1:]  # the training loop keeps the person's steps in a folder of this name
    spans = list(_spans(items, path))
    moments = partial(_moment, images=images, by_hand=by_hand, path=path, levels=(levels := senses.Levels()))
    levels.episodes = lambda: (moments(item, i) for i, item in enumerate(items))
    notes = ["HIL-SERL: what the policy proposed where a person acted is not in the file, `proposed` is what was sent"]
    if not recorded:
        notes.append(f"the file does not say where a person acted; all steps are taken for {'the person' if by_hand else 'the policy'}'s")
    if not any("succeed" in _info(x) for x in items):
        notes.append("the file does not say which episodes succeeded; one that ends done with a reward above 0 is taken for a success")
    broken = sum(not done for _, _, done in spans)
    if broken:
        notes.append(f"{broken} of {len(spans)} pieces end without `dones` (steps are missing there): taken for interrupted")
    if default_fps:
        notes.append(f"the file does not say its rate, {HIL_FPS} steps a second are assumed; fps= says another")

    def episodes() -> Iterator[Episode]:
        for number, (a, b, _) in enumerate(spans):
            chain = [moments(items[i], i) for i in range(a, b)]
            yield _hil_episode(chain, f"{path}: episode {number} (transitions {a} to {b - 1})", fps, task, clip)
    return Imported(task, fps, "hil-serl", episodes(), notes, {"layout": "HIL-SERL"}, len(spans))


def _spans(items: Sequence[dict[Any, Any]], path: Path) -> Iterator[tuple[int, int, bool]]:
    """(first, last + 1, whether it ended done) of every run of transitions that follow one another."""
    start = 0
    for i, item in enumerate(items):
        if not item.keys() >= HIL_KEYS:
            missing = ", ".join(sorted(HIL_KEYS - item.keys()))
            raise RealrlError(f"{path}: transition {i} has no {missing}; write every transition with it")
        done = bool(_number(item["dones"], f"{path}: transition {i}: dones"))
        follows = i + 1 < len(items) and _same(item["next_observations"], items[i + 1].get("observations"))
        if done or not follows:
            yield start, i + 1, done
            start = i + 1


def _same(a: Any, b: Any) -> bool:
    """Whether two observations are one: all numbers equal, and all pictures where there are no numbers."""
    if not isinstance(a, dict) or not isinstance(b, dict) or a.keys() != b.keys():
        return False
    numbers = [k for k in a if not (isinstance(a[k], np.ndarray) and a[k].dtype == np.uint8)]
    for key in numbers or list(a):
        if isinstance(a[key], dict):
            if not (isinstance(b[key], dict) and all(_equal(a[key][k], b[key].get(k)) for k in a[key])):
                return False
        elif not _equal(a[key], b[key]):
            return False
    return True


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape and bool((a == b).all())


def _info(item: dict[Any, Any]) -> dict[Any, Any]:
    info = item.get("infos")
    return info if isinstance(info, dict) else {}


def _moment(item: dict[Any, Any], i: int, *, images: bool, by_hand: bool, path: Path, levels: senses.Levels) -> _Moment:
    where, info = f"{path}: transition {i}", _info(item)
    reward, done = _number(item["rewards"], f"{where}: rewards"), bool(_number(item["dones"], f"{where}: dones"))
    told = info.get("succeed")
    return _Moment(
        obs=_observation(item["observations"], f"{where}: observations", images, levels),
        next_obs=_observation(item["next_observations"], f"{where}: next_observations", images, levels),
        action=_array(item["actions"], f"{where}: actions").reshape(-1), reward=reward, done=done,
        success=bool(_number(told, f"{where}: succeed")) if told is not None else done and reward > 0,
        intervened=by_hand or "intervene_action" in info,
        penalty=_number(item.get("grasp_penalty", info.get("grasp_penalty", 0.0)), f"{where}: grasp_penalty"))


def _observation(raw: Any, where: str, images: bool, levels: senses.Levels) -> Obs:
    """One observation as {name: [D], or what `senses` makes of it}; of a history in front of it the newest entry."""
    if not isinstance(raw, dict):
        raise RealrlError(f"{where} are no dictionary of arrays, as HIL-SERL writes; write them so")
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        inner = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {str(key): value}
        flat |= {name.removeprefix("images."): v for name, v in inner.items()}
    obs: Obs = {}
    newest: dict[str, Array] = {}
    for name, value in flat.items():
        x = _array(value, f"{where}: {ascii(name)[:60]}")
        sense, row = (senses.kind(name, (1, *shape), x.dtype) if shape else "" for shape in (x.shape, x.shape[1:]))
        behind = x.ndim > 1 and len(x) > 0 and not sense and (x.ndim == 2 or len(x) == 1 or row)
        newest[name] = x[-1] if behind else x
    for name, ours in senses.names({name: ((1, *x.shape), x.dtype) for name, x in newest.items()}, Path(where)).items():
        if not ours.startswith(senses.SENSES):
            obs[ours] = newest[name].reshape(-1).astype(np.float32)
        elif images or not ours.startswith("images."):
            obs[ours] = senses.converted(newest[name][None], ours, f"{where}: {name}", levels=levels)[0]
    return obs


def _hil_episode(chain: Sequence[_Moment], where: str, fps: float, task: str, clip: bool) -> Episode:
    frames = [m.obs for m in chain] + [chain[-1].next_obs]
    shapes = {k: x.shape for k, x in frames[0].items()}
    if any({k: x.shape for k, x in f.items()} != shapes for f in frames) or len({len(m.action) for m in chain}) > 1:
        raise RealrlError(f"{where}: observations or actions change their shape; write those of one shape apart")
    done, won = chain[-1].done, chain[-1].success
    obs = {k: np.stack([f[k] for f in frames]) for k in shapes}
    extra = {"grasp_penalty": np.array([m.penalty for m in chain], np.float32)} if any(m.penalty for m in chain) else {}
    # the environments end at success, by the clock or by the operator, and say `dones` each time: only success ends the task
    made = common.episode(obs, _clipped(np.stack([m.action for m in chain]), clip), fps=fps, task=task, policy="", source=Source.POLICY,
                          reward=np.array([m.reward for m in chain]), success=np.array([m.success for m in chain]),
                          terminated=done and won, truncated=not (done and won), extra=extra, where=where)
    made.source[[m.intervened for m in chain]] = Source.HUMAN
    return made


# ---- values of unknown origin


def _check_unfolded(items: Sequence[dict[Any, Any]], path: Path) -> None:
    """Refuse a small file that names the same array a million times. An observation is legitimately named twice: before and after."""
    def inside(x: Any) -> int:
        return x.nbytes if isinstance(x, np.ndarray) else 0

    total = 0
    for value in (v for item in items for v in item.values()):
        total += inside(value)
        for inner in value.values() if isinstance(value, dict) else ():
            total += inside(inner) + (sum(map(inside, inner.values())) if isinstance(inner, dict) else 0)
    if total > 3 * path.stat().st_size + 2**20:
        raise RealrlError(f"{path} unfolds to {total} bytes from {path.stat().st_size}; it repeats itself and is not read")


def _array(x: Any, where: str) -> Array:
    if isinstance(x, (bool, int, float)) and abs(x) < 2**62:
        x = np.asarray(x)
    if not isinstance(x, (np.ndarray, np.generic)) or x.dtype.kind not in "biuf":
        raise RealrlError(f"{where} is no array of numbers; write it as one")
    return np.asarray(x)


def _matrix(raw: dict[Any, Any], name: str, where: str) -> Array:
    x = _array(raw.get(name), f"{where}: {name}")
    if x.ndim != 2 or 0 in x.shape:
        raise RealrlError(f"{where}: {name} has shape {list(x.shape)}, wanted [T, D]; write it so")
    return x


def _number(x: Any, where: str) -> float:
    value = _array(x, where)
    if value.size != 1:
        raise RealrlError(f"{where} has shape {list(value.shape)}, wanted one number; write it so")
    return float(value.reshape(-1)[0])


def _clipped(action: Array, clip: bool) -> Array:
    return np.clip(action, -1, 1).astype(np.float32) if clip else action.astype(np.float32)

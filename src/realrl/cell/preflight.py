"""Before a policy moves a robot: is what it will see and do what it was trained on? It names the channel that is off.

Arms that shiver and never set off mostly have nothing wrong with their network: joints in another order, degrees for radians, another
camera, an axis with the other sign, half the rate. All of it shows when the live robot is laid beside the recordings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from realrl.data.formats import open_dataset
from realrl.robots.client import RobotClient
from realrl.types import Array, Episode, RealrlError

PROBE = 0.02  # of a channel's range (or of what a few steps reach): so far is each moved
ROOM, NEAR = 0.1, 0.01  # of what was recorded, of its size: so far outside it may be
UNITS = {"degrees for radians": 180 / np.pi, "millimetres for metres": 1000.0, "per cent for shares": 100.0}
STRONG, UNLIKE = 0.4, 8.0  # of its changes is explained: it follows; so many times more or less is another unit
CLEAR = 2.0  # times what it wavers by at rest: it moved
FAINT = 0.1  # or less of it: it followed something else
SURE = 0.25  # of its variance nothing else explains: it follows that action and no other
EPISODES = 50  # of a set are looked at


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is fine, and what is to be said of it."""

    what: str
    fine: bool
    text: str


def preflight(env: RobotClient, data: Path, *, probe: bool = True, seed: int = 0) -> list[Finding]:
    """Lay a robot beside the recordings in a data set; with `probe` it is moved by 2 % of each channel's range.

    Where anything is off the robot is stopped: nobody moves it until a person has armed it. Raises RealrlError where there is nothing to
    compare with, or the robot does not follow.
    """
    store = open_dataset(data)
    count = min(len(store), EPISODES)
    if not count:
        raise RealrlError(f"{data}: no episodes to compare the robot with; give the set that the policy was trained on")
    episodes = store.read(range(count))
    obs, _ = env.reset(seed=seed)
    found = [_rate(env, float(store.fps)), _size(env, episodes), *_cameras(env, episodes, obs)]
    if all(f.fine for f in found[:2]):
        found += _ranges(env, episodes, obs["state"])
        if probe:
            found += _signs(env, episodes, {f.what for f in found if not f.fine})
    if off := [f.text for f in found if not f.fine]:
        env.stop(f"preflight: {'; '.join(off)}")
    return found


def _rate(env: RobotClient, fps: float) -> Finding:
    mine = 1 / env.task.dt
    return Finding("rate", abs(mine - fps) < 0.05 * fps, f"the robot is served at {mine:g} actions a second, it was recorded at {fps:g}")


def _size(env: RobotClient, episodes: Sequence[Episode]) -> Finding:
    state, action = episodes[0].obs["state"].shape[1], episodes[0].action.shape[1]
    return Finding("numbers", (state, action) == (env.task.obs_dim, env.task.action_dim),
                   f"the robot shows {env.task.obs_dim} numbers and takes {env.task.action_dim}, recorded were {state} and {action}")


def _cameras(env: RobotClient, episodes: Sequence[Episode], obs: dict[str, Array]) -> list[Finding]:
    """Names, sizes and what the pictures look like."""
    recorded = {k: v for k, v in episodes[0].obs.items() if k.startswith("images.")}
    live = {k for k in obs if k.startswith("images.")}
    found = [Finding(k, False, f"{k} was recorded and the robot has none; it has {', '.join(sorted(live)) or 'no camera'}")
             for k in recorded if k not in live]
    for key in sorted(live & recorded.keys()):
        now = obs[key]
        if now.shape != recorded[key].shape[1:]:
            found.append(Finding(key, False, f"{key} is {list(now.shape)}, recorded was {list(recorded[key].shape[1:])}"))
            continue
        first = np.stack([e.obs[key][0] for e in episodes if key in e.obs])
        found.append(_picture(key, now.astype(np.float64), first.astype(np.float64)))
    return found


def _picture(key: str, now: Array, first: Array) -> Finding:
    """One picture beside the first ones of the recordings."""
    if now.std() < 2:
        return Finding(key, False, f"{key} shows one colour: is the lens covered, the camera dead?")
    usual = first.mean(0)
    straight = _alike(now, usual)
    spread = float(np.quantile([_alike(picture, usual) for picture in first], 0.02))
    ways = {"its colours are swapped (BGR for RGB)": now[..., ::-1], "it is upside down": now[::-1, ::-1], "it is mirrored": now[:, ::-1]}
    best = max(ways, key=lambda way: _alike(ways[way], usual))
    if _alike(ways[best], usual) > max(straight + 0.05, 0.5):
        return Finding(key, False, f"{key}: {best}")
    return Finding(key, straight > spread - 0.25,
                   f"{key} resembles the recordings by {straight:.2f} (they each other by {spread:.2f} or more)")


def _alike(one: Array, other: Array) -> float:
    """How two pictures go together, 1 where one is the other but for brightness and contrast."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _ranges(env: RobotClient, episodes: Sequence[Episode], state: Array) -> list[Finding]:
    """Each number beside what was recorded of it; one that is outside is looked for elsewhere, and in other units."""
    low, high = _bounds(np.concatenate([e.obs["state"] for e in episodes]))
    names, found = env.about["state"], []

    def within(value: float, number: int) -> bool:
        return bool(low[number] <= value <= high[number])

    outside = [i for i in range(len(state)) if not within(state[i], i)]
    for i in outside:
        swapped = [j for j in outside if j != i and within(state[j], i) and within(state[i], j)]
        large = abs(state[i]) > 5 * max(abs(low[i]), abs(high[i]))  # divided by enough, anything lies near 0
        units = [f"{name}, or the other way round" for name, by in UNITS.items()
                 if within(state[i] * by, i) or (large and within(state[i] / by, i))]
        hint = (f"; it would fit {names[swapped[0]]}: are they in another order?" if swapped else
                f"; {units[0]}?" if units and abs(state[i]) > 1e-6 else "")
        found.append(Finding(names[i], False, f"{names[i]} is {state[i]:.4g}, recorded was {low[i]:.4g} to {high[i]:.4g}{hint}"))
    return found or [Finding("ranges", True, f"all {len(state)} numbers are where they were recorded")]


def _bounds(states: Array) -> tuple[Array, Array]:
    low, high = states.min(0).astype(np.float64), states.max(0).astype(np.float64)
    room = np.maximum(ROOM * (high - low), NEAR * np.maximum(np.abs(low), np.abs(high)))
    return low - room, high + room


def _signs(env: RobotClient, episodes: Sequence[Episode], off: Collection[str]) -> list[Finding]:
    """Each channel is moved a little, and what follows is laid beside what followed in the recordings. off: names of numbers that are not
    where they were recorded: what they say of motions is not asked."""
    gains, share, own, _ = _follows(episodes, absolute=env.task.control == "absolute")
    names, found = env.about["state"], list[Finding]()
    known = np.array([name not in off for name in names])
    for channel, about in enumerate(env.about["channels"]):
        try:
            moved, asked, noise = _probe(env, channel)
        except _Over:
            return [*found, Finding(about["name"], False, f"{about['name']} is asked: the episode ended over it; did something fall, was "
                                    "something hit? Else give the server a longer horizon, or another --seed")]
        live, gain = moved / asked, gains[channel]
        ratio = np.divide(live, gain, out=np.ones_like(live), where=gain != 0)
        seen, follows = known & (np.abs(moved) > CLEAR * noise), known & (share[channel] > STRONG)
        told = seen & follows & (np.abs(ratio) > 1 / UNLIKE)
        wrong = [f"{names[d]} moves {'the other way' if ratio[d] < 0 else 'by another amount'} "
                 f"({live[d]:.3g} for each 1 asked, recorded was {gain[d]:.3g})" for d in np.flatnonzero(told) if not 0 < ratio[d] < UNLIKE]
        stands = np.where(known & ~told & (np.abs(ratio) < 1 / UNLIKE), own[channel], 0.0)  # what followed, and does not now
        usual, strange = int(stands.argmax()), seen & (share[channel] < FAINT)
        other = np.where(strange, np.abs(np.log(np.maximum(np.abs(live / (gain[usual] or 1.0)), 1e-12))), np.inf)
        if stands[usual] > SURE and other.min() < np.log(UNLIKE):
            wrong.append(f"{names[other.argmin()]} moves, in the recordings {names[usual]} did: are they in another order?")
        elif stands[usual] > SURE and not told.any():
            wrong.append(f"{names[usual]} stands still, in the recordings it followed: is its drive on, its encoder alive?")
        text = f"{about['name']} is asked: {'; '.join(wrong)}" if wrong else (
            f"{about['name']} moves as it was recorded" if told.any() else f"{about['name']}: the recordings do not say what follows it")
        found.append(Finding(about["name"], not wrong, text))
    return found


def _follows(episodes: Sequence[Episode], *, absolute: bool) -> tuple[Array, Array, Array, Array]:
    """([A, D] by how much each number of the state follows each action, [A, D] the share of its changes that this explains, [A, D] the
    share of their variance that no other action explains, [D] their spread), by least squares.

    An action that says where to be is followed by the state, one that says how far to go by the state's way over the next few steps.
    """
    ahead = 4  # so that what comes late counts
    asked, seen = [], []
    for episode in episodes:
        state, action = episode.obs["state"].astype(np.float64), episode.action.astype(np.float64)
        if len(action) < ahead:
            continue
        if absolute:
            asked.append(action[:len(action) - ahead + 1])
            seen.append(state[ahead:])
        else:
            total = np.concatenate([np.zeros((1, action.shape[1])), np.cumsum(action, 0)])
            asked.append(total[ahead:] - total[:-ahead])
            seen.append(state[ahead:] - state[:-ahead])
    x, y = (np.concatenate(part) if part else np.zeros((0, 1)) for part in (asked, seen))
    if len(x) < 20:
        shape = episodes[0].action.shape[1], episodes[0].obs["state"].shape[1]
        return np.zeros(shape), np.zeros(shape), np.zeros(shape), np.ones(shape[1])
    x, y = x - x.mean(0), y - y.mean(0)
    gains: Array = np.linalg.lstsq(x, y, rcond=1e-6)[0]
    spread = np.maximum(y.std(0), 1e-9)

    def left(of: Array) -> Array:
        variance: Array = (y - of @ np.linalg.lstsq(of, y, rcond=1e-6)[0]).var(0) / spread**2
        return variance

    own = np.stack([left(np.delete(x, action, 1)) for action in range(x.shape[1])]) - left(x)
    return gains, np.abs(gains) * x.std(0)[:, None] / spread, own, spread


class _Over(Exception):
    """The episode ended while the robot was probed."""


def _probe(env: RobotClient, channel: int) -> tuple[Array, float, Array]:
    """(how the state changed [D], what was asked in a policy's units, how restless it is at rest [D]) of a small move there; it is moved
    back after. Raises _Over."""
    about, still = env.about["channels"][channel], env.still()
    assert still is not None
    way = PROBE * (about["high"] - about["low"])
    steps = about["step"] is not None or about["kind"] == "velocity"
    middle = env.measured[channel] > (about["low"] + about["high"]) / 2
    sign = -1.0 if middle else 1.0  # towards the middle of its range
    unit = (about["step"] or about["velocity"] * env.task.dt) if steps else (about["high"] - about["low"]) / 2
    asked = sign * way / unit
    before, noise = _at_rest(env, still)
    action = np.array(env.still(), np.float32)
    count = max(int(np.ceil(abs(asked))), 1) if steps else 1
    for direction in (1.0, -1.0):
        for _ in range(count):
            push = np.array(env.still(), np.float32)
            push[channel] = direction * asked / count if steps else (action[channel] + asked if direction > 0 else action[channel])
            _step(env, push)
        if direction > 0:
            after, also = _at_rest(env, None)
    return after - before, asked, np.maximum(noise, also)


def _at_rest(env: RobotClient, still: Array | None) -> tuple[Array, Array]:
    """(the state [D] once it stands, the middle of a few readings; how far those lie apart [D])."""
    states = [_step(env, np.array(env.still() if still is None else still, np.float32)) for _ in range(max(int(0.5 / env.task.dt), 3))]
    last = np.stack(states[len(states) // 2:])
    return np.median(last, 0), np.ptp(last, 0)


def _step(env: RobotClient, action: Array) -> Array:
    """The state [D] a period later."""
    obs, _, terminated, truncated, _ = env.step(action)
    if terminated or truncated:
        raise _Over
    state: Array = obs["state"].astype(np.float64)
    return state

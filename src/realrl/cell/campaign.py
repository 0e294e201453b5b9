"""Twenty faults, ordered on purpose on a simulated robot while it works, and judged by what its server's own log says.

Of each trial is asked: was it noticed, and how soon; was the reaction the right one; did any command leave the limits; did an episode
end that should have gone on.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from realrl.cell.faults import KINDS, QUIET, Kind, Rig, server_dies, server_ends
from realrl.robots.driver import Channel
from realrl.robots.log import Tick, read_events, read_ticks

TOLERANCE = 0.01  # of a limit: stamps of ticks are not exact


@dataclass(frozen=True)
class Trial:
    """What the server's log says of one fault. noticed: s until the event, None where it never came; lost: an episode ended that should
    have gone on; unsafe: commands beyond a limit since the trial before."""

    number: int
    name: str
    noticed: float | None
    reacted: bool
    lost: bool
    unsafe: int


def kinds(rig: Rig, only: Sequence[int] = ()) -> list[Kind]:
    """The faults that can be ordered on this robot, of these numbers."""
    return [kind for kind in KINDS if (not only or kind.number in only) and kind.needs in ("", *rig.about["watched"])]


def campaign(rig: Rig, times: int, *, only: Sequence[int] = (), first: int = 0) -> Iterator[Trial]:
    """Every kind of fault so many times, in turn. first: how many rounds there were before, for each has chances of its own."""
    for number in range(first, first + times):
        rng = np.random.default_rng(number)
        for kind in kinds(rig, only):
            yield _trial(rig, kind, rng)


def _trial(rig: Rig, kind: Kind, rng: np.random.Generator) -> Trial:
    rig.armed()
    since = time.monotonic()
    rig.work(QUIET, rng)
    log = rig.log
    begun = kind.do(rig, rng)
    if not kind.stops:
        rig.pause()
    well = kind.stops or rig.status()["mode"] == "armed"
    if kind.do is server_dies or rig.wrong:
        log, since = rig.log, 0.0
    noticed = _noticed(log, kind.event, begun, rig.names) if kind.event else 0.0
    reacted = noticed is not None and noticed <= max(kind.within, 1e-9)
    if kind.do is server_ends:
        reacted = reacted and _order(log) == ["parked", "released"]
        rig.commander = None
        rig.person.close()
        rig.restart()
    elif kind.stops:
        reacted = reacted and _stays_held(rig)
    ticks = [t for t in read_ticks(log) if t.time >= since]
    left = unsafe(ticks, channels(rig.about), 1 / rig.about["ticks"])
    return Trial(kind.number, kind.name, noticed if kind.event else None, reacted, not well, left)


def _noticed(log: Path, what: str, begun: float, names: Sequence[str] = (), patience: float = 3.0) -> float | None:
    """s until the log says something, and first of all of one of the names."""
    until = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            for event in read_events(log):
                said = what in (event["event"], event["event"] == "fault" and event["name"].split()[0])
                if event["time"] >= begun - 0.02 and said and _names(event.get("why", ""), names):
                    return max(float(event["time"]) - begun, 0.0)
        if time.monotonic() > until:
            return None
        time.sleep(0.1)


def _names(why: str, names: Sequence[str]) -> bool:
    """Whether the first thing that is said is of one of these, if there are any."""
    return not names or any(re.search(rf"(^|\W){re.escape(name)}(\W|$)", why.split(";")[0]) is not None for name in names)


def _order(log: Path) -> list[str]:
    return [e["event"] for e in read_events(log) if e["event"] in ("parked", "released", "left holding")][-2:]


def _stays_held(rig: Rig) -> bool:
    """The cause gone, it is still held: no fault clears itself."""
    rig.inject("none")
    time.sleep(0.3)
    return str(rig.status()["mode"]) != "armed"


def channels(about: dict[str, Any]) -> tuple[Channel, ...]:
    """The table of limits that a server tells."""
    return tuple(Channel(**c) for c in about["channels"])


def unsafe(ticks: Sequence[Tick], limits: Sequence[Channel], period: float = 0.01) -> int:
    """How many of the logged commands left a limit of place, speed, acceleration or jerk. Where nothing was commanded for a while (parked,
    held by hand) what follows is another motion. period: s from tick to tick."""
    if len(ticks) < 5:
        return 0
    at = np.array([t.command for t in ticks])
    dt = np.diff([t.time for t in ticks])[:, None]
    low, high, velocity, acceleration, jerk = (np.array([getattr(c, name) for c in limits])
                                               for name in ("low", "high", "velocity", "acceleration", "jerk"))
    bad = np.zeros(len(ticks), bool)
    bad |= ((at < low - 1e-6) | (at > high + 1e-6)).any(1)
    going = (dt[:, 0] > 1e-4) & (dt[:, 0] < 1.5 * period)  # what the guard takes as one motion
    v = np.diff(at, axis=0) / np.maximum(dt, 1e-4)
    bad[1:] |= going & (np.abs(v) > velocity * (1 + TOLERANCE)).any(1)
    a = np.diff(v, axis=0) / ((dt[1:] + dt[:-1]) / 2)
    both = going[1:] & going[:-1]
    bad[2:] |= both & (np.abs(a) > acceleration * (1 + TOLERANCE)).any(1)
    j = np.diff(a, axis=0) / ((dt[2:] + dt[1:-1] + dt[:-2]) / 3)
    bad[3:] |= both[1:] & both[:-1] & (np.abs(j) > jerk * (1 + TOLERANCE)).any(1)
    return int(bad.sum())


def table(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row a fault: how often, noticed (median and most, ms), reacted, limits left, episodes lost."""
    rows = []
    for name in dict.fromkeys(t.name for t in trials):
        own = [t for t in trials if t.name == name]
        seen = [1e3 * t.noticed for t in own if t.noticed is not None]
        median, most = (round(float(np.median(seen)), 1), round(max(seen), 1)) if seen else (None, None)
        rows.append({"number": own[0].number, "fault": name, "times": len(own), "median_ms": median, "most_ms": most,
                     "right": sum(t.reacted for t in own), "unsafe": sum(t.unsafe for t in own), "lost": sum(t.lost for t in own)})
    return rows

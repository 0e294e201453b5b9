"""Whether what a robot says can be believed, and whether it does what it is told: every reading is looked at before anyone acts on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from realrl.robots.driver import Driver, Reading, fault_in
from realrl.robots.motion import MotionGuard
from realrl.robots.settings import ServerConfig
from realrl.types import Array

OLD = 2  # ticks that the reading before may stand in for one that did not come
STUCK = 0.3  # s that a channel may stay behind
PAST = 1.0  # s for which is known where the robot was sent: older than that no reading is believed for long
AHEAD = 0.2  # s that a stamp may lie in the future: clocks differ
FROZEN = 0.02  # of a channel's range: so far may it be commanded while its encoder says nothing new
REPORTS = "the robot reports: "
"""Begins what the robot itself says is wrong; then nothing moves it."""


class Watch:
    """The readings of one robot. `blind` while there is no reading to act on."""

    def __init__(self, driver: Driver, cfg: ServerConfig, guard: MotionGuard) -> None:
        self._driver, self._cfg, self._guard = driver, cfg, guard
        self.reading: Reading | None = None
        self.blind, self.flags = True, dict[str, float]()
        self.refused = 0  # reads and writes that failed
        self._missing, self._good, self._why = 0, -np.inf, "nothing was read yet"
        self._write_failed: float | None = None
        self._behind: float | None = None
        self._places: deque[tuple[float, Array]] = deque(maxlen=int(PAST * cfg.ticks) + 1)
        self._moved, self._path = -np.inf, np.zeros(len(guard.channels))
        self._stall = np.array(cfg.stall) if cfg.stall else np.full(len(guard.channels), np.inf)
        self._frozen = ""
        self._place: Array | None = None  # commanded when an encoder last said something new
        self._speeds = np.array([c.kind == "velocity" for c in guard.channels])

    def forget(self) -> None:
        """A person has armed the robot."""
        self._behind, self._frozen = None, ""
        self._places.clear()
        self.idle()

    def look(self, now: float) -> dict[str, str]:
        """Read the robot once: what is so wrong that it must be stopped for good, name -> in words."""
        found: dict[str, str] = {}
        if self._guard.now is not None:
            self._places.append((now, self._guard.place.copy()))
        fresh = self._read()
        if fresh is not None:
            if self.reading is not None and self.reading.images.keys() - fresh.images.keys():  # a camera that is gone grows old
                fresh = replace(fresh, images={**self.reading.images, **fresh.images})
            self._frozen = self._still(fresh, now)
            if not self._frozen:
                self._good, self._missing = now, 0
            self.reading = fresh
            self._guard.observe(fresh.measured)
        self.blind = self._missing > OLD or bool(self._frozen) or self.reading is None
        if self.blind and now - self._good > self._cfg.stale:
            found["readings"] = self._frozen or self._why
        if self._write_failed is not None and now - self._write_failed > self._cfg.stale:
            found["commands"] = f"commands do not arrive for {now - self._write_failed:.2f} s"
        if self.reading is not None:
            found.update(self._dangers(self.reading, now))
            found.update(self._cameras(self.reading.images, now))
        return found

    def newest(self) -> Reading:
        """The newest reading that could be read; images as they were."""
        assert self.reading is not None, "nothing was read yet"
        return self.reading

    def write(self, command: Array, now: float) -> None:
        """Send a command; one that does not arrive is not sent twice: the next one says more."""
        try:
            self._driver.write(command)
        except Exception:  # as above
            self.refused += 1
            self._write_failed = now if self._write_failed is None else self._write_failed
            self._guard.missed(command)
            return
        self._write_failed = None

    def idle(self) -> None:
        """Nothing is sent at this tick: whether it would arrive nobody knows, and no encoder has to move."""
        self._write_failed = None
        self._expect()

    def wrong_now(self, now: float) -> str:
        """Why the robot must not be armed, "" where it may."""
        if self.reading is None or self.blind:
            return self._frozen or self._why
        wrong = self._dangers(self.reading, now) | self._cameras(self.reading.images, now)
        wrong.pop("stall", None)  # it will begin from where it is
        if self._write_failed is not None:
            wrong["commands"] = "commands do not arrive"
        return "; ".join(wrong.values())

    # ---- what is looked at

    def _read(self) -> Reading | None:
        """A reading that makes sense; None where none came."""
        try:
            reading = self._driver.read()
        except Exception as error:  # OSError is what a driver should raise; its own mistakes must not end the server
            self.refused += 1
            self._missing += 1
            self._why = f"the robot does not answer ({error if isinstance(error, OSError) else repr(error)})"
            return None
        wrong = fault_in(reading, len(self._guard.channels), len(self._driver.state))
        if not wrong:
            return reading
        self._missing += 1
        self._why = wrong
        if self.reading is not None and reading.faults:  # what it reports beside its broken encoder counts
            self.reading = replace(self.reading, faults=reading.faults)
        return None

    def _still(self, fresh: Reading, now: float) -> str:
        """What stands still that should not, "" where all moves."""
        if fresh.stamp - now > AHEAD:
            return f"the newest reading is of {fresh.stamp - now:.3g} s from now: its stamp must be one of time.monotonic()"
        if now - fresh.stamp > self._cfg.stale / 2:
            return f"the newest reading is {now - fresh.stamp:.2f} s old"
        before = self.reading
        moves = before is None or not np.array_equal(before.measured, fresh.measured)
        if moves or self._guard.now is None or self._write_failed is not None:
            self._expect()
            return ""
        if self._place is not None:
            self._path = np.maximum(self._path, np.abs(self._guard.place - self._place))
        far = self._path / (self._guard.high - self._guard.low)
        worst = int(far.argmax())
        name = self._guard.channels[worst].name
        return f"no encoder moves although {name} was moved by {self._path[worst]:.3g}" if far[worst] > FROZEN else ""

    def _expect(self) -> None:
        """From now on what is commanded has to be seen."""
        self._path[:] = 0.0
        self._place = None if self._guard.now is None else self._guard.place

    def _dangers(self, reading: Reading, now: float) -> dict[str, str]:
        """What the robot reports, feels, or cannot follow."""
        found = {fault: REPORTS + fault for fault in reading.faults}
        limit = self._cfg.force
        if limit is not None and reading.force is None:
            found["no force"] = f"there is a limit of {limit:g} N and no force is measured: leave `force` out of the configuration"
        elif limit is not None and reading.force is not None:
            force = float(np.linalg.norm(reading.force))
            if not force <= limit:
                found["force"] = f"{force:.1f} N at the hand, the limit is {limit:g}"
        if self._guard.now is not None:
            behind = np.abs(reading.measured - self._sent_by(reading.stamp)) * ~self._speeds
            if (behind > self._stall).any():
                self._behind = now if self._behind is None else self._behind
                if now - self._behind > STUCK:
                    worst = int((behind / self._stall).argmax())
                    found["stall"] = f"{self._guard.channels[worst].name} stays {behind[worst]:.3g} behind"
            else:
                self._behind = None
        return found

    def _sent_by(self, when: float) -> Array:
        """[C], where the robot was sent at a time: a reading that is old is behind nothing that was commanded since."""
        places = self._places
        return next((place for then, place in reversed(places) if then <= when), places[0][1] if places else self._guard.place)

    def _cameras(self, images: Mapping[str, Any], now: float) -> dict[str, str]:
        """Which cameras stand still. Two frames of an action late is flagged, more is dangerous."""
        ages = {name: round(now - stamp, 3) for name, (stamp, _) in images.items()}
        self.flags = {name: age for name, age in ages.items() if not -AHEAD <= age <= 2 / self._cfg.fps}
        return {f"camera {name}": f"the newest picture of {name} is {age:.2f} s old" if age > 0 else
                f"the newest picture of {name} is of {-age:.3g} s from now: its stamp must be one of time.monotonic()"
                for name, age in self.flags.items() if not -AHEAD <= age <= self._cfg.camera_stale}

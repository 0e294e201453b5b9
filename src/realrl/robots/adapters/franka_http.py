"""HIL-SERL's Franka server (Flask, port 5000, all by POST) as a driver: the hand's pose under its impedance controller, and a gripper.

That server has no watchdog, no limits of its own but the clipped spring, and no time-outs: ours stand before it. Its clients send
`clearerr` before every pose, which hides every reflex; here only a person who arms the robot clears one. A reflex cannot be read there,
it shows as an arm that no longer follows: serve it with `stall`, one and a half steps.

Turns are a rotation vector in the base's frame, from the orientation `upright`.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from scipy.spatial.transform import Rotation

from realrl.robots.adapters.owned import Owned
from realrl.robots.driver import Channel, Reading
from realrl.types import Array, RealrlError

DOWN = (1.0, 0.0, 0.0, 0.0)
"""The gripper points down: x, y, z, w."""
_STATE = (*("x", "y", "z", "qx", "qy", "qz", "qw"), *(f"speed {a}" for a in ("x", "y", "z", "rx", "ry", "rz")),
          *(f"force {a}" for a in "xyz"), *(f"torque {a}" for a in "xyz"), "gripper")
_SETTLES = 0.6  # s that a gripper is left alone after it was told something


class FrankaHttp(Owned):
    """`realrl.robots.driver.Driver` of HIL-SERL's server. It is at work when this begins: its controller runs, its arm is homed."""

    state = _STATE

    def __init__(self, url: str = "http://127.0.0.1:5000", box: Sequence[float] = (0.3, -0.3, 0.05, 0.7, 0.3, 0.5), turn: float = 0.4,
                 upright: Sequence[float] = DOWN, step: float = 0.01, rate: float = 50.0, timeout: float = 0.2) -> None:
        """box: where the hand may be, m, low x y z, high x y z; turn: how far it may lean, rad; step: of an action of 1, m (and so many rad
        times 5); rate: commands a second; timeout: s. Raises RealrlError where nobody answers."""
        super().__init__(rate)
        where = urlsplit(url)
        self._http = http.client.HTTPConnection(where.hostname or "127.0.0.1", where.port or 5000, timeout=timeout)
        self._upright, self._open, self._told = Rotation.from_quat(upright), True, -np.inf
        self._stopped = False
        low, high = (*box[:3], *[-turn] * 3), (*box[3:], *[turn] * 3)
        limits = [(0.25, 2.0, 60.0)] * 3 + [(0.8, 6.0, 200.0)] * 3
        names, units, steps = ("x", "y", "z", "rx", "ry", "rz"), ["m"] * 3 + ["rad"] * 3, [step] * 3 + [5 * step] * 3
        self.channels = (*(Channel(names[i], units[i], "pose", low[i], high[i], *limits[i], step=steps[i], lead=steps[i])
                           for i in range(6)),
                         Channel("gripper", "share", "position", 0.0, 1.0, 20.0, 400.0, 20000.0, step=1.0))
        try:
            self._open = bool(self._ask().measured[6] > 0.5)  # it is not moved before somebody says so
        except OSError as error:
            raise RealrlError(f"{url}: no Franka server answers there ({error}): start HIL-SERL's franka_server.py, then this") from None
        self.begin()

    def recover(self) -> None:
        """A person says that all is well: what its own reflexes latched is cleared, and the spring pulls it nowhere."""
        self.order(self._clear, wait=True)

    def hold(self) -> None:
        """Its controller runs."""
        if self._stopped:
            self._stopped = False
            self.order(self._begin)

    def release(self) -> None:
        """End its controller; the arm holds itself."""
        self._stopped = True
        self.order(lambda: self._post("stopimp"))

    def close(self) -> None:
        """Hang up; the arm keeps its last place."""
        self.halt()
        self._http.close()

    # ---- in the owning thread

    def _begin(self) -> None:
        self._post("startimp")
        self._post("pose", {"arr": self._post("getstate")["pose"]})

    def _clear(self) -> None:
        """An arm that a reflex has stopped stands elsewhere than it was told: there it is told to be before it follows again, and after,
        for a controller that is stopped hears nothing."""
        here = {"arr": self._post("getstate")["pose"]}
        self._post("pose", here)
        self._post("clearerr")
        self._post("pose", here)

    def _ask(self) -> Reading:
        stamp = time.monotonic()
        said = self._post("getstate")
        try:
            pose, speed, force, torque = (np.array(said[key], np.float64) for key in ("pose", "vel", "force", "torque"))
            gripper = float(said["gripper_pos"])
            turned = (Rotation.from_quat(pose[3:]) * self._upright.inv()).as_rotvec()
            measured = np.array([*pose[:3], *turned, gripper])
        except (KeyError, TypeError, ValueError) as error:
            raise OSError(f"getstate lacks something ({error})") from error
        return Reading(stamp, measured, np.concatenate([pose, speed, force, torque, [gripper]]), force)

    def _tell(self, command: Array) -> None:
        turn = Rotation.from_rotvec(command[3:6]) * self._upright
        self._post("pose", {"arr": [*command[:3].tolist(), *turn.as_quat().tolist()]})
        wants, now = bool(command[6] > 0.5), time.monotonic()
        if wants != self._open and now - self._told > _SETTLES:
            self._open, self._told = wants, now
            self._post("open_gripper" if wants else "close_gripper")

    def _post(self, what: str, given: dict[str, Any] | None = None) -> Any:
        """What the server answers: JSON, or a word. Raises OSError, also for an answer that is an error page."""
        try:
            self._http.request("POST", f"/{what}", json.dumps(given or {}), {"Content-Type": "application/json"})
            answer = self._http.getresponse()
            body = answer.read(1 << 20)
        except (http.client.HTTPException, OSError) as error:
            self._http.close()  # the next request connects anew
            raise OSError(f"{what}: {type(error).__name__} {error}") from error
        if answer.status != 200:
            raise OSError(f"{what}: {answer.status} {answer.reason}")
        try:
            return json.loads(body)
        except ValueError:
            return body.decode(errors="replace")

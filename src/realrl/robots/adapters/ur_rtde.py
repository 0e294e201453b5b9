"""A Universal Robots arm by ur_rtde (`pip install ur-rtde`) as a driver of its six joints, by servoJ. The controller's own watchdog stops
the arm when this process is gone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from realrl.robots.adapters.owned import Owned
from realrl.robots.driver import Channel, Reading
from realrl.types import Array, RealrlError

JOINTS = ("shoulder pan", "shoulder lift", "elbow", "wrist 1", "wrist 2", "wrist 3")
RUNNING = 7  # of getRobotMode
WATCHDOG = 10.0  # Hz: less often, and the controller's program ends
LOOKAHEAD, GAIN = 0.05, 500.0  # of servoJ: s of smoothing, and how hard it follows; 0.03 to 0.2, and 100 to 2000
STANDS = 0.2  # s that the controller's clock may stand


def channels(step: float | None = 0.05) -> tuple[Channel, ...]:
    """The joints of a UR5e, at half its speed. step: rad of an action of 1; None: actions are places."""
    return tuple(Channel(name, "rad", "position", -3.1 if name == "elbow" else -6.2, 3.1 if name == "elbow" else 6.2, 1.5, 8.0, 300.0,
                         step=step) for name in JOINTS)


class UrArm(Owned):
    """`realrl.robots.driver.Driver` of a UR."""

    state = (*JOINTS, *(f"speed {joint}" for joint in JOINTS), *(f"{what} {axis}" for what in ("hand", "force") for axis in "xyz"))

    def __init__(self, host: str, table: Sequence[Channel] = (), rate: float = 125.0) -> None:
        """table: a channel for each of the six joints, `channels()` by default; rate: servoJ commands a second. Raises RealrlError without
        ur_rtde, or where the arm does not answer."""
        super().__init__(rate)
        try:
            from rtde_control import RTDEControlInterface
            from rtde_receive import RTDEReceiveInterface
        except ModuleNotFoundError as error:
            raise RealrlError(f"driving a UR needs {error.name}: pip install ur-rtde") from None
        self.channels = tuple(table) or channels()
        if len(self.channels) != 6:
            raise RealrlError(f"{host}: a UR has 6 joints, the table has {len(self.channels)} channels")
        try:
            self._receive: Any = RTDEReceiveInterface(host)
            self._control: Any = RTDEControlInterface(host)
        except RuntimeError as error:
            raise RealrlError(f"{host}: no UR answers there ({error}): is it switched on, and in remote control?") from None
        self._control.setWatchdog(WATCHDOG)
        self._clock = (-1.0, time.monotonic())
        self.begin()

    def recover(self) -> None:
        """A person says that all is well: the controller's program is sent anew where it has ended. A protective stop is unlocked at the
        teach pendant."""
        self.order(lambda: self._control.isProgramRunning() or self._control.reuploadScript(), wait=True)

    def hold(self) -> None:
        """It holds where it is by itself."""

    def park(self) -> None:
        """It stands: no command follows."""
        self.order(self._control.servoStop)

    def release(self) -> None:
        """End the program: it holds itself."""
        self.order(self._control.stopScript)

    def close(self) -> None:
        """Disconnect."""
        self.halt()
        self._control.disconnect()
        self._receive.disconnect()

    # ---- in the owning thread

    def _ask(self) -> Reading:
        arm, now = self._receive, time.monotonic()
        if not arm.isConnected():
            arm.reconnect()
            raise OSError("the connection was lost")
        said = float(arm.getTimestamp())
        if said != self._clock[0]:
            self._clock = (said, now)
        if now - self._clock[1] > STANDS:
            raise OSError("the controller's clock stands still")
        q, speed, tcp, force = (np.array(x, np.float64) for x in (arm.getActualQ(), arm.getActualQd(), arm.getActualTCPPose(),
                                                                  arm.getActualTCPForce()))
        estop, protective = bool(arm.isEmergencyStopped()), bool(arm.isProtectiveStopped())
        faults = [word for word, is_so in (("estop", estop), ("protective stop", protective), (
            "not running", not (estop or protective) and arm.getRobotMode() != RUNNING), (
            "program ended", not self._control.isProgramRunning())) if is_so]
        self._control.kickWatchdog()
        return Reading(self._clock[1], q, np.concatenate([q, speed, tcp[:3], force[:3]]), force[:3], tuple(faults))

    def _tell(self, command: Array) -> None:
        if not self._control.servoJ(command.tolist(), 0.0, 0.0, 1 / self._rate, LOOKAHEAD, GAIN):
            raise OSError("servoJ was refused")

"""A Franka arm by franky (`pip install franky-control`) as a driver of its seven joints: every command is a motion that takes over from the
one before without a stop, planned by Ruckig inside the arm's own limits. The arm stops by itself when 20 packets are lost.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from realrl.robots.adapters.owned import Owned
from realrl.robots.driver import Channel, Reading
from realrl.types import Array, RealrlError

# FR3, libfranka's rate_limiting.h: rad, rad/s; half the speed
_LOW = (-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159)
_HIGH = (2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159)
_SPEED = (1.31, 1.31, 1.31, 1.31, 2.63, 2.09, 2.63)
MARGIN = 0.1  # rad that stay free at the stops


def channels(step: float | None = 0.05) -> tuple[Channel, ...]:
    """The joints of an FR3. step: rad of an action of 1; None: actions are places."""
    return tuple(Channel(f"joint {i + 1}", "rad", "position", _LOW[i] + MARGIN, _HIGH[i] - MARGIN, _SPEED[i], 5.0, 500.0, step=step)
                 for i in range(7))


class FrankyArm(Owned):
    """`realrl.robots.driver.Driver` of a Franka."""

    state = (*(f"joint {i + 1}" for i in range(7)), *(f"speed {i + 1}" for i in range(7)), *(f"force {a}" for a in "xyz"))

    def __init__(self, host: str, table: Sequence[Channel] = (), rate: float = 100.0) -> None:
        """table: a channel for each of the seven joints, `channels()` by default. Raises RealrlError without franky, or where the arm does
        not answer."""
        super().__init__(rate)
        try:
            import franky
        except ModuleNotFoundError as error:
            raise RealrlError(f"driving a Franka needs {error.name}: pip install franky-control") from None
        self._franky: Any = franky
        self.channels = tuple(table) or channels()
        if len(self.channels) != 7:
            raise RealrlError(f"{host}: a Franka has 7 joints, the table has {len(self.channels)} channels")
        try:
            self._robot: Any = franky.Robot(host, realtime_config=franky.RealtimeConfig.Ignore)
        except Exception as error:  # of franky's own kinds
            raise RealrlError(f"{host}: no Franka answers there ({error}): is FCI activated, are the brakes open?") from None
        self.begin()

    def recover(self) -> None:
        """A person says that all is well: what its reflexes latched is cleared."""
        self.order(lambda: self._robot.has_errors and self._robot.recover_from_errors(), wait=True)

    def hold(self) -> None:
        """It holds where it is by itself."""

    def release(self) -> None:
        """End the motion: it holds itself, brakes engage when FCI ends."""
        self.order(self._robot.stop)

    def close(self) -> None:
        """Let go of the connection."""
        self.halt()
        self._robot = None

    # ---- in the owning thread

    def _ask(self) -> Reading:
        robot, modes = self._robot, self._franky.RobotMode
        state = robot.state
        q, dq, force = (np.array(x, np.float64) for x in (state.q, state.dq, state.O_F_ext_hat_K))
        mode = state.robot_mode
        faults = [word for word, is_so in (("estop", mode == modes.UserStopped), ("reflex", mode == modes.Reflex or robot.has_errors),
                                           ("guiding", mode == modes.Guiding)) if is_so]
        return Reading(time.monotonic(), q, np.concatenate([q, dq, force[:3]]), force[:3], tuple(faults))

    def _tell(self, command: Array) -> None:
        franky = self._franky
        self._robot.poll_motion()  # raises what ended the motion before
        self._robot.move(franky.JointMotion(franky.JointState(command.tolist()), return_when_finished=False), asynchronous=True)

"""A LeRobot robot as a driver, and a LeRobot teleoperator as somebody who takes over: by what they can do, nothing of lerobot is imported.

lerobot's features carry no units: the same keys hold degrees or per cent, of this version or that. So a table of channels is demanded, one
for every key of `action_features`. Its calls may block for as long as a bus or a camera takes, and are not safe from several threads,
see `realrl.robots.adapters.owned`.
"""

from __future__ import annotations

import contextlib
import inspect
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from realrl.robots.adapters.owned import Owned
from realrl.robots.driver import Channel, Reading
from realrl.types import Array, Obs, RealrlError

AGED = 0.15  # s: older input of a person moves nothing


def _feature_keys(device: Any, what: str) -> dict[str, Any]:
    """The features of a device, which some give as a method. Raises RealrlError where they are none."""
    features = getattr(device, what, None)
    features = features() if callable(features) else features
    if not isinstance(features, Mapping) or not features:
        raise RealrlError(f"{_name(device)}: it has no {what}; is it a lerobot robot?")
    return dict(features)


def _name(device: Any) -> str:
    return str(getattr(device, "name", None) or type(device).__name__)


class LeRobotArm(Owned):
    """`realrl.robots.driver.Driver` of a lerobot robot."""

    def __init__(self, robot: Any, channels: Sequence[Channel], *, rate: float = 100.0) -> None:
        """robot: built, not necessarily connected; channels: units and limits of every key of its actions; rate: how often it is asked.

        Raises RealrlError for a robot that is not calibrated, and for a table that does not name what it takes.
        """
        super().__init__(rate)
        self._robot, self.channels = robot, tuple(channels)
        self._check_table()
        features = _feature_keys(robot, "observation_features")
        self.state = tuple(key for key, kind in features.items() if not isinstance(kind, tuple | list))
        self._cameras = tuple(key for key, kind in features.items() if isinstance(kind, tuple | list) and len(kind) == 3 and kind[2] == 3)
        missing = [c.name for c in self.channels if c.name not in self.state]
        if missing:
            raise RealrlError(f"{_name(robot)}: it does not observe {', '.join(missing)}, so nobody would know where it is; it observes "
                              f"{', '.join(self.state)}")
        self._connect()
        self._images: dict[str, tuple[float, Array, int]] = {}
        self._released = False
        self.begin()

    def _check_table(self) -> None:
        wanted = _feature_keys(self._robot, "action_features")
        if {"dtype", "shape", "names"} <= wanted.keys():
            raise RealrlError(f"{_name(self._robot)}: its actions are those of a gamepad or keyboard: it is a teleoperator, no robot")
        named = [c.name for c in self.channels]
        if missing := [key for key in wanted if key not in named]:
            raise RealrlError(f"{_name(self._robot)}: the table of channels lacks {', '.join(missing)}: give unit and limits of each, "
                              "lerobot does not say them")
        if extra := [name for name in named if name not in wanted]:
            raise RealrlError(f"{_name(self._robot)}: it takes no {', '.join(extra)}; it takes {', '.join(wanted)}")

    def _connect(self) -> None:
        """Connect without calibrating, which would ask at the keyboard; `connect` of some robots knows no such flag."""
        robot = self._robot
        if not _told(robot, "is_connected"):
            takes = inspect.signature(robot.connect).parameters
            with self._eased():
                robot.connect(calibrate=False) if "calibrate" in takes else robot.connect()
        if _told(robot, "is_calibrated") is False:
            raise RealrlError(f"{_name(robot)} is not calibrated: run lerobot-calibrate first, numbers of a robot that is not mean nothing")

    @contextlib.contextmanager
    def _eased(self) -> Iterator[None]:
        """While a robot is connected it is configured, which takes its motors' torque and gives it back: they would go to an older goal."""
        robot, configure = self._robot, getattr(self._robot, "configure", None)
        if not callable(configure):
            yield
            return

        def eased(*given: Any, **named: Any) -> Any:
            with contextlib.suppress(Exception):  # one that cannot be read yet is configured as lerobot does
                self._stay()
            return configure(*given, **named)

        robot.configure = eased
        try:
            yield
        finally:
            robot.configure = configure

    def _stay(self) -> None:
        """Where each motor stands is where it is to be."""
        seen = self._robot.get_observation()
        self._robot.send_action({c.name: 0.0 if c.kind == "velocity" else float(seen[c.name]) for c in self.channels})

    # ---- the driver

    def hold(self) -> None:
        """Torque on, where it can be switched and is off."""
        self._released = False
        self.order(self._wake)

    def release(self) -> None:
        """Torque off; the connection stays."""
        self._released = True
        self.order(lambda: self._bus("disable_torque"))

    def close(self) -> None:
        """Disconnect. lerobot's own `disconnect` cuts the torque, which drops an arm that is not parked: that is switched off first."""
        self.halt()
        config: Any = getattr(self._robot, "config", None)
        if not self._released and hasattr(config, "disable_torque_on_disconnect"):
            config.disable_torque_on_disconnect = False
        with contextlib.suppress(OSError):
            self._robot.disconnect()

    # ---- the thread that owns the robot

    def _tell(self, command: Array) -> None:
        self._robot.send_action({c.name: float(x) for c, x in zip(self.channels, command, strict=True)})

    def _ask(self) -> Reading:
        stamp = time.monotonic()
        seen = self._robot.get_observation()
        try:
            state = np.array([float(seen[key]) for key in self.state])
        except (KeyError, TypeError, ValueError) as error:
            raise OSError(f"an observation that lacks a number ({error})") from error
        measured = np.array([float(seen[c.name]) for c in self.channels])
        images = self._seen({key: np.asarray(seen[key]) for key in self._cameras if seen.get(key) is not None}, stamp)
        return Reading(stamp, measured, state, images=images)

    def _seen(self, images: Mapping[str, Array], now: float) -> dict[str, tuple[float, Array]]:
        """lerobot's pictures carry no time, and a dead camera's last one comes again: a picture is as old as its content."""
        for key, image in images.items():
            mark = zlib.adler32(image[::4, ::4].tobytes())
            if key not in self._images or self._images[key][2] != mark:
                self._images[key] = (now, image.astype(np.uint8, copy=True), mark)
        return {key: (stamp, image) for key, (stamp, image, _) in self._images.items()}

    def _wake(self) -> None:
        """Torque on where each motor stands: one that was let go, or cut itself off, would jump to the goal that it was told last."""
        if self._awake():
            return
        self._stay()
        self._bus("enable_torque")

    def _awake(self) -> bool:
        """Whether all motors have torque, as far as their bus tells."""
        buses = self._buses("enable_torque")
        try:
            return all(int(on) for bus in buses for on in bus.sync_read("Torque_Enable").values())
        except Exception:  # another kind of bus
            return not buses

    def _bus(self, what: str) -> None:
        """Call a function of the robot's motor bus or buses, where there is one."""
        for bus in self._buses(what):
            with contextlib.suppress(OSError):
                getattr(bus, what)()

    def _buses(self, what: str) -> list[Any]:
        """The robot's motor buses that can do something."""
        devices = [getattr(self._robot, name, None) for name in ("bus", "left_arm", "right_arm")]
        found = [getattr(device, "bus", device) for device in devices]
        return [bus for bus in found if callable(getattr(bus, what, None))]


def _told(device: Any, what: str) -> Any:
    """A property of some devices, a method of others, None of a few."""
    value = getattr(device, what, None)
    return value() if callable(value) else value


class LeRobotHand:
    """A lerobot teleoperator as an intervention (`realrl.types.Intervention`) for actions in [-1, 1] of a served robot.

    A leader arm's places are taken relative to where leader and robot were when the person took over: nothing jumps. Deltas of a gamepad
    or keyboard are taken as they are. Who holds the stick says so by `get_teleop_events`, or `engaged` is set by whoever has a button.
    """

    def __init__(self, teleop: Any, channels: Sequence[Channel], *, leader: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """leader: whether its actions are places in the channels' units, by the channels' names; else they are deltas in [-1, 1].

        Raises RealrlError for a channel whose actions are places: what a person does not say would be one, too.
        """
        if whole := [c.name for c in channels if c.step is None]:
            raise RealrlError(f"{_name(teleop)}: {whole[0]} takes places, a person's device moves things: give the channel a step")
        self._teleop, self._channels, self._leader, self._clock = teleop, tuple(channels), leader, clock
        self.engaged = False
        self._origin: Array | None = None  # where the leader was when it took over
        self._asked = np.zeros(len(self._channels))
        self._newest: tuple[float, dict[str, Any]] = (-np.inf, {})
        self._mark: Any = None

    @property
    def age(self) -> float:
        """s since the device said something new."""
        return self._clock() - self._newest[0]

    def poll(self, obs: Obs, proposed: Array) -> Array | None:
        """The person's action [A] in [-1, 1], None where they let the policy act. What cannot be read holds."""
        events = self._events()
        taken = bool(events.get("is_intervention", self.engaged))
        if not taken:
            self._origin = None
            return None
        still = np.zeros(len(self._channels), np.float32)
        try:
            said = {str(k): v for k, v in dict(self._teleop.get_action()).items()}
        except Exception:  # unplugged: whatever its library raises
            return still
        self._note(said)
        if self.age > AGED:
            return still
        return self._followed(said) if self._leader else self._deltas(said)

    def _note(self, said: dict[str, Any]) -> None:
        """When it last said something. A stick half deflected never says the same for long unless it is dead; one that rests, or is held
        at its end, and a key may."""
        values = tuple(v for v in said.values() if v is not None)
        settled = all(isinstance(v, int | float) and float(v).is_integer() for v in values)
        if values != self._mark or settled or self._leader:
            self._newest, self._mark = (self._clock(), said), values

    def _followed(self, said: dict[str, Any]) -> Array:
        """As far as the leader has gone since it took over, in steps of the channels."""
        still = np.zeros(len(self._channels), np.float32)
        values = [said.get(c.name) for c in self._channels]
        if any(v is None or not np.isfinite(v) for v in values):
            return still
        at = np.array(values, np.float64)
        if self._origin is None:
            self._origin, self._asked = at, np.zeros_like(at)
        steps = np.array([c.step for c in self._channels])
        action: Array = np.clip((at - self._origin - self._asked) / steps, -1.0, 1.0).astype(np.float32)
        self._asked = self._asked + action * steps
        return action

    def _deltas(self, said: dict[str, Any]) -> Array:
        """delta_x ... by name, or in the channels' order; a gripper's 0 closes, 1 stays, 2 opens."""
        action = np.zeros(len(self._channels), np.float32)
        for number, channel in enumerate(self._channels):
            value = said.get(f"delta_{channel.name}", said.get(channel.name))
            if channel.name in ("gripper", "width"):
                value = said.get("gripper", 1)
                value = None if value is None else float(value) - 1
            if value is not None and np.isfinite(value):
                action[number] = np.clip(value, -1.0, 1.0)
        return action

    def _events(self) -> dict[str, bool]:
        call = getattr(self._teleop, "get_teleop_events", None)
        if call is None:
            return {}
        with contextlib.suppress(Exception):
            return {str(getattr(k, "value", k)): bool(v) for k, v in dict(call()).items()}
        return {}

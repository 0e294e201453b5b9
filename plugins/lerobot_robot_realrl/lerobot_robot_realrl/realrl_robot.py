"""A served robot behind LeRobot's interface of robots: its channels as actions, what it senses as observations."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
from lerobot.robots.robot import Robot

from lerobot_robot_realrl.config_realrl import RealrlRobotConfig

VERSION = 1  # of the server's protocol
PATIENCE = 5.0  # s for an answer


class RealrlRobot(Robot):
    """Keys of actions are a channel's name and `.pos` (where it shall be), `.delta` (by how much it shall move, in its unit) or `.vel`."""

    config_class = RealrlRobotConfig
    name = "realrl"

    def __init__(self, config: RealrlRobotConfig) -> None:
        """Raises ConnectionError where no server answers."""
        super().__init__(config)
        self.config, self._socket, self._seq, self._owed, self._epoch = config, None, 0, False, 0
        socket, welcome = self._hello("watcher")
        socket.close()
        self.about: dict[str, Any] = welcome["robot"]
        kinds = ["vel" if c["kind"] == "velocity" else "pos" if c["step"] is None else "delta" for c in self.about["channels"]]
        self._keys = [f"{c['name']}.{kind}" for c, kind in zip(self.about["channels"], kinds, strict=True)]
        self._low, self._high = (np.array(self.about[end], np.float64) for end in ("low", "high"))
        self._acted, self._running = threading.Event(), False

    @property
    def action_features(self) -> dict[str, type]:
        """A float for every channel."""
        return dict.fromkeys(self._keys, float)

    @property
    def observation_features(self) -> dict[str, Any]:
        """A float for every number of the state, a shape for every camera."""
        return {**dict.fromkeys(self.about["state"], float), **{name: tuple(shape) for name, shape in self.about["cameras"].items()}}

    @property
    def cameras(self) -> dict[str, Any]:
        """Its cameras' names; the server looks through them."""
        return dict(self.about["cameras"])

    @property
    def is_connected(self) -> bool:
        """Whether it has the robot's lease."""
        return self._socket is not None

    @property
    def is_calibrated(self) -> bool:
        """Always: the server's numbers have units."""
        return True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def connect(self, calibrate: bool = True) -> None:
        """Become its commander. It has to be armed, which a person does: `realrl robot arm`."""
        self._socket, welcome = self._hello("commander")
        self._epoch, self._owed, self._running = welcome["epoch"], False, False
        threading.Thread(target=self._rest, name="rest", daemon=True).start()

    def disconnect(self) -> None:
        """Give it back: it holds, and parks if nobody comes."""
        socket, self._socket = self._socket, None
        self._acted.set()
        if socket is not None:
            with contextlib.suppress(Exception):
                socket.send(_packed({"type": "bye", "epoch": self._epoch}))
            socket.close()

    def get_observation(self) -> dict[str, Any]:
        """What is measured: the answer to the last action, when its period is over; without one, what is so now."""
        if not self._owed:
            self._send({"type": "look"})
        while True:
            seen = self._receive(self._socket)
            if seen["type"] == "obs" and (not self._owed or seen.get("seq") == self._seq):
                break
        self._owed = False
        return {**{name: float(x) for name, x in zip(self.about["state"], seen["state"], strict=True)},
                **{name: picture["image"] for name, picture in seen["images"].items()}}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Send an action and return what of it the channels take. Raises ConnectionError where the robot is held."""
        if self._owed:  # nobody looked in between
            self.get_observation()
        if lacks := [key for key in self._keys if key not in action]:
            raise ValueError(f"{self.config.url}: the action lacks {', '.join(lacks)}; whoever acts has to say {', '.join(self._keys)}, "
                             f"and said {', '.join(map(str, action))}")
        wish = np.clip([float(action[key]) for key in self._keys], self._low, self._high)
        self._seq, self._owed = self._seq + 1, True
        self._send({"type": "act", "epoch": self._epoch, "seq": self._seq, "action": wish})
        self._running = True
        self._acted.set()
        return dict(zip(self._keys, wish.tolist(), strict=True))

    def _rest(self) -> None:
        """LeRobot tells no robot when an episode is over, or that it thinks: after two periods without an action the robot is told to hold,
        so that the next one is welcome. When LeRobot is dead nobody says so, and the server latches."""
        socket = self._socket
        while self._socket is socket is not None:
            acted = self._acted.wait(2 / self.about["fps"])
            self._acted.clear()
            if not acted and self._running and not self._owed:
                self._running = False
                with contextlib.suppress(Exception):
                    socket.send(_packed({"type": "end", "epoch": self._epoch}))

    def _hello(self, role: str) -> tuple[Any, dict[str, Any]]:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect
        url = self.config.url
        try:
            socket = connect(url, max_size=2**26, compression=None, open_timeout=PATIENCE, close_timeout=1, proxy=None)
        except (OSError, WebSocketException) as error:
            raise ConnectionError(f"{url}: no robot's server answers there ({error}): start one with realrl robot serve") from None
        token = self.config.token or os.environ.get("REALRL_ROBOT_TOKEN", "")
        socket.send(_packed({"type": "hello", "v": VERSION, "role": role, "token": token}))
        return socket, self._receive(socket)

    def _send(self, message: dict[str, Any]) -> None:
        if self._socket is None:
            raise ConnectionError(f"{self.config.url}: not connected: call connect() first")
        with _told(self.config.url):
            self._socket.send(_packed(message))

    def _receive(self, socket: Any) -> dict[str, Any]:
        with _told(self.config.url):
            message: dict[str, Any] = msgpack.unpackb(socket.recv(timeout=PATIENCE), object_hook=_plain)
        if message["type"] == "error":
            raise ConnectionError(f"{self.config.url}: {message.get('error')}")
        return message


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """What goes wrong with a connection as a ConnectionError of one line."""
    from websockets.exceptions import ConnectionClosed
    try:
        yield
    except TimeoutError:
        raise ConnectionError(f"{url}: the robot's server said nothing for {PATIENCE:g} s, look at its log") from None
    except ConnectionClosed as error:
        raise ConnectionError(f"{url}: the connection to the robot's server is lost ({error}); the robot brakes and holds, see "
                              "`realrl robot status`") from None


def _packed(message: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(message, default=lambda x: {"_a": x.dtype.str, "s": list(x.shape), "b": x.tobytes()})
    return packed


def _plain(found: dict[str, Any]) -> Any:
    if "_a" not in found:
        return found
    if found["_a"] not in ("|u1", "<u2", "<i4", "<i8", "<f4", "<f8", "|b1"):
        raise ConnectionError("the server sent an array of a kind that is not sent here")
    return np.frombuffer(found["b"], found["_a"]).reshape(found["s"]).copy()

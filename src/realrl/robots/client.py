"""A robot that a server owns, as an environment: every method, evaluation and recording of the house runs on it unchanged.

`step` returns when the server says that the period is over, so that nobody here has to keep time. What a person may say (`arm`, `ready`)
is not in here; `Link` is what both sides of the house talk through.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from realrl.envs.base import RobotEnv
from realrl.robots import wire
from realrl.robots.driver import Held
from realrl.robots.embodiment import Meant, fits
from realrl.terminal import console
from realrl.types import Array, Obs, RealrlError, TaskSpec

PATIENCE = 5.0  # s for what a server answers at once
MOVING = 120.0  # s for the way to the start
TOKEN = "REALRL_ROBOT_TOKEN"


class Link:
    """A connection to a robot's server. Use it as a context manager, or call `close`."""

    def __init__(self, url: str, role: str, token: str | None = None) -> None:
        """token: by default what the environment variable REALRL_ROBOT_TOKEN holds. Raises RealrlError where nobody answers, or this
        connection is refused."""
        wire.need()
        from websockets.exceptions import InvalidURI, WebSocketException
        from websockets.sync.client import connect
        self.url, self.role = url if "://" in url else f"ws://{url}", role
        try:
            self._open = connect(self.url, max_size=wire.LARGEST_OUT, compression=None, open_timeout=PATIENCE, close_timeout=1, proxy=None)
            self._socket = self._open.__enter__()
        except InvalidURI:
            raise RealrlError(f"{url} is no address of a robot's server: give the one that `realrl robot serve` prints, "
                              "e.g. ws://127.0.0.1:8770") from None
        except (OSError, WebSocketException) as error:
            raise RealrlError(f"{self.url}: no robot's server answers there ({error}): start one with realrl robot serve") from None
        try:
            token = os.environ.get(TOKEN, "") if token is None else token
            self.send({"type": "hello", "v": wire.VERSION, "role": role, "token": token})
            self.welcome = self.receive(PATIENCE)
        except BaseException:
            self.close()
            raise
        self.epoch = int(self.welcome.get("epoch", 0))

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message. Raises RealrlError where the server is gone."""
        from websockets.exceptions import ConnectionClosed
        try:
            self._socket.send(wire.pack(message))
        except ConnectionClosed as error:
            raise self._gone(error) from None

    def receive(self, patience: float, newest: int = 0) -> dict[str, Any]:
        """The next message. Raises Held where the robot does not follow, RealrlError for other errors, for silence, and where the server is
        gone. newest: number of what was
        said last, errors about what was said before are no news."""
        from websockets.exceptions import ConnectionClosed
        try:
            message = wire.unpack(self._socket.recv(timeout=patience))
        except TimeoutError:
            raise RealrlError(f"{self.url}: the robot's server said nothing for {patience:g} s: look at it and its log") from None
        except ConnectionClosed as error:
            raise self._gone(error) from None
        except ValueError as error:
            raise RealrlError(f"{self.url} does not talk as a robot's server of this version does ({error})") from None
        if message["type"] == "error" and message.get("of", newest) >= newest:  # an older one was told already
            raise (Held if message.get("held") else RealrlError)(f"{self.url}: {message.get('error')}")
        return message

    def ask(self, message: dict[str, Any], patience: float = PATIENCE) -> dict[str, Any]:
        """Send, and the answer."""
        self.send(message)
        return self.receive(patience)

    def _gone(self, error: Exception) -> RealrlError:
        return RealrlError(f"{self.url}: the connection to the robot's server is lost ({error}); the robot brakes and holds, see "
                           "`realrl robot status`")

    def close(self) -> None:
        """Hang up."""
        self._open.__exit__(None, None, None)


@dataclass(frozen=True)
class Timing:
    """What a step took. late: s that the action came after its time, as the server saw it; age: s that the reading was old; limited:
    how many channels a limit held back."""

    late: float
    age: float
    limited: int


class RobotClient(RobotEnv):
    """The robot at a server's address. Actions in [-1, 1] are the channels' ranges (or steps), in their order; of a policy that was trained
    on recordings, what lies between the limits that it was told, as far as the channels go.

    `sent` is what the server made of the last action; who: who chose it (`realrl.types.Source`), age: s since they did.
    """

    def __init__(self, url: str, *, token: str | None = None, horizon: int | None = None, patient: bool = False,
                 speaks: Meant | None = None) -> None:
        """speaks: the policy that is to act, whose numbers are taken as it means them (`embodiment.fits`), and whose pictures are given to
        it in its size; patient: where the robot is held after the first episode began, that one is cut short as by a clock, and the next
        one waits until a person has armed it; else Held is raised. And who asks what the robot is takes it from nobody: the lease begins
        with the first episode."""
        self.link = Link(url, "watcher" if patient else "commander", token)
        self._token = token
        self.about: dict[str, Any] = self.link.welcome["robot"]
        self._reach = low, high = np.array(self.about["low"]), np.array(self.about["high"])
        self._patient, self._began, self._told = patient, False, False
        senses = {f"images.{name}": tuple(shape) for name, shape in self.about["cameras"].items()}
        self._called = {f"images.{name}": f"images.{name}" for name in self.about["cameras"]}
        if speaks is not None:
            low, high = self._meant(speaks)
            self._called = {key: theirs for key in speaks.senses if (theirs := speaks.robot.cameras.get(key, key)) in senses}
            senses = {key: speaks.senses[key] for key in self._called}
        self._sizes = {key: shape[:2] for key, shape in senses.items()}
        absolute = any(c["step"] is None and c["kind"] != "velocity" for c in self.about["channels"])
        super().__init__(TaskSpec("robot", self.about["name"], len(self.about["state"]), len(low), horizon or self.about["horizon"],
                                  1 / self.about["fps"], self.about["text"], senses=senses,
                                  privileged=self.about.get("privileged", 0), control="absolute" if absolute else "relative", live=True,
                                  twin=self.about.get("twin", "")), native_low=low, native_high=high,
                         reward=self.about["reward"], kinds=("sparse", "dense"))
        self.sent: Array | None = None
        self.who, self.age = 0, 0.0
        self.timing = Timing(0.0, 0.0, 0)
        self.verdict: Literal["success", "failure", "over"] | None = None
        """What a person says of the attempt under way: the next step ends it."""
        self.measured = np.zeros(len(low))
        """[A], where the channels were measured last, each in its unit."""
        self._seq, self._seen, self._still = 0, dict[str, Array](), np.zeros(len(low))
        self._state: Array = np.zeros(0)

    def step(self, action: Array) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """One period, see `RobotEnv.step`."""
        try:
            obs, reward, terminated, truncated, info = super().step(action)
        except Held as error:
            if not self._patient:
                raise
            self._tell(f"{error}; this episode ends here, the next one waits for that")
            self._t, self.succeeded, self.sent = -1, False, self.still()
            obs, reward, terminated, truncated, info = self._observe(self._state), 0.0, False, True, {"success": False}
        truncated = truncated or (self.verdict == "over" and not terminated)
        if terminated or truncated:
            self.pause()
        return obs, reward, terminated, truncated, info

    def still(self) -> Array | None:
        """The action that keeps the robot where it was commanded to last."""
        return self._boxed(self._still)

    def nothing(self, length: int) -> Obs:
        """`length` observations of zeros [1, length, ...], for plans that nobody carries out."""
        spaces = self.observation_space.spaces.items()  # type: ignore[attr-defined]
        return {key: np.zeros((1, length, *space.shape), space.dtype) for key, space in spaces}

    def pause(self) -> None:
        """Nothing comes for a while, and nothing is wrong: the robot holds."""
        if self.link.role == "commander":
            self.link.send({"type": "end", "epoch": self.link.epoch})

    def stop(self, why: str) -> None:
        """Ask the server to brake and hold, until a person arms it. why: what its log and its status say."""
        self.link.send({"type": "stop", "why": why})
        while True:
            with contextlib.suppress(Held):  # news of what is known already
                if self.link.receive(PATIENCE)["type"] == "status":
                    return

    def park(self) -> str:
        """Ask the server to park the robot, which then has to be armed again: how it is left, in words. What went wrong before is no reason
        not to; but what a person has stopped, or the robot itself, only a person moves."""
        self.link.send({"type": "park"})
        for _ in range(100):
            with contextlib.suppress(Held):  # news of what is known already
                if (said := self.link.receive(PATIENCE))["type"] == "status":
                    return "parked" if said["mode"] in ("parking", "parked") else f"held where it is ({'; '.join(said['faults'].values())})"
        return "held"

    def close(self) -> None:
        """Give the robot back: it holds, and parks if nobody comes."""
        if self.link.role == "commander":
            with contextlib.suppress(RealrlError):
                self.link.send({"type": "bye", "epoch": self.link.epoch})
        self.link.close()
        gc.unfreeze()

    def _begin(self, seed: int) -> Array:
        if self.link.role != "commander":
            self.link.close()
            self.link = Link(self.link.url, "commander", self._token)
        while True:
            try:
                return self._set_up(seed)
            except Held as error:
                if not (self._patient and self._began):
                    raise
                self._tell(f"{error}; the next episode waits for that")
                self._wait()

    def _wait(self) -> None:
        """Until a person has armed the robot."""
        while True:
            with contextlib.suppress(Held):  # news of what is known already
                self.link.send({"type": "status"})
                while (said := self.link.receive(PATIENCE))["type"] != "status":
                    pass
                if said["mode"] == "armed":
                    self._told = False
                    return
            time.sleep(0.5)

    def _meant(self, policy: Meant) -> tuple[Array, Array]:
        """What a policy's actions -1 and 1 mean. Raises RealrlError where they are not meant for this robot."""
        try:
            if untold := fits(policy.robot, self.about, policy.name):
                self._tell(untold)
        except RealrlError:
            self.link.close()
            raise
        self._told = False
        return np.array(policy.robot.low), np.array(policy.robot.high)

    def _tell(self, why: str) -> None:
        if not self._told:
            console(stderr=True).print(why, highlight=False, soft_wrap=True)
        self._told = True

    def _set_up(self, seed: int) -> Array:
        """Go to the start, and what is seen there."""
        self._seq, self.verdict = self._seq + 1, None
        self.link.send({"type": "reset", "epoch": self.link.epoch, "seq": self._seq, "seed": seed})
        gc.unfreeze()
        gc.collect()  # now, on the way to the start: looking through all of a learner's objects takes a period or two
        gc.freeze()
        answer = self._answer(-1, np.inf if self.about["reset"] == "hand" else MOVING)
        self._began = True
        return self._take(answer)

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        self._seq += 1
        self.link.send({"type": "act", "epoch": self.link.epoch, "seq": self._seq, "action": np.clip(action, *self._reach),
                        "source": self.who, "age": self.age})
        answer = self._answer(self._seq, PATIENCE + 4 * self.task.dt)
        self.sent = self._boxed(answer["sent"])
        self.timing = Timing(float(answer["late"]), float(answer["now"] - answer["stamp"]), int(np.sum(answer["limited"])))
        if self.verdict in ("success", "failure"):
            good = self.verdict == "success"
            return self._take(answer), float(good), True, good
        return self._take(answer), float(answer["reward"]), bool(answer["terminated"]), bool(answer["success"])

    def _answer(self, seq: int, patience: float) -> dict[str, Any]:
        """The answer to an action, or with -1 to a reset."""
        until = time.monotonic() + patience
        while True:
            message = self.link.receive(min(max(until - time.monotonic(), 0.01), 1e6), self._seq)
            if message["type"] == "obs" and message.get("seq") == seq:
                return message

    def _take(self, answer: dict[str, Any]) -> Array:
        shown = {f"images.{name}": seen["image"] for name, seen in answer["images"].items()}
        self._seen = {key: _sized(shown[theirs], self._sizes[key]) for key, theirs in self._called.items()}
        if self.about.get("privileged"):
            self._seen["privileged"] = np.array(answer["truth"], np.float32)
        self._still, self.measured, self._state = answer["still"], answer["measured"], answer["state"]
        return self._state

    def _boxed(self, native: Array) -> Array:
        boxed: Array = np.clip((native - self._low) / self._half - 1.0, -1.0, 1.0).astype(np.float32)
        return boxed

    def _carried_out(self, action: Array) -> Array:
        assert self.sent is not None
        return self.sent

    def _look(self, state: Array, *, first: bool = False, last: bool = False) -> Obs:
        return {"state": np.array(state, np.float32), **self._seen}


def _sized(image: Array, size: tuple[int, ...]) -> Array:
    """A picture [H, W, 3] as large as a policy saw it in training."""
    if image.shape[:2] == size:
        return image
    from realrl.data.cache import resize
    sized: Array = resize(image[None], (size[0], size[1]))[0]
    return sized


def remote(url: str, horizon: int | None = None, speaks: Meant | None = None) -> Callable[[], RobotClient]:
    """What connects to a robot, for whoever makes environments; it waits where the robot has to be armed. speaks: see `RobotClient`."""
    return partial(RobotClient, url, horizon=horizon, patient=True, speaks=speaks)

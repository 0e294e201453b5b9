"""A driver whose robot belongs to one thread: vendors' calls may block and are not safe from several threads, a control loop must not wait.

The thread carries out what was ordered, sends the newest command and reads, again and again. What fails is told by `read` and `write`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable

import numpy as np

from realrl.robots.driver import Reading
from realrl.types import Array

PATIENCE = 5.0  # s that a person waits for a robot to recover


class Owned:
    """Fill in `_ask` and `_tell`, then call `begin`. What else goes to the robot goes by `order`."""

    def __init__(self, rate: float) -> None:
        """rate: how often a second it is asked."""
        self._rate = rate
        self._lock, self._over = threading.Lock(), threading.Event()
        self._command: Array | None = None
        self._newest: Reading | None = None
        self._failed: OSError | None = OSError("it has not been read yet")
        self._orders: deque[Callable[[], object]] = deque()
        self._thread = threading.Thread(target=self._live, name=type(self).__name__, daemon=True)

    @abstractmethod
    def _ask(self) -> Reading:
        """What is measured. Whatever it raises is told as an OSError."""

    @abstractmethod
    def _tell(self, command: Array) -> None:
        """Send a command [C]."""

    def begin(self) -> None:
        """The robot is connected: own it."""
        self._thread.start()

    def read(self) -> Reading:
        """The newest reading. Raises OSError where the last attempt failed."""
        with self._lock:
            if self._failed is not None or self._newest is None:
                raise self._failed or OSError("nothing was read")
            return self._newest

    def write(self, command: Array) -> Array:
        """Hand a command over; the newest one goes. Raises OSError while the robot does not answer."""
        with self._lock:
            if self._failed is not None:
                raise self._failed
            self._command = np.array(command)
        return command

    def order(self, what: Callable[[], object], *, wait: bool = False) -> None:
        """Something else to be done with the robot, before the next command. wait: until it is done, and for a reading after it."""
        done = threading.Event()
        self._orders.append(what)
        self._orders.append(done.set)
        if wait and done.wait(PATIENCE):
            time.sleep(3 / self._rate)

    def park(self) -> None:
        """It stands where it rests."""

    def brake(self) -> None:
        """It has no stop of its own: the server brakes by its commands."""

    def halt(self) -> None:
        """End the thread, after what was ordered."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)

    def _live(self) -> None:
        while not self._over.is_set():
            begun, failed = time.monotonic(), None
            try:
                self._once()
            except Exception as error:  # what vendors raise is in no contract
                failed = error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")
            with self._lock:
                self._failed = failed
            self._over.wait(max(1 / self._rate - (time.monotonic() - begun), 0.0))
        with contextlib.suppress(Exception):
            self._obey()

    def _once(self) -> None:
        self._obey()
        with self._lock:
            command, self._command = self._command, None
        if command is not None:
            self._tell(command)
        seen = self._ask()
        with self._lock:
            self._newest = seen

    def _obey(self) -> None:
        while self._orders:
            self._orders.popleft()()

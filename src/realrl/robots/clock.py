"""Time for a loop that moves a robot: absolute deadlines, and what an operating system has to be asked for so that it keeps them."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SLACK_NS = 1000  # how late Linux may wake us to save power; its default is 50,000
LOG, CLIENT, CAMERAS, LISTENING, CONTROL, HARDWARE = 1, 5, 10, 15, 20, 30
"""Levels of `urgent`: a server's log, who asks for actions, what stands for cameras, a server's two threads, what stands for hardware."""
_PR_SET_TIMERSLACK = 29


class Ticker:
    """Wakes every `period` seconds, counted from the first: what comes late is not made up for, and not added up either."""

    def __init__(self, period: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
        self.period, self.skipped = period, 0
        self._clock, self._sleep, self._due = clock, sleep, clock()

    def wait(self) -> float:
        """Sleep until the next tick; how late this is [s]."""
        self._due += self.period
        now = self._clock()
        while now < self._due:
            self._sleep(self._due - now)
            now = self._clock()
        late = now - self._due
        if late > self.period:  # whole ticks were missed: go on with the next one
            missed = int(late / self.period)
            self.skipped += missed
            self._due += missed * self.period
        return late


def realtime(level: int, *, whole: bool = True) -> list[str]:
    """Ask for what a control loop needs, for this thread; a line for everything that was not granted. level: see `urgent`; whole: the
    process is the loop's: its garbage is collected when the caller says, its threads take turns quickly."""
    if whole:
        gc.collect()
        gc.freeze()
        gc.disable()
        sys.setswitchinterval(5e-4)
    refused = []
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, SLACK_NS, 0, 0, 0):
        refused.append("timer slack stays at 50 us: the kernel refused a smaller one")
    if not urgent(level):
        refused.append("no real-time priority: other programs can delay the control loop (allow it with `ulimit -r 30`, or CAP_SYS_NICE)")
    return refused


def urgent(level: int, *others: threading.Thread) -> bool:
    """Put this thread, and others, before all ordinary ones; whether that was granted. level: the higher, the sooner it runs."""
    try:
        for thread in (0, *(t.native_id for t in others if t.native_id)):
            os.sched_setscheduler(thread, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(level))
    except (OSError, AttributeError):
        return False
    return True


@contextmanager
def hurried(level: int, *, whole: bool = False) -> Iterator[list[str]]:
    """For a while, this thread and all others that there are now come before ordinary ones, for who waits for a message waits for the
    thread that receives it, too; whole: all of `realtime` for this one. Yields a line for everything that was not granted.

    Afterwards all is as it was: a process that stayed urgent would starve whatever runs beside it, and one whose garbage nobody collects
    fill the memory."""
    before, switch, collects = _scheduling(), sys.getswitchinterval(), gc.isenabled()
    try:
        refused = realtime(level) if whole else []
        urgent(level, *threading.enumerate())
        yield refused
    finally:
        for thread, (policy, param) in before.items():
            _give_back(thread, policy, param)
        if whole:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 0, 0, 0, 0)  # 0: what it was when the thread began
            sys.setswitchinterval(switch)
            gc.unfreeze()
            if collects:
                gc.enable()


def _give_back(thread: int, policy: int, param: os.sched_param) -> None:
    """Schedule a thread as before."""
    for kept in (0, os.SCHED_RESET_ON_FORK):  # who is urgent by `ulimit -r` alone may not take this off again
        with suppress(OSError):  # or the thread has ended
            os.sched_setscheduler(thread, policy | kept, param)
            return


def _scheduling() -> dict[int, tuple[int, os.sched_param]]:
    """{thread: (policy, its parameter)} of the process, where the system tells."""
    found = {}
    for thread in threading.enumerate():
        with suppress(OSError, AttributeError):
            if thread.native_id:
                found[thread.native_id] = os.sched_getscheduler(thread.native_id), os.sched_getparam(thread.native_id)
    return found

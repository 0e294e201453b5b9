"""What takes the machine for itself is told not to."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TASKS = "/proc/self/task"


@contextmanager
def calm() -> Iterator[None]:
    """Who makes itself the most urgent of all meanwhile, this thread or one that begins, is scheduled as this thread was before.

    SVT-AV1 does so wherever root runs it: its threads and the one that opens it come before everything else on the machine, a robot's
    control loop included, for ever, and so does all that they start.
    """
    if not os.path.isdir(TASKS):
        yield
        return
    own, policy, param = threading.get_native_id(), os.sched_getscheduler(0), os.sched_getparam(0)
    before, most = set(os.listdir(TASKS)), os.sched_get_priority_max(os.SCHED_FIFO)
    try:
        yield
    finally:
        for thread in (own, *map(int, set(os.listdir(TASKS)) - before)):
            with suppress(OSError):  # it has ended, or is not ours to change
                if os.sched_getparam(thread).sched_priority == most != param.sched_priority:
                    os.sched_setscheduler(thread, policy, param)

"""What hurries for a while is as it was afterwards."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading

import pytest

from realrl.robots.clock import CLIENT, hurried, urgent


def scheduling(thread: int = 0) -> tuple[int, int]:
    return os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK, os.sched_getparam(thread).sched_priority


def timer_slack() -> int:
    """In ns, of this thread."""
    return ctypes.CDLL(None).prctl(30, 0, 0, 0, 0)


@pytest.mark.parametrize("whole", [False, True])
def test_what_hurried_is_ordinary_afterwards_whatever_ended_it(whole: bool) -> None:
    over, other = threading.Event(), threading.Thread(target=lambda: over.wait(20))
    other.start()
    assert other.native_id is not None
    before, switch, slack = (scheduling(), scheduling(other.native_id)), sys.getswitchinterval(), timer_slack()
    try:
        with pytest.raises(KeyError), hurried(CLIENT, whole=whole) as refused:
            assert whole or not refused
            assert gc.isenabled() != whole and (sys.getswitchinterval() < switch) == whole
            if urgent(CLIENT):  # where it is granted
                assert scheduling(other.native_id)[1] == scheduling()[1] == CLIENT
                child = subprocess.run([sys.executable, "-S", "-c", "import os; print(os.sched_getscheduler(0))"], capture_output=True)
                assert child.stdout.strip() == b"0", "what an urgent program starts is ordinary"
            raise KeyError
        assert (scheduling(), scheduling(other.native_id)) == before
        assert gc.isenabled() and sys.getswitchinterval() == switch and timer_slack() == slack
    finally:
        over.set()
        other.join()


def test_a_thread_that_ended_meanwhile_is_no_matter() -> None:
    over, other = threading.Event(), threading.Thread(target=lambda: over.wait(20))
    other.start()
    with hurried(CLIENT):
        over.set()
        other.join()
    assert scheduling()[0] == os.SCHED_OTHER


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_clear_a_flag_is_ordinary_afterwards_too() -> None:
    """Allowed by `ulimit -r` alone, nobody may take back what makes children ordinary: the priority is to be given back all the same."""
    child = subprocess.run([sys.executable, "-c", "import os\nfrom realrl.robots.clock import CLIENT, hurried\nwith hurried(CLIENT):\n"
                            "    granted = os.sched_getparam(0).sched_priority\n    os.setresuid(65534, 65534, 65534)\n"
                            "print(granted, os.sched_getparam(0).sched_priority, os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)"],
                           capture_output=True, text=True, check=True)
    granted, kept, policy = map(int, child.stdout.split())
    if not granted:
        pytest.skip("no real-time priority is granted here")
    assert granted == CLIENT and (kept, policy) == (0, os.SCHED_OTHER)

"""A process that learns keeps what it frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

LEFT = """
import resource, sys, torch
from pathlib import Path
from realrl.memory import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

if sys.argv[1] == "keep":
    keep_freed_memory()
torch.ones(2**10)
before = resident()
torch.ones(6 * 2**20)
print((resident() - before) / 2**20)
"""


def left(how: str) -> float:
    """MiB that stay with a process after its first array of 24 MiB is freed."""
    return float(subprocess.run([sys.executable, "-c", LEFT, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are not told")
def test_what_is_freed_stays() -> None:
    assert left("not") < 12 < left("keep")

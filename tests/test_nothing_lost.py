"""kill -9 in the middle of collection, of learning and of checkpoints: nothing recorded is lost, and the run ends where it would have."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from realrl import config
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.scene import CollectConfig
from toy_runs import metrics, results, tiny, weights

CONFIG = tiny(collect=CollectConfig(workers=2, envs_per_worker=6))
CODE = """import faulthandler, sys, toy_runs  # no script: the workers would import it, and all it imports, too
faulthandler.dump_traceback_later(250)  # if it hangs, it says where
toy_runs.main(*sys.argv[1:])"""
# When to kill: a pattern, and how many new files of it must have appeared since the process began. Then a random moment is waited for.
MOMENTS = [("dataset/data/**/*", 1), ("checkpoints/imitation-fit/*", 1), ("dataset/data/**/*", 1), ("checkpoints/offline-1*/*", 1),
           ("checkpoints/online/*", 1), ("checkpoints/online/*", 2)]
FEW = (3, 5)  # of these, without --long

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


def start(folder, file):
    return subprocess.Popen([sys.executable, "-c", CODE, str(folder), str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})


def children(pid):
    """Living processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def wait_for(condition, seconds=300.0):
    """Whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def recorded(folder, scratch):
    """What a reader finds on disk now; looked at in a copy, so that reading mends nothing."""
    shutil.rmtree(scratch, ignore_errors=True)
    if not (folder / "dataset" / "meta" / "info.json").exists():
        return set()
    shutil.copytree(folder / "dataset", scratch)
    return {(e.policy, e.seed, e.action.tobytes(), e.obs["state"].tobytes()) for e in Store.open(scratch).read()}


def kill_at(folder, file, moment, luck):
    """Run until a moment, kill -9, and see the workers go. Returns False when the run was finished before."""
    pattern, count = moment
    before, seen = set(folder.glob(pattern)), set()

    def enough():
        seen.update(set(folder.glob(pattern)) - before)  # ever: the old version goes soon after the new one is there
        return len(seen) >= count or process.poll() is not None

    process = start(folder, file)
    came = wait_for(enough)
    time.sleep(luck.choice((0.0, 0.001, 0.01, 0.05)))
    workers, running = children(process.pid), process.poll() is None
    process.send_signal(signal.SIGKILL)
    outlived = [] if wait_for(lambda: not any(map(alive, workers)), 20) else list(filter(alive, workers))
    for pid in outlived:
        os.kill(pid, signal.SIGKILL)
    error = process.communicate()[1].decode()
    assert not outlived, "workers outlive their parent"
    assert came, f"{moment} never came: {error}"
    assert not running or process.returncode == -signal.SIGKILL, error
    return running


@linux
def test_killed_again_and_again_it_ends_where_it_would_have(tiny_run, tmp_path, long):
    luck, kept, kills = random.Random(0), set(), 0
    file, folder, scratch = tmp_path / "config.yaml", tmp_path / "run", tmp_path / "copy"
    config.save(CONFIG, file)
    moments = MOMENTS if long else [MOMENTS[n] for n in FEW]
    for moment in moments:
        kills += kill_at(folder, file, moment, luck)
        now = recorded(folder, scratch)
        assert kept <= now, "an episode was there before and is gone"
        kept = now
    assert kills == len(moments), "every moment comes before the end"
    process = start(folder, file)
    error = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 0, error
    assert not [p for p in check(folder / "dataset") if p.severity == "error"]
    assert kept <= recorded(folder, scratch) == recorded(tiny_run, tmp_path / "copy of whole")
    a, b = weights(tiny_run), weights(folder)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert sorted(metrics(folder), key=repr) == sorted(metrics(tiny_run), key=repr)
    assert results(folder) == results(tiny_run)
    assert not list((folder / "checkpoints").rglob(".*.tmp")), "what a killed checkpoint left is swept away"

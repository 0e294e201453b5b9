"""kill -9 in the middle of collection, of learning and of checkpoints: nothing recorded is lost, and the run ends where it would have."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from children import Child
from realrl import config
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.scene import CollectConfig
from toy_runs import metrics, results, tiny, weights

CONFIG = tiny(collect=CollectConfig(workers=2, envs_per_worker=6))
CODE = """import faulthandler, sys, toy_runs
faulthandler.dump_traceback_later(250)  # if it hangs, it says where
toy_runs.main(*sys.argv[1:])"""
# When to kill: a pattern, and how many new files of it must have appeared since the process began. Then a random moment is waited for.
MOMENTS = [("dataset/data/**/*", 1), ("checkpoints/imitation-fit/*", 1), ("dataset/data/**/*", 1), ("checkpoints/offline-1*/*", 1),
           ("checkpoints/online/*", 1), ("checkpoints/online/*", 2)]
FEW = (3, 5)  # of these, without --long

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


def start(folder, file):
    return Child("-c", CODE, folder, file)


def state(pid):
    """(state, parent) of a process; ("X", 0) where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[1])


def alive(pid):
    return state(pid)[0] not in ("Z", "X")


def workers_of(pid):
    """Living processes that it started: all that descends from the server that it was forked from, and so from itself."""
    server, there = state(pid)[1], [int(place.name) for place in Path("/proc").glob("[0-9]*")]
    parents, found = {p: state(p)[1] for p in there}, {server}
    while more := {p for p in there if parents[p] in found} - found:
        found |= more
    return [p for p in found - {server, pid} if alive(p)]


def wait_for(condition, seconds=300.0):
    """Whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)  # a look costs as much as a millisecond of what is waited for
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
    others = {*workers_of(process.pid)}  # of tests before
    came = wait_for(enough)
    time.sleep(luck.choice((0.0, 0.001, 0.01, 0.05)))
    workers, running = [pid for pid in workers_of(process.pid) if pid not in others], process.poll() is None
    assert workers or "online" not in pattern, "they have collected episodes"
    process.signal(signal.SIGKILL)
    outlived = [] if wait_for(lambda: not any(map(alive, workers)), 20) else list(filter(alive, workers))
    for pid in outlived:
        os.kill(pid, signal.SIGKILL)
    code, _, error = process.wait()
    assert not outlived, "workers outlive their parent"
    assert came, f"{moment} never came: {error}"
    assert not running or code == -signal.SIGKILL, error
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
    code, _, error = process.wait()
    assert code == 0, error
    assert not [p for p in check(folder / "dataset") if p.severity == "error"]
    assert kept <= recorded(folder, scratch) == recorded(tiny_run, tmp_path / "copy of whole")
    a, b = weights(tiny_run), weights(folder)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert sorted(metrics(folder), key=repr) == sorted(metrics(tiny_run), key=repr)
    assert results(folder) == results(tiny_run)
    assert not list((folder / "checkpoints").rglob(".*.tmp")), "what a killed checkpoint left is swept away"

"""A recorder, its encoder process, or both are killed at random moments, two hundred times with `--long`; nothing finished may be lost.

The rounds run in a small process of their own (this file as a script), which forks recorders, because starting Python two hundred
times would be what takes the time. The recorders and encoder processes are real ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl.data.record import recorder
from realrl.data.record import worker as encoder
from realrl.data.record.recorder import Recorder
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.types import Episode, Obs, Source, Step

SIZE = (16, 24)
FEW, MANY = 8, 101  # kills a run, without and with --long; there are two runs


def observation(seed: int, t: int) -> Obs:
    """What the robot saw: the time and the episode's seed as six black or white blocks in each colour, and a state."""
    blocks = np.zeros((2, 3, 3), np.uint8)
    for colour, value in enumerate((t, seed, t + seed)):
        blocks[..., colour] = np.array([30 + 190 * (value >> bit & 1) for bit in range(6)]).reshape(2, 3)
    picture = blocks.repeat(8, 0).repeat(8, 1)
    return {"images.left": picture, "images.right": picture[::-1].copy(), "state": np.array([seed, t], np.float32)}


def record(r: Recorder, seed: int, length: int) -> None:
    """One whole episode."""
    r.start_episode(seed=seed)
    for t in range(length):
        action = np.array([np.sin(seed + t)], np.float32)
        time.sleep(0.001)
        r.add(Step(observation(seed, t), action, action, Source.POLICY, 0.0, False, False, False, 1e3 * seed + t))
    r.finish(observation(seed, length), terminated=True, truncated=False)


def opened(folder: Path) -> Recorder:
    """A recorder with a ring so small that it spills."""
    warnings.simplefilter("ignore")
    return Recorder(folder, task="kill", fps=30, cameras={"left": SIZE, "right": SIZE}, codec="h264", ring_mb=0, record_kb=4,
                    min_frames=2, sync_s=0.05)


class Forked:
    """An encoder process that is forked rather than started, with what the recorder uses of subprocess.Popen."""

    def __init__(self, command: list[str], *, stdin: int, stdout: int, pass_fds: list[int], env: dict[str, str]) -> None:
        down, up = os.pipe(), os.pipe()
        self.stdin = os.fdopen(down[1], "wb", buffering=0) if stdin == subprocess.PIPE else None
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(down[0], 0)
            os.dup2(up[1], 1)
            os.closerange(3, pass_fds[0])
            os.closerange(pass_fds[0] + 1, 256)
            os._exit(encoder.main(command[3:]))
        os.close(down[0])
        os.close(up[1])
        if stdin != subprocess.PIPE:
            os.close(down[1])
        self.stdout = os.fdopen(up[0], "rb")

    def wait(self) -> int:
        """The exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def child(folder: Path, ledger: Path, first_seed: int, report: int) -> None:
    """Record until killed. A line goes to the ledger after every episode that was finished."""
    r = opened(folder)
    os.write(report, json.dumps({"encoder": r._process.pid}).encode() + b"\n")
    rng, fd = random.Random(first_seed), os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for seed in range(first_seed, first_seed + 10_000):
        length = rng.randrange(1, 40)
        record(r, seed, length)
        os.write(fd, f"{seed} {length}\n".encode())
        if rng.random() < 0.4:  # robots are slower than loops: let it catch up now and then
            r.flush()


class Rounds:
    """The state of the test between kills: which files were verified, and their checksums."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.ledger = folder, folder.with_suffix(".ledger")
        self.rng = random.Random(seed)
        self.verified: dict[int, int] = {}  # seed of an episode -> its index
        self.sums: dict[Path, str] = {}
        self.kills, self.first_seed, self.seen = 0, 0, 0

    def verify(self, settled: bool) -> None:
        """Everything that was seen before is unchanged; new episodes are right; with `settled`, all finished ones are there."""
        for path, told in self.sums.items():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == told, f"{path} changed"
        if not (self.folder / "meta/info.json").exists():
            assert not self.ledger.exists()
            return
        store = Store.open(self.folder)
        assert len(store) >= self.seen
        for index, e in enumerate(store.read(range(self.seen, len(store))), self.seen):
            assert e.seed is not None and e.seed not in self.verified, f"episode {index} is there twice"
            self.verified[e.seed] = index
            right(e)
        self.seen = len(store)
        self.sums = {p: hashlib.sha256(p.read_bytes()).hexdigest() for part in ("data", "videos")
                     for p in (self.folder / part).rglob("*") if p.suffix in (".mp4", ".parquet") and not p.name.startswith(".")}
        if settled and self.ledger.exists():
            lost = [line for line in self.ledger.read_text().splitlines() if int(line.split()[0]) not in self.verified]
            assert not lost, f"finished but not in the dataset: {lost}"

    def round(self) -> None:
        """Start a recorder, let it work, kill something."""
        inward, outward = os.pipe()
        self.first_seed += 10_000
        pid = os.fork()
        if pid == 0:
            try:
                child(self.folder, self.ledger, self.first_seed, outward)
            finally:
                os._exit(9)
        os.close(outward)
        known: dict[str, Any] = {}
        if self.rng.random() < 0.8:  # otherwise it may be killed while it opens and recovers
            with os.fdopen(inward, "rb") as pipe:
                known = json.loads(pipe.readline())
            self.verify(settled=False)
        time.sleep(self.rng.random() * 0.15)
        target = self.rng.choice(["recorder", "encoder", "both"]) if known else "recorder"
        if target != "recorder":
            os.kill(known["encoder"], signal.SIGKILL)
            self.kills += 1
        if target == "encoder":
            time.sleep(self.rng.random() * 0.15)
        os.kill(pid, signal.SIGKILL)
        self.kills += target != "both"
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "the recorder ended by itself"
        if not known:
            os.close(inward)

    def settle(self) -> None:
        """Open and close a recorder, so that nothing is left to recover."""
        opened(self.folder).close()
        self.verify(settled=True)
        assert [p.name for p in (self.folder / "recording").iterdir()] == [".lock"]


def right(e: Episode) -> None:
    """The episode is what was recorded, or the beginning of it."""
    n, seed = len(e), e.seed or 0
    recovered = e.policy == "(recovered)"
    assert e.terminated != recovered and e.truncated == recovered
    for t in range(n + 1):
        wanted = observation(seed, t)
        assert (e.obs["state"][t] == wanted["state"]).all()
        for camera in ("images.left", "images.right"):
            seen = e.obs[camera][t].reshape(2, 8, 3, 8, 3).mean((1, 3)) > 125
            assert (seen == (wanted[camera][::8, ::8] > 125)).all(), f"{camera} at {t} shows another frame"
    assert (e.action[:, 0] == np.sin(seed + np.arange(n)).astype(np.float32)).all()
    assert (e.time == 1e3 * seed + np.arange(n)).all()


def main(folder: str, seed: int, kills: int) -> None:
    """All rounds, then one whole examination."""
    recorder.subprocess.Popen = Forked  # type: ignore[misc, assignment]
    rounds = Rounds(Path(folder), seed)
    while rounds.kills < kills:
        rounds.round()
        if rounds.rng.random() < 0.3:
            rounds.settle()
    rounds.settle()
    ledger = [tuple(map(int, line.split())) for line in rounds.ledger.read_text().splitlines()]
    episodes = Store.open(folder).read([rounds.verified[s] for s, _ in ledger])
    assert all(len(e) == n and e.policy == "" for e, (_, n) in zip(episodes, ledger, strict=True))
    assert [str(p) for p in check(folder) if p.severity == "error"] == []
    print(f"{rounds.kills} kills, {len(ledger)} episodes finished and {rounds.seen - len(ledger)} recovered, none lost")


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again_nothing_finished_is_lost(tmp_path: Path, seed: int, long: bool) -> None:
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else tmp_path  # a kill spares the page cache, so the disk would only take time
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        done = subprocess.run([sys.executable, __file__, f"{folder}/set", str(seed), str(MANY if long else FEW)],
                              capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, timeout=3000 if long else 400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "none lost" in done.stdout


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

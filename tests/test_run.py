"""A run's directory: nothing recorded is lost, and what is read back is what was written, bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from realrl.checkpoint import decode, encode, read_parts, restore, save_parts
from realrl.files import derive, write_json
from realrl.run import Run, read_metrics
from realrl.types import RealrlError

PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Job:
    steps: int = 4
    lr: float = 1e-3
    device: str = "cpu"


class Learner:
    """A net with dropout and batch norm, its optimiser and its average: everything that is awkward to restore."""

    def __init__(self, init: int) -> None:
        torch.manual_seed(init)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, 10)
        self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    def parts(self) -> dict[str, Any]:
        return {"net": self.net, "optimiser": self.optimiser, "schedule": self.schedule, "ema": self.ema}

    def update(self, step: int) -> None:
        torch.manual_seed(derive(0, "toy", step))
        loss = (self.net(torch.randn(16, 3)) ** 2).mean()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.schedule.step()
        self.ema.update_parameters(self.net)


def same(a: Any, b: Any) -> bool:
    """Equality of trees, bit for bit, types and all."""
    if type(a) is not type(b):
        return isinstance(a, dict) and isinstance(b, dict) and same(dict(a), dict(b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (a != a and b != b)


def test_two_and_two_steps_equal_four(tmp_path: Path) -> None:
    whole, first, second = Learner(0), Learner(0), Learner(1)
    for step in range(4):
        whole.update(step)
    for step in range(2):
        first.update(step)
    with Run(tmp_path) as run:
        run.save("bc", 2, **first.parts(), extra={"best": 0.1})
    extra: dict[str, Any] = {"stale": 1}
    with Run(tmp_path, resume=True) as run:
        assert run.load("bc", **second.parts(), extra=extra) == 2
    assert extra == {"best": 0.1}
    for step in range(2, 4):
        second.update(step)
    for name, part in whole.parts().items():
        assert same(part.state_dict(), second.parts()[name].state_dict()), name


def test_trees_round_trip_exactly(tmp_path: Path) -> None:
    tied = torch.arange(6.0).reshape(2, 3)
    tree = {
        "numbers": [0.1, 1 / 3, 5e-324, -0.0, float("inf"), float("nan"), 2**200, -7, True, None, "ü\n"],
        "keys": {1: "a", (2, "b"): [], 3.5: (), None: {}}, "$tuple": {"$x": 1}, "one": {"$array": 2}, "nested": ((1, [2, (3,)]),),
        "ordered": OrderedDict(b=1, a=2), "np": [np.float32(0.1), np.int64(5), np.bool_(True)],
        "arrays": [np.arange(6)[::-2], np.zeros((0, 3)), np.array(2.5), np.array([True]), np.arange(3, dtype=">i4").astype("i4")],
        "tensors": [tied, tied.T, tied[0], torch.tensor(1.5, dtype=torch.float64), torch.zeros(0, 2), torch.ones(2, dtype=torch.bfloat16)],
        "a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, "rng": np.random.default_rng(3).bit_generator.state,
        "mt": np.random.RandomState(3).get_state(legacy=False), "torch_rng": torch.get_rng_state(),
    }
    save_parts(tmp_path, 3, {"part": tree})
    step, states = read_parts(tmp_path)
    assert step == 3
    assert same(states["part"], tree)
    assert np.signbit(states["part"]["numbers"][3])


def test_what_cannot_be_held_is_named() -> None:
    for bad in (object(), {1, 2}, np.array(["text"]), b"bytes"):
        with pytest.raises(RealrlError, match="at 'agent/memory'"):
            encode({"agent": {"memory": bad}}, {})
    store: dict[str, torch.Tensor] = {}
    assert decode(json.loads(json.dumps(encode({"x": (1, 2)}, store))), store) == {"x": (1, 2)}


def test_broken_checkpoints_are_named(tmp_path: Path) -> None:
    net, run = nn.Linear(3, 2), Run(tmp_path)
    assert run.load("bc", net=net) is None
    assert run.read("bc") is None
    with pytest.raises(RealrlError, match="no checkpoint in"):
        read_parts(tmp_path / "nothing")
    run.save("bc", 1, net=net)
    folder = tmp_path / "checkpoints" / "bc"
    state, tensors = folder / "state-000001.json", folder / "tensors-000001.safetensors"
    with pytest.raises(RealrlError, match=r"part 'net' does not fit .*size mismatch.*config\.yaml"):
        run.load("bc", net=nn.Linear(4, 2))
    with pytest.raises(RealrlError, match="no part 'nett', did you mean 'net'"):
        run.load("bc", nett=net)
    whole_tensors, whole_state = tensors.read_bytes(), state.read_text()
    for damage in (whole_tensors[:-3], whole_tensors[:4], b"", whole_tensors[:-1] + b"\x55"):
        tensors.write_bytes(damage)
        with pytest.raises(RealrlError, match=r"tensors-000001\.safetensors is damaged or truncated; restore"):
            run.load("bc", net=net)
    tensors.unlink()
    with pytest.raises(RealrlError, match=r"tensors-000001\.safetensors is missing"):
        run.load("bc", net=net)
    tensors.write_bytes(whole_tensors)
    for text, words in ((whole_state[:-9], "is damaged"), ("[]", "is damaged"),
                        (whole_state.replace('"format": 1', '"format": 99'), "format 99, this realrl reads 1"),
                        (whole_state.replace("net/weight", "net/wait"), "state-000001.json is damaged"),
                        (whole_state.replace("net/weight", "net/wait").replace('"check"', '"old"'), "does not hold what state-")):
        state.write_text(text)
        with pytest.raises(RealrlError, match=words):
            run.load("bc", net=net)
    state.write_text(whole_state)
    assert run.load("bc", net=net) == 1


def test_keep_and_fall_back(tmp_path: Path) -> None:
    save_parts(tmp_path, 0, {})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".state-000009.json.123.tmp").write_text("{")
    for step in range(1, 5):
        save_parts(tmp_path, step, {"x": {"value": torch.tensor(step)}}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "notes.txt", "state-000004.json", "state-000005.json", "tensors-000004.safetensors", "tensors-000005.safetensors"]
    (tmp_path / "tensors-000005.safetensors").write_bytes(b"")
    with pytest.raises(RealrlError, match="delete the two files numbered 000005 to fall back on version 000004"):
        read_parts(tmp_path)
    (tmp_path / "state-000005.json").unlink()
    step, states = read_parts(tmp_path)
    assert (step, int(states["x"]["value"])) == (3, 3)
    value: dict[str, Any] = {}
    restore(states, {"x": value}, tmp_path)
    assert int(value["value"]) == 3


def save_until_killed(folder: Path, ready: Connection) -> None:
    """Check what was loaded, say so, save for ever, and say when the first save is done."""
    torch.set_num_threads(1)
    run = Run(folder, resume=True)
    part: dict[str, Any] = {"x": torch.zeros(20_000), "count": 0}
    start = run.load("loop", part=part) or 0
    ready.send(part["count"] == start and bool((part["x"] == start).all()))
    for step in range(start + 1, start + 100_000):
        run.save("loop", step, part={"x": torch.full((20_000,), float(step)), "count": step})
        run._file.write(b'{"stage": "", "step": %d, "time": 0}\n' % step)
        run._file.flush()
        if step == start + 1:
            ready.send(True)


def test_kill_in_the_middle_of_a_save(tmp_path: Path) -> None:
    rng, reached = random.Random(0), 0
    for _ in range(15):
        ours, theirs = PROCESSES.Pipe()
        job = PROCESSES.Process(target=save_until_killed, args=(tmp_path, theirs))
        job.start()
        theirs.close()
        assert ours.recv(), "the child has another start than was saved"
        if rng.random() < 0.7:  # otherwise the kill may come before or in the first save
            ours.recv()
        time.sleep(rng.uniform(0.0, 0.08))
        job.kill()
        job.join()
        folder = tmp_path / "checkpoints" / "loop"
        if not list(folder.glob("state-*.json")):
            continue
        step, states = read_parts(folder)
        assert states["part"]["count"] == step >= reached
        assert bool((states["part"]["x"] == step).all())
        reached = step
        assert all(line["step"] <= step for line in read_metrics(tmp_path))
    assert reached > 0, "no save ever finished before a kill"


def test_metrics_survive_half_lines_and_rewind(tmp_path: Path) -> None:
    run = Run.start(tmp_path, Job())
    for stage in ("imitation", "offline"):
        for step in range(4):
            run.log(step, {"loss": torch.tensor(0.1), "rate": np.float32(0.5), "gap": None}, stage)
    with pytest.warns(UserWarning, match="'loss' is nan at step 4"):
        run.log(4, {"loss": float("nan")}, "offline")
    run.log(5, {"loss": float("inf")}, "offline")  # warned once
    with pytest.raises(ValueError, match="step"):
        run.log(5, {"step": 1.0})
    run.close()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"stage": "offl')
    assert len(read_metrics(tmp_path)) == 10
    assert read_metrics(tmp_path)[-1]["loss"] is None
    with Run.start(tmp_path, Job(), resume=True) as run:
        run.rewind("offline", 1)
        run.log(2, {"loss": 7.0}, "offline")
    lines = [(line["stage"], line["step"]) for line in read_metrics(tmp_path)]
    assert lines == [("imitation", s) for s in range(4)] + [("offline", s) for s in range(3)]
    assert read_metrics(tmp_path)[-1]["loss"] == 7.0
    (tmp_path / "metrics.jsonl").write_text('{"a": 1}\n{"b"\n{"c": 1}\n')
    with pytest.raises(RealrlError, match="line 2 is not JSON"):
        read_metrics(tmp_path)


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run(tmp_path) as run:
        for step in range(4):
            run.log(step, {"loss": step}, "offline")
    time.sleep(1.1)  # event files are named by the second
    with Run(tmp_path, resume=True) as run:
        run.rewind("offline", 1)
        run.log(2, {"loss": 7.0}, "offline")
    board = EventAccumulator(str(tmp_path / "tb" / "offline")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("offline/loss")] == [(0, 0.0), (1, 1.0), (2, 7.0)]


def test_start_and_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Run.start(folder, Job(), resume=True).close()  # nothing there yet: a fresh start
    meta = json.loads((folder / "meta.json").read_text())
    assert {"commit", "versions", "started", "command", "threads"} <= meta.keys()
    assert meta["versions"]["torch"] == torch.__version__
    with Run.start(folder, Job()) as run:  # nothing has come of it, so there is nothing to continue
        assert "resumed" not in json.loads((folder / "meta.json").read_text())
        with pytest.raises(RealrlError, match="is being written by process"):
            Run.start(folder, Job())
        run.log(0, {"loss": 1.0})
    with pytest.raises(RealrlError, match=r"not empty; continue it with --resume"):
        Run.start(folder, Job())
    with pytest.raises(RealrlError, match=r"differs in lr: 0\.001 -> 0\.1; steps: 4 -> 5\."):
        Run.start(folder, Job(steps=5, lr=0.1), resume=True)
    older = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text("".join(line for line in older.splitlines(True) if not line.startswith("lr")))
    Run.start(folder, Job(), resume=True).close()  # written before there was an lr
    with pytest.raises(RealrlError, match=r"differs in lr: 0\.001 -> 0\.1\."):
        Run.start(folder, Job(lr=0.1), resume=True)
    (folder / "config.yaml").write_text(older + "gone: 1\n")
    with pytest.raises(RealrlError, match=r"differs in gone: 1 -> \(absent\)\."):
        Run.start(folder, Job(), resume=True)
    (folder / "config.yaml").write_text(older)
    Run.start(folder, Job(device="cuda"), resume=True, ignore=["device"]).close()
    assert len(json.loads((folder / "meta.json").read_text())["resumed"]) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(RealrlError, match=r"no config\.yaml"):
        Run.start(tmp_path / "other", Job(), resume=True)
    with pytest.raises(RealrlError, match="is a file"):
        Run.start(tmp_path / "other" / "thesis.tex", Job(), resume=True)


def test_derive_is_stable_and_spread() -> None:
    assert derive(0, "offline", 3) == 8381209048921453647  # a constant: resumed runs of any version must draw the same
    assert derive(np.int64(0), "offline", np.int32(3)) == derive(0, "offline", 3)  # type: ignore[arg-type]
    seeds = {derive(s, t, i) for s in range(5) for t in ("a", "b", 1, "1") for i in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= s < 2**63 for s in seeds)


def test_write_json_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 0.1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.1}


# ---- one writer, its own files, a full disk -------------------------------------------------------------------------------------


HOLDER = "import sys; from realrl.run import Run; run = Run(sys.argv[1], resume=True); print('ready', flush=True); sys.stdin.read()"


def test_a_run_has_one_writer_and_any_number_of_readers(tmp_path: Path) -> None:
    Run.start(tmp_path, Job()).close()
    job = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None and job.stdin is not None and job.stdout.readline() == "ready\n"
    before = {p: p.read_bytes() for p in tmp_path.glob("[a-z]*") if p.is_file()}
    with pytest.raises(RealrlError, match=rf"is being written by process {job.pid}; wait for it or end it$"):
        Run.start(tmp_path, Job(), resume=True)
    assert {p: p.read_bytes() for p in before} == before and read_metrics(tmp_path) == []
    job.kill()
    job.wait()
    job.stdout.close()
    job.stdin.close()
    with Run.start(tmp_path, Job(), resume=True), pytest.raises(RealrlError, match="being written by process"):
        Run(tmp_path, resume=True)
    Run.start(tmp_path, Job(), resume=True).close()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "meta.json", "summary.json", "ope.json", "tb", "tb/bc", "checkpoints",
                                  "checkpoints/bc", "checkpoints/bc/state-000001.json", "policy", ".lock"])
def test_a_run_follows_no_link(name: str, tmp_path: Path) -> None:
    """What a link leads to is neither cut nor appended to nor pruned."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    with Run.start(run, Job()) as started:
        started.log(1, {"loss": 1.0}, "bc")
        started.save("bc", 1, part={"x": 1})
        save_parts(run / "policy", 0, {"weights": {"x": 1}})
        write_json(run / "summary.json", {})
        write_json(run / "ope.json", {"points": []})
    victim = run / name
    victim.rename(outside)
    if outside.is_file():
        outside.write_text(outside.read_text() + "my precious key, no line feed")
    victim.symlink_to(outside)
    before = {p: p.read_bytes() for p in (outside, *outside.rglob("*")) if p.is_file()}
    with pytest.raises(RealrlError, match="link"):
        Run.start(run, Job(), resume=True)
    assert {p: p.read_bytes() for p in (outside, *outside.rglob("*")) if p.is_file()} == before


@pytest.mark.parametrize(("name", "text"), [
    ("meta.json", "[]"), ("meta.json", "{"), ("meta.json", '{"resumed": 5}'), ("summary.json", "5"), ("summary.json", '{"stages": {}}'),
    ("summary.json", '{"stages": [5]}'), ("summary.json", '{"stages": [{"name": 5}]}'), ("summary.json", '{"wall_s": "x"}'),
    ("summary.json", '{"wall_s": NaN}'), ("summary.json", '{"spent_s": {"imitation": []}}'), ("summary.json", "[" * 100_000),
    ("ope.json", "{}"), ("ope.json", '{"points": [{"stage": "x"}]}'), ("metrics.jsonl", "5\n"), ("metrics.jsonl", '{"stage": "x"}\n'),
    ("metrics.jsonl", '{"stage": "x", "step": true}\n'), ("metrics.jsonl", '{"stage": "\\ud800", "step": 1}\n'),
    ("metrics.jsonl", "\xff\n"),
    ("metrics.jsonl", '{"step": ' + "9" * 400 + "}\n"), ("config.yaml", "a: &a [1]\nb: *a"), ("config.yaml", "5")])
def test_files_of_a_run_that_do_not_hold_what_it_writes(name: str, text: str, tmp_path: Path) -> None:
    Run.start(tmp_path, Job()).close()
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(RealrlError, match=re.escape(name)) as caught:
        Run.start(tmp_path, Job(), resume=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "meta.json", "summary.json", "ope.json", ".lock"])
def test_a_pipe_in_a_run_is_not_waited_for(name: str, tmp_path: Path) -> None:
    Run.start(tmp_path, Job()).close()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(RealrlError, match=r"plain file|could not be"):
        Run.start(tmp_path, Job(), resume=True)


def test_temporary_files_of_the_dead_are_swept(tmp_path: Path) -> None:
    with Run.start(tmp_path, Job()) as run:
        run.save("bc", 1, part={"x": 1})
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [tmp_path / f".meta.json.{dead.pid}.tmp", tmp_path / f"checkpoints/bc/.state-000002.json.{dead.pid}.tmp",
            tmp_path / f".summary.json.{os.getpid()}.tmp"]
    kept = [tmp_path / f".report.html.{os.getppid()}.tmp", tmp_path / ".notes.tmp", tmp_path / ".x.abc.tmp"]
    for file in (*left, *kept):
        file.touch()
    Run.start(tmp_path, Job(), resume=True).close()
    assert [p.name for p in left if p.exists()] == [] and all(p.exists() for p in kept)


def test_a_network_that_diverged_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    with Run.start(tmp_path, Job()) as run:
        run.save("bc", 1, net=net)
        with torch.no_grad():
            net.weight[0, 0] = float("inf")
        with pytest.raises(RealrlError, match=r"the network 'net' holds weight with NaN or infinite values; its training diverged"):
            run.save("bc", 2, net=net)
        assert run.read("bc")[0] == 1  # type: ignore[index]
        save_parts(tmp_path / "checkpoints/bc", 2, {"net": net})
        with pytest.raises(RealrlError, match=r"part 'net' holds weight with NaN"):
            run.load("bc", net=nn.Linear(3, 2))


def test_a_state_file_that_was_edited_is_noticed(tmp_path: Path) -> None:
    save_parts(tmp_path, 7, {"x": {"count": 3, "rate": 0.1, "names": ["a"]}})
    file = tmp_path / "state-000001.json"
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole), indent=3))  # the same, in other words
    assert read_parts(tmp_path)[0] == 7
    for old, new in (('"step": 7', '"step": 8'), ('"count": 3', '"count": "3"'), ("0.1", "0.2"), ('["a"]', "[]")):
        file.write_text(whole.replace(old, new))
        with pytest.raises(RealrlError, match=r"state-000001\.json is damaged"):
            read_parts(tmp_path)


class Full:
    """A disk that takes so many more bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, data: bytes) -> int:
        taken = min(self.room, len(data))
        if not taken:
            raise OSError(28, "No space left on device")
        self.room -= taken
        return taken

    def close(self) -> None:
        pass


def test_a_full_disk_is_one_line_from_metrics_and_boards(tmp_path: Path) -> None:
    run = Run.start(tmp_path, Job())
    run.log(1, {"loss": 1.0}, "bc")
    run._boards["bc"]._file = Full(10)  # type: ignore[assignment]
    with pytest.raises(RealrlError, match=r"events\.out.* could not be written \(No space left on device\); free space$"):
        run.log(2, {"loss": 1.0}, "bc")
    run._file = Full(10)  # type: ignore[assignment]
    with pytest.raises(RealrlError, match=r"metrics\.jsonl could not be written \(No space left on device\); free space$"):
        run.log(3, {"loss": 1.0}, "bc")
    run.close()

"""Fuzzing along coverage: atheris searches for inputs that make a reader of ours raise anything but RealrlError.

The parsers written in Python are instrumented (pickles, record files, features.json, LeRobot 2.1, derived columns, a recorder's logs,
and what becomes of them), so that the search sees which changes lead to new code. It stops at the first finding of each target and
keeps the input; run a kept input again with `--replay FILE`. What the C libraries below do with damaged files is looked at by
tests/data/test_fuzz.py instead.

    python -m benchmarks.fuzz --minutes 10 --keep fuzz_findings
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

OWN = ("legacy", "side", "recording")  # the samples of tests/data/samples.py that are folders of ours
TARGETS = ("unpickle", "dapg", "hil_serl", "example", "tfrecord", "features", *OWN)
MODULES = {  # what is instrumented; for the other targets, formats
    "legacy": ("formats.lerobot_v2", "schema", "tables", "footage", "files"), "side": ("side", "schema", "tables", "files"),
    "recording": ("recovery", "journal", "store", "schema", "footage", "video", "files")}
FORMATS = ("formats", "formats.unpickle", "formats.pickles", "formats.rlds", "formats.tfrecord", "formats.common")


def seeds(target: str) -> list[bytes]:
    """Valid inputs to start from."""
    if target in OWN:
        with tempfile.TemporaryDirectory() as name:
            return _own_seeds(target, sample(target, Path(name) / "data"))
    one = {"observations": np.ones((4, 3)), "actions": np.ones((4, 2)), "rewards": np.zeros(4), "init_state_dict": {"qpos": np.ones(3)}}
    obs = {"state": np.zeros((1, 3), np.float32), "wrist": np.zeros((1, 8, 8, 3), np.uint8)}
    step = {"observations": obs, "actions": np.zeros(2), "next_observations": obs, "rewards": 1.0, "masks": 0.0, "dones": True,
            "infos": {"succeed": True, "intervene_action": np.zeros(2)}}
    if target in ("unpickle", "dapg", "hil_serl"):
        value = {"unpickle": {"a": np.arange(3), "b": ["text", 1.5, None, (True, 2**70)]}, "dapg": [one], "hil_serl": [step, step]}[target]
        return [pickle.dumps(value, protocol=p) for p in range(6)]
    if target == "features":
        leaf = {"pythonClassName": "x", "tensor": {"shape": {"dimensions": ["2"]}, "dtype": "float32", "encoding": "none"}}
        image = {"pythonClassName": "x", "image": {"shape": {"dimensions": ["8", "8", "3"]}, "dtype": "uint8"}}
        steps = {"featuresDict": {"features": {"action": leaf, "observation": {"featuresDict": {"features": {"image": image}}}}}}
        return [json.dumps({"featuresDict": {"features": {"steps": {"sequence": {"feature": steps}}}}}).encode()]
    entry = _field(1, b"steps/action") + _field(2, _field(2, _field(1, struct.pack("<2f", 1, 2))))
    flags = _field(1, b"steps/is_first") + _field(2, _field(3, _field(1, b"\x01")))
    return [_field(1, _field(1, entry) + _field(1, flags))]


def sample(target: str, folder: Path) -> Path:
    """The folder that the tests damage."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/data"))
    import samples

    made: Path = getattr(samples, target)(folder)
    return made


def parts(target: str, root: Path) -> list[Path]:
    """The files of a sample that an input may stand for; its first byte chooses."""
    pattern = {"legacy": "meta/*", "side": "derived/*/*.parquet", "recording": "recording/*/*.log"}[target]
    return sorted(root.glob(pattern))


def _own_seeds(target: str, root: Path) -> list[bytes]:
    """Each file as it is, and what a checksum or a parquet file hides from changes: a side file's header, a log's records."""
    import pyarrow.parquet as pq

    from realrl.data.record.journal import read_log

    found = []
    for i, path in enumerate(parts(target, root)):
        found.append(bytes([i]) + path.read_bytes())
        if target == "side":
            found.append(bytes([128 + i]) + pq.read_schema(path).metadata[b"realrl"])
        elif target == "recording":
            records = b"".join(struct.pack("<BH", kind, len(content)) + content for kind, content in read_log(path))
            found.append(bytes([128 + i]) + records)
    return found


def own_reader(target: str, folder: Path) -> Callable[[bytes], None]:
    """What reads one input of these. One recording in eight is brought to its end, in a folder made anew for it; others are only read."""
    import fuzzing  # `sample` made it known

    from realrl.data import side
    from realrl.data.record import recovery
    from realrl.types import RealrlError

    whole, work = sample(target, folder / "whole"), folder / "work"
    shutil.copytree(whole, work)
    os.fsync = lambda fd: None  # disks are not what is looked at

    def look(path: Path, data: bytes) -> None:
        if target == "side":
            side.read(work, path.parent.name, int(path.stem[1:]), missing="nan")
        elif target == "recording" and len(data) % 8:
            if (found := recovery.find(path.parent)) is not None:
                found.episode()
        else:
            fuzzing.READERS[target](work)
            shutil.rmtree(work)
            shutil.copytree(whole, work)

    def read(data: bytes) -> None:
        there = parts(target, whole)
        path = work / there[data[0] % 128 % len(there) if data else 0].relative_to(whole)
        before = path.read_bytes()
        try:
            _damage(target, path, data)
            look(path, data)
        except RealrlError as error:
            if "\n" in str(error):
                raise AssertionError(f"a refusal of several lines: {error}") from error
        path.write_bytes(before)
    return read


def _damage(target: str, path: Path, data: bytes) -> None:
    """Write an input over the file it stands for."""
    import pyarrow.parquet as pq

    from realrl.data.record.journal import Log

    first, rest = data[0] if data else 0, data[1:]
    if first < 128 or target == "legacy":
        path.write_bytes(rest)
    elif target == "side":
        pq.write_table(pq.read_table(path, partitioning=None).replace_schema_metadata({b"realrl": rest}), path)
    else:
        path.unlink()
        log = Log(path)
        while len(rest) >= 3:
            kind, length = struct.unpack_from("<BH", rest)
            log.append(kind % 7, rest[3:3 + length])
            rest = rest[3 + length:]
        log.close()


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2, len(payload)]) + payload


def reader(target: str, folder: Path) -> Callable[[bytes], None]:
    """What reads one input; RealrlError is what a user would see, everything else is a finding."""
    if target in OWN:
        sample(target, folder / "known")
        return own_reader(target, folder)
    from realrl.data.formats import pickles, rlds, tfrecord, unpickle
    from realrl.types import RealrlError

    features = json.loads(seeds("features")[0])
    del features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]["observation"]
    (folder / "features.json").write_text(json.dumps(features))

    def framed(record: bytes) -> bytes:
        length = struct.pack("<Q", len(record))
        return length + struct.pack("<I", tfrecord.masked_crc(length)) + record + struct.pack("<I", tfrecord.masked_crc(record))

    def read(data: bytes) -> None:
        with contextlib.suppress(RealrlError):
            if target == "unpickle":
                (folder / "a.pkl").write_bytes(data)
                unpickle.load(folder / "a.pkl")
            elif target in ("dapg", "hil_serl"):
                (folder / "a.pkl").write_bytes(data)
                list(pickles.read(folder / "a.pkl").episodes)  # here, not in a process of its own: this one is instrumented
            elif target == "example":
                tfrecord.example(data, "input")
            elif target == "tfrecord":
                (folder / "a.tfrecord").write_bytes(framed(data))
                list(rlds.read(folder).episodes)
            else:
                (folder / "b.json").write_bytes(data)
                rlds.read_features(folder / "b.json")
    return read


def search(target: str, seconds: int, keep: Path) -> None:
    """Fuzz one target in this process; libFuzzer ends it, with code 0 when it found nothing."""
    import atheris

    with atheris.instrument_imports(include=[f"realrl.data.{name}" for name in MODULES.get(target, FORMATS)]):
        import realrl.data.formats
        import realrl.data.formats.lerobot_v2
        import realrl.data.record.recovery
        import realrl.data.side  # noqa: F401

    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus"
        corpus.mkdir()
        for i, seed in enumerate(seeds(target)):
            (corpus / str(i)).write_bytes(seed)
        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", f"-artifact_prefix={keep}/{target}-", "-timeout=20", "-rss_limit_mb=4096",
                       "-max_len=16384", "-verbosity=0", "-print_final_stats=1", str(corpus)], reader(target, Path(name)))
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="in all, shared by the targets")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_findings"), help="folder for inputs that were found")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--replay", type=Path, help="read one kept input again and show what it raises")
    parser.add_argument("--child", choices=TARGETS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.replay:
        target = args.replay.name.split("-")[0]
        with tempfile.TemporaryDirectory() as name:
            reader(target, Path(name))(args.replay.read_bytes())
        print(f"{args.replay}: read or refused, as it should be")
        return 0
    seconds = max(1, round(60 * args.minutes / len(args.targets)))
    if args.child:
        search(args.child, seconds, args.keep)
        return 0
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not installed (pip install realrl[dev], Linux only): nothing was searched")
        return 0
    args.keep.mkdir(parents=True, exist_ok=True)
    found = 0
    for target in args.targets:
        command = [sys.executable, __file__, "--child", target, "--keep", str(args.keep), "--minutes", str(seconds / 60),
                   "--targets", target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = dict(line.removeprefix("stat::").split(":", 1) for line in done.stderr.splitlines() if line.startswith("stat::"))
        found += done.returncode != 0
        print(f"{target:10} {said.get('number_of_executed_units', '?').strip():>9} inputs in {seconds} s: "
              f"{'a finding, kept in ' + str(args.keep) if done.returncode else 'nothing found'}", flush=True)
        if done.returncode:
            print(done.stdout[-2000:] + done.stderr[-2000:])
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())

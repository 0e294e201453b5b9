"""The commands on datasets: help, answers to mistakes, exit codes, and that what they print is true."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl.cli import main as cli
from realrl.data import video
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.data.tools.repair import repair
from realrl.envs.mujoco import gl
from realrl.types import Episode, RealrlError

SOURCE = Path(cli.__file__).resolve().parents[2]
COMMANDS = ["demos", "info", "check", "repair", "label", "merge", "split", "delete-episodes", "trim", "replay", "export", "import"]


def demos(out: Path, count: int, *more: str) -> Path:
    assert cli.main(["data", "demos", "--task", "toy/obstacle", "--episodes", str(count), "--out", str(out), "--workers", "1", *more]) == 0
    return out


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight demonstrations and some failed attempts of toy/obstacle."""
    return demos(tmp_path_factory.mktemp("recorded") / "demos", 8, "--noise", "0.9")


def run(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> str:
    """What a command prints, after checking its exit code."""
    capsys.readouterr()
    got = cli.main(["data", *map(str, args)])
    out, err = capsys.readouterr()
    assert got == code, (out, err)
    return out


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line that a wrong command prints."""
    capsys.readouterr()
    assert cli.main(["data", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    line = err.replace("\x1b[?25l", "").strip()
    assert out == "" and line.startswith("error: ") and "\n" not in line, (out, err)
    return line


def filmed(folder: Path, task: str = "move") -> Path:
    """A dataset of two episodes with a camera and a depth camera."""
    n, rng = 8, np.random.default_rng(0)

    def episode() -> Episode:
        obs = {"state": rng.normal(size=(n + 1, 3)).astype(np.float32),
               "images.front": rng.integers(0, 255, (n + 1, 48, 64, 3)).astype(np.uint8),
               "depth.front": rng.integers(300, 900, (n + 1, 48, 64)).astype(np.uint16)}
        return Episode(obs=obs, action=rng.uniform(-1, 1, (n, 2)).astype(np.float32), proposed=np.zeros((n, 2), np.float32),
                       source=(np.arange(n) == 2).astype(np.uint8), reward=np.zeros(n, np.float32), success=np.arange(n) == n - 1,
                       time=np.arange(n) / 10, starts_plan=np.ones(n, bool), terminated=True, truncated=False, task=task,
                       policy="teleop", seed=None)

    Store.create(folder, task=task, fps=10, robot_type="arm").append([episode(), episode()])
    return folder


# -- help and mistakes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["data", command, "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0 and f"example:\n  realrl data {command} " in out


def test_the_list_of_commands_and_their_help_come_at_once() -> None:
    code = ("import sys; from realrl.cli.main import main\n"
            "try: main(sys.argv[1:])\n"
            "except SystemExit: pass\n"
            "print(*sys.modules, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code, "data", "trim", "--help"], env={**os.environ, "PYTHONPATH": str(SOURCE)},
                          capture_output=True, text=True, timeout=60)
    assert "--after-success" in done.stdout
    assert not {"torch", "pyarrow", "av", "numpy", "matplotlib"} & set(done.stderr.split())


@pytest.mark.parametrize(("command", "answer"), [
    ("delete demos", "unknown action 'delete', did you mean 'delete-episodes'?"),
    ("merge a b", "required: --out"),
    ("merge a --out b", "at least two datasets"),
    ("merge nowhere here --out b", "nowhere is not a LeRobot dataset"),
    ("split a --out b", "required: --by"),
    ("trim a --out b --strat 3", "unknown option '--strat', did you mean '--start'?"),
    ("trim a --out b --start -3", "must be a whole number of at least 0"),
    ("trim a --out b --keep 3", "--keep '3' is not understood; write EPISODE=FIRST:STOP"),
    ("trim a --out b --start 1 --episodes 3:1", "write them as 3,7,10:20"),
    ("delete-episodes a --out b", "which episodes? give --episodes LIST or --failed"),
    ("check a --limits 1 0", "the lower limit comes first"),
    ("repair nowhere", "nowhere is not a dataset"),
    ("info nowhere --html", "nowhere is not a LeRobot dataset"),
    ("replay nowhere --task toy/line", "nowhere is not a LeRobot dataset"),
    ("export nowhere --format robomimic --out x.hdf5", "nowhere is not a LeRobot dataset"),
    ("import nowhere --out b", "nowhere does not exist"),
    ("import file --out b", "is in none of the formats known here"),
    ("import file --out b", "say which one with --format"),
    ("import file --out b --format robomimc", "there is no format 'robomimc'"),
    ("import file --out b --format robomimic --option success", "--option 'success' is not understood"),
    ("import file --out b --format robomimic --option sucess=true", "robomimic has no option 'sucess'"),
    ("import file --out b --codec h265", "did you mean 'h264'?"),
])
def test_a_mistake_gets_one_line_and_leaves_nothing(command: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("hello")
    told = fails(capsys, *command.split())
    assert answer in told, told
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# -- examining ----------------------------------------------------------------------------------------------------------------------


def test_check_as_json(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run(capsys, "check", recorded, "--json")) == {"path": str(recorded), "errors": 0, "warnings": 0, "problems": []}
    told = json.loads(run(capsys, "check", recorded, "--json", "--limits", "-0.1", "0.1"))
    assert told["warnings"] >= 1 and "leaves [-0.1, 0.1]" in told["problems"][0]["what"]
    Store.create(tmp_path / "d", task="t", fps=10).append(Store.open(recorded).read([0]))
    data, = (tmp_path / "d").glob("data/*/*.parquet")
    data.unlink()
    told = json.loads(run(capsys, "check", tmp_path / "d", "--json", code=1))
    assert told["errors"] == 1 and told["problems"][0]["where"] == str(data)


def test_check_looks_into_pictures_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = filmed(tmp_path / "d")
    path = next(folder.rglob("observation.images.front/**/*.mp4"))
    data = bytearray(path.read_bytes())
    start = data.index(list(video.packets(path))[3].data)
    data[start:start + 10] = b"\xff" * 10
    path.write_bytes(bytes(data))
    run(capsys, "check", folder)
    assert path.name in run(capsys, "check", folder, "--images", code=1)


def test_repair_says_what_it_does(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "repair", recorded) == f"{recorded}: nothing to repair\n"
    folder = tmp_path / "d"
    store = Store.create(folder, task="toy/obstacle", fps=10)
    for e in Store.open(recorded).read([0, 1, 2]):
        store.append([e])
    sorted(folder.glob("data/*/*.parquet"))[1].unlink()
    out = run(capsys, "repair", folder, "--dry-run", code=1)
    assert "episode 1 is dropped: data/chunk-000/file-001.parquet is missing" in out and "nothing was changed" in out
    out = run(capsys, "repair", folder)
    assert "2 episodes, 1 dropped, 0 errors left; what was before is in" in out and check(folder) == []
    assert run(capsys, "repair", folder) == f"{folder}: nothing to repair\n"


def test_info_as_json_and_as_a_page(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads(run(capsys, "info", recorded, "--json"))
    assert about["episodes"] == len(Store.open(recorded)) and about["tasks"] == ["toy/obstacle"]
    out = run(capsys, "info", recorded, "--html")
    page = recorded.with_name("demos.html")
    assert out.endswith(f"page: {page.resolve()}\n")
    text = page.read_text()
    assert "Nothing was found." in text and "observation.state" in text and text.count("data:image/svg+xml") >= 4
    assert f"{about['episodes']:,} episodes of “toy/obstacle”" in text and "http" not in text.replace("http://www.w3.org", "")
    run(capsys, "info", recorded, "--html", tmp_path / "x" / "page.html")
    assert (tmp_path / "x/page.html").is_file()


def test_the_page_shows_pictures_and_is_not_fooled_by_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "<script>alert('x')</script> & \"quotes\" $\\frac{1}{2}$ " + "long " * 100
    folder = filmed(tmp_path / "<b>d&", task=evil)
    run(capsys, "info", folder, "--html", tmp_path / "page.html", "--pictured", "1")
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and "<b>d" not in text and "&lt;script&gt;" in text and "&lt;b&gt;d&amp;" in text
    assert text.count("data:image/jpeg;base64,") == 2 * 3 and "of 1 of the 2 episodes" in text
    next(folder.rglob("observation.images.front/**/*.mp4")).unlink()
    run(capsys, "info", folder, "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 2 * 3 and "is missing" in text


def test_brackets_in_names_are_no_styles(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "monday[/b]:door:[red]"
    shutil.copytree(recorded, place)
    for command in ("info", "replay"):
        more = ("--task", "toy/obstacle", "--episodes", "0:1") if command == "replay" else ()
        assert str(place.name) in "".join(run(capsys, command, place, *more).split("\n")[:2])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name of a file is text")
def test_a_name_that_is_no_text_is_not_damage(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller"))
    shutil.copytree(recorded, place)
    for command in ("info", "check", "repair"):
        assert "M\\udcfcller: its name is not in UTF-8" in fails(capsys, command, place)
    with pytest.raises(RealrlError, match="not in UTF-8"):
        repair(place)
    with pytest.raises(RealrlError, match="not in UTF-8"):
        Store.open(place)
    child = subprocess.run([sys.executable, "-m", "realrl", "data", "info", place.name], cwd=tmp_path, capture_output=True,
                           env={**os.environ, "PYTHONPATH": str(SOURCE)})
    assert child.returncode == 2 and b"not in UTF-8" in child.stderr


def test_what_a_terminal_cannot_show_is_spelt_out(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "Müller")
    told = subprocess.run([sys.executable, "-m", "realrl", "data", "info", "Müller"], cwd=tmp_path, capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(SOURCE)})
    assert told.returncode == 0 and b"M\\xfcller" in told.stdout, told


def test_the_page_of_an_empty_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store.create(tmp_path / "d", task="t", fps=10)
    run(capsys, "info", tmp_path / "d", "--html")
    assert "0 episodes" in (tmp_path / "d.html").read_text()


def test_replay_repeats_what_was_recorded_and_sees_what_was_not(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(run(capsys, "replay", recorded, "--task", "toy/obstacle", "--episodes", "1,3", "--json"))
    assert [e["episode"] for e in told["episodes"]] == [1, 3] and told["beyond"] == 0
    assert all(e["largest"] < 1e-5 and e["success_recorded"] == e["success_replayed"] for e in told["episodes"])
    wrong = Store.open(recorded).read([0, 1])
    wrong[1].action = -wrong[1].action
    Store.create(tmp_path / "d", task="toy/obstacle", fps=10).append(wrong)
    out = run(capsys, "replay", tmp_path / "d", "--task", "toy/obstacle", code=1)
    assert "step 1" in out and "1 of 2 episodes stay within 0.001" in out
    assert "there is no number 99" in fails(capsys, "replay", recorded, "--task", "toy/obstacle", "--episodes", "99")


# -- editing ------------------------------------------------------------------------------------------------------------------------


def test_edits_from_the_command_line(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everyone = Store.open(recorded).read()
    good = [e for e in everyone if e.succeeded]
    out = run(capsys, "delete-episodes", recorded, "--failed", "--out", tmp_path / "good")
    assert out == f"{tmp_path / 'good'}: {len(good)} episodes, {sum(map(len, good))} control steps\n"
    out = run(capsys, "split", recorded, "--by", "train=0.75,test=0.25", "--shuffle", "0", "--out", tmp_path / "parts")
    assert out.count("episodes") == 2 and {p.name for p in (tmp_path / "parts").iterdir()} == {"train", "test"}
    run(capsys, "merge", tmp_path / "parts/train", tmp_path / "parts/test", "--out", tmp_path / "again")
    key = lambda e: (e.seed, e.action.tobytes())
    assert sorted(map(key, Store.open(tmp_path / "again").read())) == sorted(map(key, everyone))
    run(capsys, "trim", tmp_path / "good", "--start", "2", "--keep", "1=0:5", "2=1:4", "--episodes", "0:3", "--out", tmp_path / "short")
    lengths = [len(e) for e in Store.open(tmp_path / "short").read()]
    assert lengths == [len(good[0]) - 2, 5, 3, *(len(e) for e in good[3:])]
    for folder in ("good", "parts/train", "again", "short"):
        assert [p for p in check(tmp_path / folder) if p.severity == "error"] == []
    assert "not empty; choose a new folder" in fails(capsys, "merge", recorded, recorded, "--out", tmp_path / "good")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    told = fails(capsys, "merge", recorded, recorded, "--out", tmp_path / "locked" / "out")
    assert "could not be written (Permission denied)" in told


def test_a_full_disk_gets_one_line(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for args in (("merge", recorded, recorded, "--out", tmp_path / "out"), ("import", recorded, "--out", tmp_path / "out")):
        assert "No space left on device" in fails(capsys, *args)
    assert list(tmp_path.iterdir()) == []


# -- other formats ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("robomimic", "demos.hdf5"), ("diffusion_policy", "demos.zarr.zip")])
def test_there_and_back_in_another_format(kind: str, name: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py" if kind == "robomimic" else "zarr")
    out = run(capsys, "export", recorded, "--format", kind, "--out", tmp_path / name, "--episodes", "0:4")
    assert f"4 episodes in the format {kind}" in out
    out = run(capsys, "import", tmp_path / name, "--out", tmp_path / "back", "--fps", "10", "--task", "again")
    assert f"{tmp_path / 'back'}: 4 episodes" in out
    for a, b in zip(Store.open(tmp_path / "back").read(), Store.open(recorded).read(range(4)), strict=True):
        assert np.allclose(a.action, b.action, atol=1e-6) and np.allclose(a.obs["state"], b.obs["state"], atol=1e-6)
    assert "exists" in fails(capsys, "export", recorded, "--format", kind, "--out", tmp_path / name)
    assert "not empty" in fails(capsys, "import", tmp_path / name, "--out", tmp_path / "back")


def test_a_dataset_is_imported_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = filmed(tmp_path / "d")
    run(capsys, "import", folder, "--out", tmp_path / "copy", "--codec", "h264")
    old, new = Store.open(folder).read(), Store.open(tmp_path / "copy").read()
    assert [e.task for e in new] == [e.task for e in old] and (new[1].obs["depth.front"] == old[1].obs["depth.front"]).all()
    info: dict[str, Any] = Store.open(tmp_path / "copy").info["features"]["observation.images.front"]["info"]
    assert info["video.codec"] == "h264" and Store.open(tmp_path / "copy").info["robot_type"] == "arm"
    run(capsys, "import", folder, "--out", tmp_path / "same", "--task", "other")
    for a, b in zip(Store.open(tmp_path / "same").read(), old, strict=True):  # packets are copied, the last picture's with them
        assert a.task == "other" and all((a.obs[key] == b.obs[key]).all() for key in b.obs)
    assert "no option 'fps'" in fails(capsys, "import", folder, "--out", tmp_path / "x", "--fps", "20")


def test_an_import_that_breaks_off_leaves_nothing(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    calls = [0]
    append = Store.append

    def interrupted(self: Store, episodes: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] > 1:
            raise KeyboardInterrupt
        return append(self, episodes[:1])

    monkeypatch.setattr(Store, "append", interrupted)
    monkeypatch.setattr("realrl.cli.data.foreign.GROUP", 2)
    assert cli.main(["data", "import", str(recorded), "--out", str(tmp_path / "out")]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "key", "shape"), [("pointcloud", "pointcloud", (40, 6)), ("rgb", "images.top", (24, 32, 3))])
def test_demonstrations_with_eyes(tmp_path: Path, kind: str, key: str, shape: tuple[int, ...]) -> None:
    options = ["--task", "toy/reach", "--episodes", "2", "--workers", "1", "--sight", kind, "--size", "24", "32", "--points", "40"]
    if kind == "rgb" and not (gl.egl_works() or gl.osmesa_works()):
        pytest.skip(f"needs OpenGL: apt-get install {gl.PACKAGES}")
    assert cli.main(["data", "demos", *options, "--colour", "--out", str(tmp_path / "seen")]) == 0
    seen = Store.open(tmp_path / "seen").read(images=True)
    assert len(seen) == 2 and all(e.succeeded and e.obs[key].shape[1:] == shape and e.obs["state"].shape[1:] == (2,) for e in seen)
    assert cli.main(["data", "demos", *options, "--cameras", "nope", "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_demonstrations_from_the_hand(tmp_path: Path) -> None:
    options = ["--task", "toy/reach", "--episodes", "1", "--workers", "1", "--sight", "pointcloud", "--points", "8"]
    for frame in ("world", "hand"):
        assert cli.main(["data", "demos", *options, "--frame", frame, "--out", str(tmp_path / frame)]) == 0
    (world,), (hand,) = (Store.open(tmp_path / frame).read() for frame in ("world", "hand"))
    moved = world.obs["pointcloud"][..., :2] - hand.obs["pointcloud"][..., :2]
    assert np.allclose(moved, world.obs["state"][:, None], atol=1e-6)

"""Pickles are read as data: what they hold comes out, what they would do does not happen."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl.data import formats
from realrl.data.formats.pickles import door_qpos
from realrl.data.formats.unpickle import load
from realrl.types import RealrlError, Source


def saved(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol=protocol))
    return path


# ---- the machine

ARRAYS = {"c": np.arange(6.0).reshape(2, 3), "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)), "scalar": np.float32(3.5),
          "bool": np.bool_(True), "text": np.array(["a", "bc"]), "bytes": np.array([b"x"]), "empty": np.zeros((0, 3)),
          "big endian": np.arange(3, dtype=">i4"), "no axes": np.zeros(()), "long": np.arange(1000),
          "uint8": np.arange(256, dtype=np.uint8)}
PLAIN: dict[str, Any] = {"int": -5, "large": 2**70, "tuple": (1, 2.5, None, True, False), "ordered": collections.OrderedDict(a=1),
                         "text": "é\n'\"", "bytes": b"\x00\xff", "nested": [[], [{"x": [1]}]], "one byte": 255, "four bytes": 70000,
                         "many": list(range(300)), "long text": "x" * 300}


@pytest.mark.parametrize("protocol", range(6))
def test_everything_that_recordings_hold_comes_back(tmp_path: Path, protocol: int) -> None:
    shared = np.arange(3)
    back = load(saved(tmp_path / "a.pkl", {"arrays": ARRAYS, "plain": PLAIN, "twice": [shared, shared]}, protocol))
    assert back["plain"] == PLAIN
    for name, x in ARRAYS.items():
        np.testing.assert_array_equal(back["arrays"][name], x)
        assert back["arrays"][name].dtype == x.dtype and np.shape(back["arrays"][name]) == np.shape(x)
    np.testing.assert_array_equal(back["twice"], [shared, shared])


def test_python_2_wrote_array_bytes_as_text(tmp_path: Path) -> None:
    """What Python 2 writes for {'a': array([1.5, -2.])}: strings where Python 3 has bytes, in both of its forms."""
    data = np.array([1.5, -2.0]).tobytes()
    for head, body in ((b"U\x01b", b"U\x10" + data),
                       (b"S'b'\n", b"S'" + "".join(f"\\x{b:02x}" for b in data).encode() + b"'\n")):
        raw = (b"(dS'a'\ncnumpy.core.multiarray\n_reconstruct\np1\n(cnumpy\nndarray\n(I0\nt" + head + b"tR(I1\n(I2\ntcnumpy\ndtype\n"
               b"(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n" + body + b"tbs.")
        np.testing.assert_array_equal(load(saved(tmp_path / "two.pkl", raw))["a"], [1.5, -2.0])


class Runs:
    """Unpickled, it would call `function(*args)`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = {
    "os.system": pickle.dumps(Runs(os.system, "touch mark")), "eval": pickle.dumps(Runs(eval, "open('mark', 'w')")),
    "getattr": pickle.dumps(Runs(getattr, "x", "upper")), "np.load": pickle.dumps(Runs(np.load, "mark")),
    "np.testing": b"cnumpy.testing._private.utils\nrunstring\n(S'open(\"mark\", \"w\")'\n}tR.",
    "numpy by dots": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.", 
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
    "module of a name": b"cnumpy\ncore.multiarray._reconstruct\n.", "old instance": b"(S'id'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'id'\no.", "inside an array": b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\n(I0\ntS'b'\ntR.",
    "extension 1": b"\x80\x02\x82\x01.", "extension 2": b"\x80\x02\x83\x01\x00.", "extension 4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "persistent": b"Pid\n.", "persistent binary": b"K\x01Q.", "next buffer": b"\x80\x05\x97.", "set": pickle.dumps({1, 2}),
    "new object": pickle.dumps(Path("x")), "object array": pickle.dumps(np.array([Runs(os.system, "id"), None], dtype=object)),
    "plain object array": pickle.dumps(np.array([1, "a"], dtype=object)), "records": pickle.dumps(np.zeros(2, "i4,f8")),
    "date": pickle.dumps(np.array(["2020-01-01"], "M8[D]")),
    "attribute of a function": b"cnumpy.core.multiarray\nscalar\n}S'call'\ncnumpy\ndtype\nsb.",
    "ndarray called": b"cnumpy\nndarray\n((I9\ntS'f8'\ntR.",
    "calls a list": b"](tR.", "calls an array's dtype": b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(tR.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_ever_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)  # where those that write would leave their mark
    with pytest.raises(RealrlError) as error:
        load(saved(tmp_path / "bad.pkl", HOSTILE[name]))
    assert "\n" not in str(error.value) and "bad.pkl" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pkl"]


def test_the_hostile_files_would_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of the check above: the standard library's reader runs them."""
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "eval"):
        pickle.loads(HOSTILE[name])
        (tmp_path / "mark").unlink()


def test_the_refusal_names_what_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RealrlError, match=r"'posix'\.'system'|'nt'\.'system'"):
        load(saved(tmp_path / "bad.pkl", Runs(os.system, "id")))


def array_of(shape: tuple[int, ...], dtype: str = "f8", data: bytes = b"") -> bytes:
    """A pickle of an array that says `shape` and holds `data`."""
    sizes = b"".join(b"L%dL\n" % n for n in shape)
    return (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + sizes + b"tC\x01btR(I1\n(" + sizes + b"tcnumpy\ndtype\n(S'"
            + dtype.encode() + b"'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nB" + struct.pack("<I", len(data)) + data + b"tb.")


BOMBS = {
    "memo": b"Nr\xff\xff\xff\x7f", "bytes": b"B\xff\xff\xff\xff.", "bytes 8": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "text 8": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".", "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".", "long": b"\x8b\xff\xff\xff\x7f.", "negative long": b"\x8b\xff\xff\xff\xff.",
    "digits": b"L" + b"9" * 100_000 + b"L\n.", "shape": array_of((2**31, 2**31)), "huge": array_of((2**39,)),
    "no bytes a row": array_of((2**39, 0)), "width 0": array_of((2**39,), "S0"), "sub-array": array_of((2,), "(9999999,)f8"),
    "overflow": array_of((2**33, 2**33)), "negative": array_of((-1,)), "axes": array_of((1,) * 40, data=bytes(8)),
    "line without end": b"S'" + b"x" * 10_000, "deep key": b"}" + b")" + b"\x85" * 50_000 + b"Ns.",
    "python's own names": b"c" + b"x" * 100_000 + b"\ny\n.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_sizes_beyond_the_file_are_refused_before_memory_is_taken(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "bomb.pkl", BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(RealrlError) as error:
            load(path)
        assert len(str(error.value)) < 400 and tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_depth_is_no_danger(tmp_path: Path) -> None:
    x = load(saved(tmp_path / "deep.pkl", b"]" * 100_000 + b"a" * 99_999 + b"."))
    assert isinstance(x, list)


def test_every_cut_and_no_file_at_all_are_one_line(tmp_path: Path) -> None:
    whole = pickle.dumps([{"a": np.arange(3.0), "b": "text"}])
    for n in range(len(whole)):
        with pytest.raises(RealrlError):
            load(saved(tmp_path / "cut.pkl", whole[:n]))
    with pytest.raises(RealrlError, match="not a file"):
        load(tmp_path)
    with pytest.raises(RealrlError, match="not a file"):
        load(tmp_path / "absent.pkl")


# ---- DAPG


def demonstrations(n: int = 3, steps: int = 7) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"observations": rng.normal(size=(steps, 5)), "actions": rng.normal(size=(steps, 2)), "rewards": np.arange(steps) * 1.0,
             "init_state_dict": {"qpos": rng.normal(size=4), "qvel": np.zeros(4)}} for _ in range(n)]


def test_dapg_episodes(tmp_path: Path) -> None:
    raw = demonstrations()
    path = saved(tmp_path / "pen-v0_demos.pickle", raw, 2)
    assert formats.detect(path) == "pickle"
    read = formats.read(path)
    assert (read.task, read.fps, read.count) == ("pen-v0", 100, 3) and any("clip=True" in n for n in read.notes)
    for episode, told in zip(read.episodes, raw, strict=True):
        assert len(episode) == 7 and (episode.source == Source.HUMAN).all() and episode.truncated and not episode.succeeded
        np.testing.assert_allclose(episode.obs["state"], np.concatenate([told["observations"], told["observations"][-1:]]), rtol=1e-6)
        np.testing.assert_allclose(episode.action, told["actions"], rtol=1e-6)
        np.testing.assert_array_equal(episode.extra["init_qpos"], told["init_state_dict"]["qpos"])
        np.testing.assert_allclose(episode.reward, told["rewards"])
    clipped = list(formats.read(path, clip=True, last="drop", success=True, task="spin", fps=50).episodes)
    assert np.abs(clipped[0].action).max() <= 1 and len(clipped[0]) == 6 and clipped[0].succeeded and clipped[0].task == "spin"


@pytest.mark.parametrize("change", [
    {"actions": np.zeros((6, 2))}, {"actions": np.zeros(7)}, {"actions": [1, 2]}, {"observations": np.zeros((0, 5))},
    {"rewards": np.zeros(3)}, {"rewards": "none"}, {"actions": np.zeros((7, 2), complex)}, {"observations": np.array(["a"] * 7)},
    {"init_state_dict": {"../x": np.zeros(2)}}, {"init_state_dict": {"qpos": "a"}}])
def test_dapg_files_with_wrong_columns_are_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    raw = demonstrations(2)
    raw[1] |= change
    with pytest.raises(RealrlError, match="episode 1"):
        list(formats.read(saved(tmp_path / "a.pickle", raw)).episodes)


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    for value in ({}, [], 3, [1], [{"a": 1}], None):
        with pytest.raises(RealrlError, match="DAPG"):
            formats.read(saved(tmp_path / "a.pkl", value))


def test_a_small_file_that_names_one_array_often_is_refused(tmp_path: Path) -> None:
    one = demonstrations(1, 5000)[0]
    with pytest.raises(RealrlError, match="repeats itself"):
        formats.read(saved(tmp_path / "a.pkl", [one] + [dict(one) for _ in range(10_000)]))


def test_human_door_demonstrations(shared_data: Path) -> None:
    """The published file: as its npz copy, and the initial pose that the file lacks follows from the first observation."""
    folder = shared_data / "adroit_hand_dapg"
    read = formats.read(folder / "demonstrations" / "door-v0_demos.pickle")
    episodes, told = list(read.episodes), np.load(folder / "door_human.npz")
    assert len(episodes) == 25 and sum(map(len, episodes)) == 6729 and any("5.6 %" in n for n in read.notes)
    np.testing.assert_array_equal(np.concatenate([e.action for e in episodes]), told["actions"].astype(np.float32))
    np.testing.assert_array_equal(np.concatenate([e.obs["state"][:-1] for e in episodes]), told["observations"].astype(np.float32))
    for i, episode in enumerate(episodes):
        np.testing.assert_allclose(episode.extra["init_qpos"], told["init_qpos_from_obs0"][i], atol=1e-8)
        np.testing.assert_array_equal(episode.extra["init_door_body_pos"], told["init_door_body_pos"][i])


def test_published_policies_are_refused(shared_data: Path) -> None:
    """They are torch modules: reading them would run code."""
    with pytest.raises(RealrlError, match=r"'mjrl\.policies\.gaussian_mlp'\.'MLP'"):
        formats.read(shared_data / "adroit_hand_dapg" / "policies" / "door-v0.pickle")


def test_the_arms_slide_follows_from_the_palm() -> None:
    """Moving the palm along the slide's axis moves the slide by as much, whatever the other joints are."""
    obs = np.random.default_rng(0).uniform(-0.3, 0.3, 39)
    axis = np.array([0.0, 1.0, 0.0])  # the forearm lies along the table
    further = obs.copy()
    further[29:32] += 0.1 * axis
    assert abs(door_qpos(further)[0] - door_qpos(obs)[0]) == pytest.approx(0.1, abs=1e-3)
    np.testing.assert_array_equal(door_qpos(obs)[1:28], obs[:27])


# ---- HIL-SERL


def transitions(episodes: int = 3, steps: int = 5, *, infos: bool = True, history: bool = True) -> list[dict[str, Any]]:
    """As its recorder of demonstrations writes them: a person acts in the second half, the last step of each episode succeeds."""
    rng, out = np.random.default_rng(1), []
    lead = (1,) if history else ()
    for _ in range(episodes):
        obs = [{"state": rng.normal(size=(*lead, 7)).astype(np.float32), "wrist_1": rng.integers(0, 255, (*lead, 16, 16, 3), np.uint8)}
               for _ in range(steps + 1)]
        for t in range(steps):
            end, hand = t == steps - 1, t >= steps // 2
            action = rng.uniform(-1, 1, 4) if hand else np.zeros(4)
            info: dict[str, Any] = {"succeed": end, "grasp_penalty": -0.02 if t == 1 else 0.0}
            step = {"observations": obs[t], "actions": action, "next_observations": obs[t + 1], "rewards": np.float64(end),
                    "masks": 1.0 - end, "dones": end}
            out.append(step | {"infos": info | ({"intervene_action": action} if hand else {})} if infos else step)
    return out


@pytest.mark.parametrize("history", [True, False])
def test_hil_serl_demonstrations(tmp_path: Path, history: bool) -> None:
    raw = transitions(history=history)
    read = formats.read(saved(tmp_path / "usb_20_demos.pkl", raw))
    assert (read.fps, read.count, read.meta["layout"]) == (10, 3, "HIL-SERL")
    episodes = list(read.episodes)
    for number, episode in enumerate(episodes):
        rows = raw[5 * number:5 * number + 5]
        assert episode.source.tolist() == [Source.POLICY] * 2 + [Source.HUMAN] * 3 and episode.terminated and episode.succeeded
        assert episode.success.tolist() == [False] * 4 + [True] and episode.reward.tolist() == [0, 0, 0, 0, 1]
        frames = [r["observations"] for r in rows] + [rows[-1]["next_observations"]]
        for key, name in (("state", "state"), ("wrist_1", "images.wrist_1")):
            np.testing.assert_array_equal(episode.obs[name], [f[key][0] if history else f[key] for f in frames])
        np.testing.assert_allclose(episode.action, [r["actions"] for r in rows], rtol=1e-6)
        np.testing.assert_allclose(episode.extra["grasp_penalty"], [0, -0.02, 0, 0, 0])
    assert list(next(formats.read(tmp_path / "usb_20_demos.pkl", images=False).episodes).obs) == ["state"]


@pytest.mark.parametrize("history", [True, False])
def test_hil_serl_pictures_that_lie_channels_first_and_clouds(tmp_path: Path, history: bool) -> None:
    raw = transitions(history=history)
    rng = np.random.default_rng(0)
    seen = {id(o): o for r in raw for o in (r["observations"], r["next_observations"])}
    for one in seen.values():
        one["cloud"] = rng.normal(size=(20, 3)).astype(np.float32)
        one["wrist_1"] = np.moveaxis(one["wrist_1"], -1, -3)
    episode = next(formats.read(saved(tmp_path / "a.pkl", raw)).episodes)
    first = raw[0]["observations"]
    np.testing.assert_array_equal(episode.obs["images.wrist_1"][0], np.moveaxis(first["wrist_1"].reshape(3, 16, 16), 0, 2))
    np.testing.assert_array_equal(episode.obs["pointcloud"][0], first["cloud"])


@pytest.mark.parametrize(("most", "bright", "other"), [(200.0, 1, 200), (0.5, 255, 128)])
def test_hil_serl_floats_are_fractions_or_levels_in_a_whole_file(most: float, bright: int, other: int, tmp_path: Path) -> None:
    raw = transitions(episodes=2)
    seen = {id(o): o for r in raw for o in (r["observations"], r["next_observations"])}
    for i, one in enumerate(seen.values()):
        one |= {"wrist_image": np.full((1, 16, 16, 3), 1.0 if i < 8 else most, np.float32), "arms": np.ones((1, 2, 7)),
                "heat": np.ones((1, 40, 40, 3))}  # nothing says that it is a picture, and no row of it is a cloud
    episodes = list(formats.read(saved(tmp_path / "a.pkl", raw)).episodes)
    assert [e.obs["images.wrist_image"][:, 0, 0, 0].tolist() for e in episodes] == [[bright] * 6, [bright] * 2 + [other] * 4]
    assert episodes[0].obs["arms"].shape == (6, 14) and episodes[0].obs["heat"].shape == (6, 4800)


def test_hil_serl_buffers_have_no_infos(tmp_path: Path) -> None:
    """A training buffer: steps missing in between (the person's only) end a piece, and who acted follows from the folder's name."""
    raw = transitions(2, infos=False)
    del raw[2]
    raw[-1] |= {"rewards": 0.0}  # the clock ended the second one
    for folder, who in (("buffer", Source.POLICY), ("demo_buffer", Source.HUMAN)):
        (tmp_path / folder).mkdir()
        read = formats.read(saved(tmp_path / folder / "transitions_1000.pkl", raw), fps=20, task="plug")
        lost, first, second = read.episodes
        assert [len(e) for e in (lost, first, second)] == [2, 2, 5] and any("1 of 3 pieces" in n for n in read.notes)
        assert (lost.terminated, lost.truncated) == (False, True) and (first.terminated, first.succeeded) == (True, True)
        assert (second.terminated, second.truncated, second.succeeded) == (False, True, False)
        assert (second.source == who).all() and second.task == "plug" and second.time[1] == pytest.approx(0.05)


@pytest.mark.parametrize(("change", "says"), [
    ({"actions": None}, "actions"), ({"actions": np.zeros(9)}, "shape"), ({"rewards": np.zeros(2)}, "rewards"), ({"dones": "no"}, "dones"),
    ({"observations": 3}, "observations"), ({"observations": {"state": [1, 2]}}, "array of numbers"),
    ({"observations": {"../x": np.zeros(3)}}, "can not be the name"), ({"next_observations": {"state": np.zeros((1, 3))}}, "shape"),
    ({"infos": {"succeed": "yes"}}, "succeed")])
def test_hil_serl_files_with_wrong_values_are_one_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    raw = transitions(1)
    raw[4] |= change
    with pytest.raises(RealrlError, match=says):
        list(formats.read(saved(tmp_path / "a.pkl", raw)).episodes)
    del raw[3]["rewards"]
    with pytest.raises(RealrlError, match="transition 3 has no rewards"):
        formats.read(saved(tmp_path / "a.pkl", raw))

"""RLDS without TensorFlow: record files, Examples and the features that say what is in them."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from realrl.data import formats
from realrl.data.formats.tfrecord import example, masked_crc, records
from realrl.types import Array, RealrlError, Source

# ---- a writer of the public format, for the tests only


def varint(n: int) -> bytes:
    n &= 2**64 - 1
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def feature(values: Any) -> bytes:
    """A tf.train.Feature of bytes, floats or integers."""
    if isinstance(values, list):
        return field(1, b"".join(field(1, v) for v in values))
    if values.dtype.kind == "f":
        return field(2, field(1, values.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(v)) for v in values.reshape(-1))))


def encoded(columns: Mapping[str, Any]) -> bytes:
    return field(1, b"".join(field(1, field(1, k.encode()) + field(2, feature(v))) for k, v in columns.items()))


def frame(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + struct.pack("<I", masked_crc(length)) + record + struct.pack("<I", masked_crc(record))


def leaf(dtype: str, shape: Sequence[int] = (), kind: str = "tensor", encoding: str = "none") -> dict[str, Any]:
    return {"pythonClassName": "x", kind: {"dtype": dtype, "shape": {"dimensions": [str(n) for n in shape]}, "encoding": encoding}}


def nested(features: Mapping[str, Any]) -> dict[str, Any]:
    return {"pythonClassName": "x", "featuresDict": {"features": dict(features)}}


def described(steps: Mapping[str, Any]) -> dict[str, Any]:
    return nested({"steps": {"pythonClassName": "x", "sequence": {"feature": nested(steps), "length": "-1"}}})


def png(x: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(x).save(file, "PNG")
    return file.getvalue()


RNG = np.random.default_rng(0)
STEPS = 4
PICTURES = RNG.integers(0, 255, (STEPS, 8, 6, 3), np.uint8)
DEPTH = RNG.integers(0, 60000, (STEPS, 8, 6), np.uint16)
MATRIX = RNG.normal(size=(STEPS, 2, 3))
FEATURES = described({
    "observation": nested({"state": leaf("float32", (3,)), "image": leaf("uint8", (8, 6, 3), "image"),
                           "depth": leaf("uint16", (8, 6, 1), "image"), "counter": leaf("int64", (2,)),
                           "deflated": leaf("float64", (2, 3), encoding="zlib")}),
    "action": nested({"arm": leaf("float32", (2,)), "open": leaf("bool")}), "reward": leaf("float32"), "is_first": leaf("bool"),
    "is_last": leaf("bool"), "is_terminal": leaf("bool"), "language_instruction": {"pythonClassName": "Text", "text": {}}})


def columns() -> dict[str, Any]:
    last = np.arange(STEPS) == STEPS - 1
    return {"steps/observation/state": np.arange(3.0 * STEPS, dtype=np.float32), "steps/observation/image": [png(x) for x in PICTURES],
            "steps/observation/depth": [png(x) for x in DEPTH], "steps/observation/counter": np.arange(2 * STEPS) * 10**12 - 3,
            "steps/observation/deflated": [zlib.compress(x.tobytes()) for x in MATRIX],
            "steps/action/arm": np.linspace(-1, 1, 2 * STEPS, dtype=np.float32), "steps/action/open": np.ones(STEPS, bool),
            "steps/reward": last.astype(np.float32), "steps/is_first": np.arange(STEPS) == 0, "steps/is_last": last,
            "steps/is_terminal": last,
            "steps/language_instruction": [b"put the cup away"] * STEPS}


def folder(path: Path, *episodes: Mapping[str, Any], features: Any = FEATURES, name: str = "cups-train.tfrecord-00000-of-00001") -> Path:
    path.mkdir(exist_ok=True)
    (path / "features.json").write_text(json.dumps(features))
    (path / name).write_bytes(b"".join(frame(encoded(e)) for e in episodes))
    return path


# ---- pieces


def test_checksum_of_the_standard() -> None:
    """Known answers of CRC-32C (RFC 3720, B.4), masked as record_writer.h says."""
    for data, known in ((bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E), (b"123456789", 0xE3069283)):
        assert masked_crc(data) == ((known >> 15 | known << 17) + 0xA282EAD8) % 2**32


def test_examples_packed_and_not() -> None:
    numbers = np.array([0, 1, 127, 128, 2**40, -1, -2**63, 2**63 - 1])
    out = example(encoded({"i": numbers, "f": np.array([1.5, -2], np.float32), "b": [b"", b"xy"], "none": np.zeros(0, np.float32)}), "here")
    np.testing.assert_array_equal(out["i"], numbers)
    np.testing.assert_array_equal(out["f"], [1.5, -2])
    assert [bytes(x) for x in out["b"]] == [b"", b"xy"] and not len(out["none"])
    loose = field(1, field(1, field(1, b"i") + field(2, field(3, b"".join(varint(8) + varint(int(n)) for n in (3, 300))))))
    np.testing.assert_array_equal(example(loose, "here")["i"], [3, 300])


@pytest.mark.parametrize("raw", [b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x08\x01\x0a\x05ab", b"\x0b",
                                 b"\x0a\x02\x08\x01",
                                 field(1, field(1, field(1, b"i") + field(2, field(3, field(1, b"\xff"))))),
                                 field(1, field(1, field(1, b"f") + field(2, field(2, field(1, b"abc"))))),
                                 field(1, field(1, field(1, b"f") + field(2, field(9, b"abc"))))])
def test_what_is_no_example_is_one_line(raw: bytes) -> None:
    with pytest.raises(RealrlError, match="here"):
        example(raw, "here")


# ---- whole datasets


def test_every_kind_of_feature(tmp_path: Path) -> None:
    path = folder(tmp_path / "cups", columns(), columns())
    assert formats.detect(path) == formats.detect(path / "cups-train.tfrecord-00000-of-00001") == "rlds"
    read = formats.read(path, source="policy")
    assert read.fps == 5 and any("fps=" in n for n in read.notes)
    first, _ = read.episodes
    assert first.task == "put the cup away" and first.terminated and first.succeeded and (first.source == Source.POLICY).all()
    repeated = [0, 1, 2, 3, 3]
    np.testing.assert_array_equal(first.obs["images.image"], PICTURES[repeated])
    np.testing.assert_array_equal(first.obs["depth.depth"], DEPTH[repeated])
    np.testing.assert_array_equal(first.obs["counter"], (np.arange(8) * 10**12 - 3).reshape(4, 2)[repeated])
    np.testing.assert_allclose(first.obs["deflated"], MATRIX.reshape(4, 6)[repeated], rtol=1e-6)
    np.testing.assert_allclose(first.action, np.c_[np.linspace(-1, 1, 8).reshape(4, 2), np.ones(4)], rtol=1e-6)
    np.testing.assert_array_equal(first.reward, [0, 0, 0, 1])


def test_pictures_and_clouds_that_are_tensors(tmp_path: Path) -> None:
    pictures, cloud = RNG.integers(0, 255, (STEPS, 3, 10, 12), np.uint8), RNG.normal(size=(STEPS, 40, 3)).astype(np.float32)
    features = described({"observation": nested({"rgb": leaf("uint8", (3, 10, 12)), "cloud": leaf("float32", (40, 3))}),
                          "action": leaf("float32", (2,)), "is_first": leaf("bool")})
    raw = {"steps/observation/rgb": pictures.reshape(-1).astype(np.int64), "steps/observation/cloud": cloud.reshape(-1),
           "steps/action": np.ones(2 * STEPS, np.float32), "steps/is_first": np.arange(STEPS) == 0}
    episode = next(formats.read(folder(tmp_path / "cups", raw, features=features)).episodes)
    np.testing.assert_array_equal(episode.obs["images.rgb"][:-1], np.moveaxis(pictures, 1, 3))
    np.testing.assert_array_equal(episode.obs["pointcloud"][:-1], cloud)


def test_a_last_step_without_an_action_is_an_observation(tmp_path: Path) -> None:
    raw = columns()
    raw["steps/action/arm"][-2:], raw["steps/action/open"][-1] = 0, False
    episode = next(formats.read(folder(tmp_path / "cups", raw), fps=3).episodes)
    assert len(episode) == 3 and episode.terminated and episode.succeeded and episode.reward.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(episode.obs["images.image"], PICTURES)


def test_options(tmp_path: Path) -> None:
    path = folder(tmp_path / "cups", columns())
    folder(path, columns(), columns(), name="cups-val.tfrecord-00000-of-00001")
    assert [len(list(formats.read(path, split=s).episodes)) for s in (None, "train", "val")] == [3, 1, 2]
    assert set(next(formats.read(path, images=False).episodes).obs) == {"state", "counter", "deflated"}
    assert "images.image" in next(formats.read(path, cameras=["image"]).episodes).obs
    assert next(formats.read(path, task="mine", action_range=(-2, 2), last="drop").episodes).task == "mine"
    for wrong, says in (({"cameras": ["wrist"]}, "no camera 'wrist'"), ({"split": "test"}, "files of split"), ({"fps": 0}, "fps")):
        with pytest.raises(RealrlError, match=says):
            formats.read(path, **wrong)


@pytest.mark.parametrize(("name", "value", "says"), [
    ("steps/observation/state", np.zeros(5, np.float32), "4 values"), ("steps/observation/state", [b"a"] * 4, "4 values"),
    ("steps/observation/image", [b"nonsense"] * 4, "no readable JPEG"), ("steps/observation/image", [png(PICTURES[0])] * 3, "4 entries"),
    ("steps/observation/image", [png(np.zeros((60, 60, 3), np.uint8))] * 4, "60 x 60"), ("steps/is_first", np.zeros(0, bool), "no steps"),
    ("steps/observation/deflated", [zlib.compress(bytes(10**7))] * 4, "49 bytes where 48"),
    ("steps/observation/deflated", [b"xxx"] * 4, "inflated"), ("steps/action/arm", None, "lacks steps/action/arm")])
def test_wrong_columns_are_one_line(tmp_path: Path, name: str, value: Any, says: str) -> None:
    raw = {k: v for k, v in (columns() | {name: value}).items() if v is not None}
    with pytest.raises(RealrlError, match=says) as error:
        list(formats.read(folder(tmp_path / "cups", raw)).episodes)
    assert "record 0" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("features", "says"), [
    ([], "not described"), (described({}), "no steps/action"), (described({"action": {"pythonClassName": "Audio"}}), "'Audio'"),
    (described({"action": leaf("float32", ("a",))}), "not described"), (nested({"steps": {"sequence": 3}}), "not described"),
    (described({"action": {"tensor": 3}}), "not described")])
def test_features_that_are_not_read(tmp_path: Path, features: Any, says: str) -> None:
    with pytest.raises(RealrlError, match=says):
        formats.read(folder(tmp_path / "cups", columns(), features=features))


def test_tensors_that_are_not_read(tmp_path: Path) -> None:
    for kind, says in ((leaf("float32", (-1,)), "varying size"), (leaf("complex64", (3,)), "complex64")):
        features = described({"action": leaf("float32", (2,)), "observation": nested({"state": kind})})
        path = folder(tmp_path / "cups", columns() | {"steps/action": np.zeros(2 * STEPS, np.float32)}, features=features)
        with pytest.raises(RealrlError, match=says):
            list(formats.read(path).episodes)


def test_every_cut_and_every_flipped_bit_of_a_record_is_noticed(tmp_path: Path) -> None:
    whole, path = frame(b"0123456789"), tmp_path / "a.tfrecord"
    for n in range(1, len(whole)):
        path.write_bytes(whole + whole[:n])
        with pytest.raises(RealrlError, match="download or copy it again"):
            list(records(path))
    for n in range(8 * len(whole)):
        bad = bytearray(whole)
        bad[n // 8] ^= 1 << n % 8
        path.write_bytes(bad)
        with pytest.raises(RealrlError):
            list(records(path))
    path.write_bytes(whole * 2)
    assert list(records(path)) == [b"0123456789"] * 2


def test_a_folder_without_its_features_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "cups", columns())
    (path / "features.json").write_text("{")
    with pytest.raises(RealrlError, match=r"features\.json is not readable"):
        formats.read(path)
    (path / "features.json").unlink()
    with pytest.raises(RealrlError):
        formats.read(path)
    with pytest.raises(RealrlError, match=r"features\.json"):
        formats.read(path, format="rlds")


def test_bridge_episodes(shared_data: Path) -> None:
    read = formats.read(shared_data / "bridge_widowx_debug")
    episodes = list(read.episodes)
    assert len(episodes) == 25 and {len(e) for e in episodes} == {10} and "put carrot on plate" in {e.task for e in episodes}
    first = episodes[0]
    assert first.obs["state"].shape == (11, 7) and first.action.shape == (10, 7) and first.obs["images.image_0"].shape == (11, 64, 64, 3)
    np.testing.assert_allclose(first.obs["state"][-1], [0.23181103, 0.11811563, 0.11631062, 0.04251049, -0.18303297, -0.6925785, 1.0008161])
    assert all(e.obs["images.image_0"].std() > 10 for e in episodes) and first.extra["language_embedding"].shape == (10, 512)


@pytest.mark.parametrize(("paid", "terminal", "judged", "won"), [(1, True, True, True), (0, True, True, False), (0, False, False, False)])
def test_an_episode_that_was_cut_off_and_never_paid_is_unknown(tmp_path: Path, paid: int, terminal: bool, judged: bool, won: bool) -> None:
    told = columns()
    told["steps/reward"], told["steps/is_terminal"] = told["steps/reward"] * paid, told["steps/is_terminal"] & terminal
    (found,) = formats.read(folder(tmp_path / "cups", told)).episodes
    assert (found.judged, found.succeeded) == (judged, won)


@pytest.mark.parametrize(("most", "bright", "other"), [(200.0, 1, 200), (0.5, 255, 128)])
def test_float_pictures_are_fractions_or_levels_in_a_whole_set(most: float, bright: int, other: int, tmp_path: Path) -> None:
    described_so = described({"observation": nested({"image": leaf("float32", (8, 9, 3))}), "action": leaf("float32", (2,))})
    films = [np.ones((3, 8, 9, 3), np.float32), np.full((3, 8, 9, 3), most, np.float32)]
    set_ = folder(tmp_path / "d", *({"steps/observation/image": x.reshape(-1), "steps/action": np.zeros(6, np.float32)} for x in films),
                  features=described_so)
    found = [e.obs["images.image"] for e in formats.read(set_).episodes]
    assert (found[0] == bright).all() and (found[1] == other).all()


def test_one_channel_of_eight_bits_is_grey_and_no_distance(tmp_path: Path) -> None:
    def read(name: str) -> Any:
        features = described({"observation": nested({name: leaf("uint8", (8, 6, 1), "image"), "state": leaf("float32", (1,))}),
                              "action": leaf("float32", (2,))})
        columns = {f"steps/observation/{name}": [png(x[..., 0]) for x in PICTURES], "steps/action": np.zeros(2 * STEPS, np.float32),
                   "steps/observation/state": np.zeros(STEPS, np.float32)}
        return formats.read(folder(tmp_path / name, columns, features=features)).episodes
    grey = next(read("wrist")).obs["images.wrist"]
    assert grey.dtype == np.uint8 and (grey[:-1] == PICTURES[..., :1]).all()
    with pytest.raises(RealrlError, match="distances in 8 bits have no unit"):
        next(read("wrist_depth"))

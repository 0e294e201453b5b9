"""Frames to packets and back: sizes, codecs, timestamps, files joined without encoding, damaged files."""

from __future__ import annotations

import os
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from realrl.data import video
from realrl.data.errors import mend
from realrl.data.video import CODECS, Codec, PacketEncoder
from realrl.types import Array, RealrlError

SIZES = [(48, 64), (31, 33), (7, 9), (96, 96)]


def movie(n: int, height: int, width: int, seed: int = 0) -> Array:
    """Frames whose brightness tells their number, with a gradient so that up is not down."""
    row, column = np.indices((height, width))
    slope = (20 * row / height + 10 * column / width)[..., None] * [1, 0.5, 1]
    return np.stack([np.clip(slope + 15 + 11 * ((t + seed) % 20), 0, 255) for t in range(n)]).astype(np.uint8)


def close(seen: Array, wanted: Array) -> bool:
    """Whether frames are the same but for what encoding loses; a neighbouring frame differs by 11."""
    return bool((np.abs(seen.astype(int) - wanted).reshape(len(seen), -1).mean(1) < 5.4).all())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", SIZES)
def test_frames_come_back_at_their_size(tmp_path: Path, codec: Codec, size: tuple[int, int]) -> None:
    frames = movie(11, *size)
    header = video.encode(tmp_path / "a.mp4", frames, 30, codec)
    seen = video.decode(tmp_path / "a.mp4", np.arange(11) / 30)
    assert seen.shape == frames.shape and seen.dtype == np.uint8 and close(seen, frames)
    assert video.header(tmp_path / "a.mp4") == header
    assert video.probe(tmp_path / "a.mp4") | {"video.encoder": header.encoder} == header.info
    assert (header.info["video.height"], header.info["video.width"], header.info["video.codec"]) == (*size, codec)


def test_depth_is_exact(tmp_path: Path) -> None:
    depth = np.random.default_rng(0).integers(0, 65536, (9, 31, 33)).astype(np.uint16)
    header = video.encode(tmp_path / "d.mp4", depth, 15)
    assert header.depth and header.info["video.is_depth_map"] and header.info["video.channels"] == 1
    order = [8, 0, 0, 3]
    assert (video.decode(tmp_path / "d.mp4", np.array(order) / 15) == depth[order]).all()
    assert video.decode(tmp_path / "d.mp4", []).shape == (0, 31, 33)


@pytest.mark.parametrize("codec", CODECS)
def test_a_packet_comes_out_for_every_frame_and_every_other_is_a_key(codec: Codec) -> None:
    encoder = PacketEncoder(64, 48, 30, codec)
    each = [encoder.encode(frame) for frame in movie(7, 48, 64)]
    packets = [p for out in [*each, encoder.finish()] for p in out]
    assert [len(out) for out in each] == [1] * 7
    assert [p.pts for p in packets] == [p.dts for p in packets] == list(range(7))
    assert [p.key for p in packets] == [t % 2 == 0 or codec == "ffv1" for t in range(7)]


@pytest.mark.parametrize("codec", CODECS)
def test_any_order_of_timestamps(tmp_path: Path, codec: Codec) -> None:
    frames = movie(40, 48, 64)
    video.encode(tmp_path / "a.mp4", frames, 50, codec)
    whole = video.decode(tmp_path / "a.mp4", np.arange(40) / 50)
    for order in ([5, 0, 39, 39, 7], list(range(39, -1, -1)), [1], [0, 20, 21]):
        assert (video.decode(tmp_path / "a.mp4", np.array(order) / 50 + 5e-5) == whole[order]).all()
    assert [round(t * 50) for t, _ in video.frames(tmp_path / "a.mp4", 0.1, 0.2)] == [5, 6, 7, 8, 9]
    assert all((x == whole[round(t * 50)]).all() for t, x in video.frames(tmp_path / "a.mp4"))
    assert np.allclose(video.times(tmp_path / "a.mp4"), np.arange(40) / 50, atol=1e-9)


def test_no_frame_within_the_tolerance(tmp_path: Path) -> None:
    video.encode(tmp_path / "a.mp4", movie(10, 16, 16), 10, "h264")
    for t in (0.05, 0.101, 0.95, 5.0, -0.2, float("nan")):
        with pytest.raises(RealrlError, match=r"a\.mp4"):
            video.decode(tmp_path / "a.mp4", [0.0, t])
    assert close(video.decode(tmp_path / "a.mp4", [0.14], tolerance_s=0.05), movie(10, 16, 16)[1:2])


def test_a_lossless_codec_loses_nothing_whatever_the_size(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 31, 33, 3), np.uint8)
    video.encode(tmp_path / "a.mp4", frames, 30, "ffv1")
    assert (video.decode(tmp_path / "a.mp4", np.arange(5) / 30) == frames).all()


def test_videos_of_others_with_frames_out_of_order_are_read(tmp_path: Path) -> None:
    frames, source = movie(60, 48, 64), tmp_path / "b-frames.mp4"
    with av.open(str(source), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(30), options={"bf": "3", "g": "12", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    assert any(p.pts != p.dts for p in video.packets(source))
    order = [59, 3, 30, 31, 11, 12, 13]
    assert close(video.decode(source, np.array(order) / 30), frames[order])


@pytest.mark.parametrize(("codec", "options"), [
    ("libx265", {"x265-params": "log-level=none:keyint=12:bframes=4:open-gop=1:pools=none:frame-threads=1"}),  # its threads abort at times
    ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"})])
def test_pictures_of_open_groups_are_found_one_by_one(codec: str, options: dict[str, str], tmp_path: Path) -> None:
    """Some are decoded behind a key frame and shown before it; a strict decoder does not begin with one of H.264 at all."""
    frames = [np.full((128, 192, 3), 20 + 5 * i, np.uint8) for i in range(40)]
    with av.open(str(tmp_path / "open.mp4"), "w") as out:
        stream = out.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        for frame in [*(av.VideoFrame.from_ndarray(x, format="rgb24") for x in frames), None]:
            out.mux(stream.encode(frame))
    for i in range(40):
        assert close(video.decode(tmp_path / "open.mp4", [i / 10], 0.05)[0], frames[i])
    assert close(video.decode(tmp_path / "open.mp4", np.arange(40) / 10, 0.05), np.stack(frames))
    (_, first), *_ = video.frames(tmp_path / "open.mp4", 1.1)
    assert close(first, frames[11])


@pytest.mark.parametrize(("codec", "pixels", "suffix"), [
    ("libvpx-vp9", "yuv420p", "webm"), ("mjpeg", "yuvj420p", "avi"), ("ffv1", "gray16le", "mkv"), ("ffv1", "bgr0", "mkv")])
@pytest.mark.parametrize("called", ["film", "film.mp4"])
def test_films_in_other_containers_are_read_whatever_they_are_called(codec: str, pixels: str, suffix: str, called: str, tmp_path: Path
                                                                      ) -> None:
    deep = pixels == "gray16le"
    frames = np.random.default_rng(0).integers(0, 65536, (9, 48, 64), np.uint16) if deep else movie(9, 48, 64)
    with av.open(str(tmp_path / f"x.{suffix}"), "w") as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=pixels if deep else "rgb24")))
        out.mux(stream.encode(None))
    film = (tmp_path / f"x.{suffix}").rename(tmp_path / called)
    seen = video.decode(film, np.array([8, 0, 3]) / 10, 0.01)
    assert (seen == frames[[8, 0, 3]]).all() if deep else close(seen, frames[[8, 0, 3]])


def test_real_recordings_of_others(shared_data: Path) -> None:
    found = sorted((shared_data / "lerobot_single_episodes").glob("*/videos/*.mp4"))
    assert found
    for path in found:
        told, times = video.probe(path), video.times(path)
        seen = video.decode(path, times[[20, 0, 21]])
        assert seen.shape == (3, told["video.height"], told["video.width"], 3)
        assert np.allclose(times, np.arange(len(times)) / told["video.fps"], atol=1e-4)


# ---- what is wrong


def test_wrong_frames_are_named() -> None:
    encoder = PacketEncoder(16, 16, 30, "h264")
    for frame in (np.zeros((16, 18, 3), np.uint8), np.zeros((16, 16, 3), np.float32), np.zeros((16, 16), np.uint16)):
        with pytest.raises(RealrlError, match="give every camera its size and dtype"):
            encoder.encode(frame)
    with pytest.raises(RealrlError, match="'mpeg2' is not one of av1, h264"):
        PacketEncoder(16, 16, 30, "mpeg2")  # type: ignore[arg-type]
    with pytest.raises(RealrlError, match="cannot be encoded"):
        PacketEncoder(100_000, 100_000, 30, "h264")


def test_no_frames_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(RealrlError, match="no frames to encode"):
        video.encode(tmp_path / "a.mp4", [], 30)
    with pytest.raises(RealrlError, match="is missing"):
        video.decode(tmp_path / "none.mp4", [0.0])
    with pytest.raises(RealrlError, match="could not be written"):
        video.encode(tmp_path / "no" / "folder.mp4", movie(2, 16, 16), 30, "h264")


@pytest.mark.parametrize("text", [b"", b"hello", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
                                  b"ffconcat version 1.0\nfile /etc/hostname\n", bytes(5000)])
def test_files_that_are_no_video(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(text)
    with pytest.raises(RealrlError, match=r"a\.mp4"):
        video.decode(tmp_path / "a.mp4", [0.0])


@pytest.mark.parametrize("kind", [*CODECS, "depth"])
def test_damaged_files_give_an_error_that_names_them_or_frames(tmp_path: Path, kind: str) -> None:
    path, damaged = tmp_path / "good.mp4", tmp_path / "damaged.mp4"
    frames = np.full((8, 20, 24), 700, np.uint16) if kind == "depth" else movie(8, 20, 24)
    video.encode(path, frames, 30, "h264" if kind == "depth" else kind)  # type: ignore[arg-type]
    content, rng, refused = path.read_bytes(), random.Random(0), 0
    for i in range(250):
        copy = bytearray(content)
        if i % 3 == 0:
            copy = copy[:rng.randrange(len(copy))]
        else:
            begin = rng.choice([0, len(copy) - 900])
            for _ in range(rng.choice([1, 4, 40])):
                copy[rng.randrange(max(0, begin), len(copy))] = rng.randrange(256)
        damaged.write_bytes(copy)
        for read in (lambda: video.decode(damaged, np.arange(8) / 30), lambda: video.probe(damaged), lambda: video.times(damaged),
                     lambda: list(video.frames(damaged, 0.1)), lambda: video.header(damaged)):
            try:
                read()
            except RealrlError as error:
                assert "damaged.mp4" in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > 250


def test_a_folder_called_data_far_above_is_no_data_set(tmp_path):
    (tmp_path / "data/chunk-000").mkdir(parents=True)
    (tmp_path / "data/chunk-000/file-000.parquet").touch()
    assert mend(tmp_path / "videos/top/chunk-000/file-000.mp4") == f"run 'realrl data repair {tmp_path}'"
    assert mend(tmp_path / "in/push/videos/top/chunk-000/file-000.mp4") == "fetch it again, or restore it from a copy"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")
@pytest.mark.parametrize("codec", CODECS)
def test_an_encoder_is_no_more_urgent_than_who_opens_it(codec: Codec) -> None:
    """SVT-AV1, where root runs it, comes before everything else on the machine otherwise, and the thread that opens it with it."""
    urgency = lambda: {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}
    before = os.sched_getscheduler(0), urgency()
    encoder = PacketEncoder(64, 48, 30, codec)
    for _ in range(3):
        encoder.encode(np.zeros((48, 64, 3), np.uint8))
        assert (os.sched_getscheduler(0), urgency() - {os.SCHED_BATCH}) == (before[0], before[1] - {os.SCHED_BATCH})
    encoder.finish()

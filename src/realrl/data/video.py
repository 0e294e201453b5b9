"""Camera frames to mp4 packets and back, by PyAV.

One setting a codec, made for robots: every second frame is a key frame (g = 2, so that reaching a frame costs at most two), no frame
refers to a later one (so packets come out as frames go in, and dts equals pts), and crf 30 as LeRobot writes it. Depth is kept exactly,
as 16-bit FFV1; pictures are, too, with codec "ffv1", for runs that shall see again to the bit what they saw. Odd sizes stay what they
are: SVT-AV1 takes them, and H.264, which halves its colour planes, keeps them whole (yuv444p) for such frames. Packets of the same
`Header` may follow each other in one file without encoding anything again.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal

import av
import numpy as np

from realrl.data.calm import calm
from realrl.data.depth import UNTOLD, Coding
from realrl.data.errors import BLIND, DAMAGED, line, mend, plain
from realrl.data.player import SLACK, Player, inside_mend
from realrl.types import Array, RealrlError

Codec = Literal["av1", "h264", "ffv1"]
CODECS: tuple[Codec, ...] = ("av1", "h264", "ffv1")
ENCODERS = {"av1": "libsvtav1", "h264": "libx264", "ffv1": "ffv1"}
OPTIONS = {
    "av1": {"preset": "12", "crf": "30", "svtav1-params": "pred-struct=1:lookahead=0:rtc=1:lp=1"},
    "h264": {"preset": "ultrafast", "tune": "zerolatency", "crf": "30", "bf": "0"},
    "ffv1": {"level": "3", "slices": "4", "slicecrc": "1"}}
CONTAINERS = ((0, b"\x1aE\xdf\xa3", "matroska"), (8, b"AVI ", "avi"))  # what a film begins with that is none, at which byte: else mp4
MAX_PIXELS = 2**26  # a damaged file must not ask for more memory than a frame of 8192 x 8192 needs
VideoFile = str | Path | BinaryIO

os.environ.setdefault("SVT_LOG", "1")  # the encoder prints its banner for every episode otherwise


@dataclass(frozen=True)
class Packet:
    """One encoded frame. pts, dts: when it is shown and decoded, in frames (1 / fps seconds); key: whether decoding may begin here."""

    data: bytes
    pts: int
    dts: int
    key: bool


@dataclass(frozen=True)
class Header:
    """What a decoder must know before the first packet. Equal headers: their packets may share a file.

    stub: an mp4 without frames, which carries all of it to the muxer; encoder: which library made the packets ("" when unknown).
    """

    codec: str
    pix_fmt: str
    width: int
    height: int
    fps: Fraction
    extradata: bytes
    stub: bytes = field(compare=False, repr=False)
    encoder: str = field(compare=False, default="")

    @property
    def depth(self) -> bool:
        """Whether frames are uint16 [H, W] rather than uint8 [H, W, 3]."""
        return self.pix_fmt.startswith("gray16")

    @property
    def info(self) -> dict[str, Any]:
        """The entries LeRobot keeps under a camera's `info`, and the encoder when it is known."""
        entries = {"video.height": self.height, "video.width": self.width, "video.codec": self.codec, "video.pix_fmt": self.pix_fmt,
                   "video.is_depth_map": self.depth, "video.fps": _plain(self.fps), "video.channels": 1 if self.depth else 3,
                   "has_audio": False}
        return entries | ({"video.encoder": self.encoder} if self.encoder else {})


# ---- encoding


class PacketEncoder:
    """Frames in, packets out, one camera of one episode. `encode` may be called from any one thread.

    width, height: pixels; fps: frames a second; depth: frames are uint16 [H, W] millimetres, kept exactly (codec is then FFV1),
    otherwise uint8 [H, W, 3] RGB; options: on top of `OPTIONS`, by ffmpeg's names. Raises RealrlError when the codec is unknown or
    the installed PyAV lacks it.
    """

    def __init__(self, width: int, height: int, fps: float, codec: Codec = "av1", *, depth: bool = False, threads: int = 1,
                 options: dict[str, str] | None = None) -> None:
        if codec not in CODECS:
            raise RealrlError(f"video codec {codec!r} is not one of {', '.join(CODECS)}; choose one of them")
        kind = "ffv1" if depth else codec
        if not 0 < width * height <= MAX_PIXELS or width <= 0:
            raise RealrlError(f"a camera of {width} x {height} pixels cannot be encoded; at most {MAX_PIXELS} pixels a frame")
        self.shape = (height, width) if depth else (height, width, 3)
        lossy = "yuv444p" if kind == "h264" and (width % 2 or height % 2) else "yuv420p"
        self.pix_fmt = "gray16le" if depth else "bgr0" if kind == "ffv1" else lossy
        self._annexb, self._count = kind == "h264", 0
        rate = Fraction(fps).limit_denominator(1001)
        buffer = io.BytesIO()
        try:
            self._out = av.open(buffer, "w", format="mp4", options={"movflags": "empty_moov"})
            stream: Any = self._out.add_stream(ENCODERS[kind], rate=rate, options=OPTIONS[kind] | (options or {}))
            stream.width, stream.height, stream.pix_fmt = width, height, self.pix_fmt
            stream.gop_size, stream.thread_count, stream.time_base = 1 if kind == "ffv1" else 2, threads, 1 / rate
            with calm():
                self._out.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            raise RealrlError(f"the encoder {ENCODERS[kind]} does not open for {width} x {height} at {fps} fps ({line(error)}); "
                              "choose another codec or install a PyAV wheel that has it") from error
        self._stream, self._rate = stream, rate
        self.header = _stub_header(buffer.getvalue(), rate, self.pix_fmt, ENCODERS[kind])

    def encode(self, frame: Array) -> list[Packet]:
        """The packets that this frame completes (one, for our settings). Raises RealrlError when its shape or dtype is another."""
        wanted = np.uint16 if len(self.shape) == 2 else np.uint8
        if frame.shape != self.shape or frame.dtype != wanted:
            raise RealrlError(f"a frame is {frame.dtype} {list(frame.shape)}, the camera is {np.dtype(wanted)} {list(self.shape)}; "
                              "give every camera its size and dtype")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24" if frame.ndim == 3 else "gray16le")
        picture.pts, picture.time_base = self._count, 1 / self._rate
        self._count += 1
        return self._packets(picture)

    def finish(self) -> list[Packet]:
        """What the encoder still holds; nothing can be encoded afterwards."""
        packets = self._packets(None)
        self.close()
        return packets

    def close(self) -> None:
        """Give the encoder back without its last packets."""
        with contextlib.suppress(av.FFmpegError):
            self._out.close()

    def _packets(self, picture: av.VideoFrame | None) -> list[Packet]:
        packets = []
        for p in self._stream.encode(picture):
            p.time_base = p.time_base or 1 / self._rate
            pts, dts = (round(t * p.time_base * self._rate) for t in (p.pts, p.pts if p.dts is None else p.dts))
            packets.append(Packet(_sized(bytes(p)) if self._annexb else bytes(p), pts, dts, bool(p.is_keyframe)))
        return packets


def encode(file: VideoFile, frames: Iterable[Array], fps: float, codec: Codec = "av1", *, options: dict[str, str] | None = None
           ) -> Header:
    """Write an mp4 of frames (each uint8 [H, W, 3], or uint16 [H, W] for exact depth). Raises RealrlError when there are none."""
    encoder: PacketEncoder | None = None
    packets: list[Packet] = []
    for frame in frames:
        if encoder is None:
            height, width = frame.shape[:2]
            encoder = PacketEncoder(width, height, fps, codec, depth=frame.ndim == 2, options=options)
        packets += encoder.encode(frame)
    if encoder is None:
        raise RealrlError(f"{_name(file)}: there are no frames to encode; drop the episode")
    packets += encoder.finish()
    mux(file, encoder.header, packets)
    return encoder.header


def _sized(data: bytes) -> bytes:
    """H.264 units with their length in front, as mp4 keeps them, from units with start codes between, as the encoder makes them."""
    starts, at = [], data.find(b"\0\0\1")
    while at >= 0:
        starts.append(at + 3)
        at = data.find(b"\0\0\1", at + 3)
    units = [data[a:b].rstrip(b"\0") for a, b in zip(starts, [*(s - 3 for s in starts[1:]), len(data)], strict=True)]
    return b"".join(len(u).to_bytes(4, "big") + u for u in units)


def _stub_header(stub: bytes, rate: Fraction, pix_fmt: str, encoder: str) -> Header:
    with _opened(io.BytesIO(stub)) as (_, stream):
        return replace(_header(stream, rate, stub), pix_fmt=pix_fmt, encoder=encoder)


def _header(stream: Any, rate: Fraction, stub: bytes) -> Header:
    """The header of a stream; the codec by the name of its format, whichever library decodes it."""
    context = stream.codec_context
    return Header(str(context.codec.canonical_name), str(context.pix_fmt or ""), context.width, context.height, rate,
                  bytes(context.extradata or b""), stub)


# ---- files of packets


def mux(file: VideoFile, header: Header, packets: Iterable[Packet]) -> None:
    """Write packets as an mp4, without encoding anything. pts count frames from the start of the file."""
    with _writing(file, header) as put:
        for packet in packets:
            put(packet)


def header(path: str | Path) -> Header:
    """What a decoder needs for this file; its stub joins new packets to it. Raises RealrlError on a damaged file."""
    with _opened(path) as (_, stream):
        rate = _rate(stream, path)
        buffer = _Stub(path)
        with av.open(buffer, "w", format="mp4", options={"movflags": "empty_moov"}) as out:
            out.add_stream_from_template(stream, opaque=True)
            out.start_encoding()
        buffer.seek(0)
        with _opened(buffer):  # what is wrong with this file shows here, not in a file that is joined to it
            return _header(stream, rate, buffer.getvalue())


class _Stub(io.BytesIO):
    """A file in memory that is named as the one it was made from."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.name = str(path)


def packets(path: str | Path) -> Iterator[Packet]:
    """The packets of a file in decoding order. Raises RealrlError on a damaged file or one without a constant rate."""
    with _opened(path) as (container, stream):
        rate = _rate(stream, path)
        for p in container.demux(stream):
            if p.size and p.pts is not None and p.dts is not None and p.time_base is not None:
                pts = p.pts * p.time_base * rate
                if abs(pts - round(pts)) > Fraction(1, 10):
                    raise RealrlError(f"{path}: a frame at {float(pts / rate):.4f} s is not on the clock of {_plain(rate)} fps; "
                                      "'realrl data import' makes a set whose pictures come at a constant rate")
                yield Packet(bytes(p), round(pts), round(p.dts * p.time_base * rate), bool(p.is_keyframe))


def segment(path: str | Path, seconds: Array, tolerance_s: float) -> list[Packet] | None:
    """The packets of the frames shown at these increasing seconds [T], in decoding order and numbered from 0, to be copied elsewhere; None
    where they cannot stand alone: no key frame begins them, others lie between, or one needs a frame outside. Errors as `decode`."""
    with _opened(path) as (container, stream):
        container.seek(max(0, int((seconds[0] + SLACK) / stream.time_base)), stream=stream)
        taken: list[tuple[float, Any]] = []
        for p in container.demux(stream):
            if not p.size or p.pts is None:
                continue
            if not (at := float(p.pts * p.time_base)) < seconds[0] - tolerance_s and len(taken) < len(seconds):
                taken.append((at, p))
            elif len(taken) == len(seconds):  # an open end: what is shown before the last of ours, but decoded behind it
                if at < seconds[-1] + tolerance_s:
                    return None
                break
        order = np.argsort([at for at, _ in taken], kind="stable")
        shown = np.array([at for at, _ in taken])[order]
        if len(taken) < len(seconds) or not taken[0][1].is_keyframe or order[0] or not (np.abs(shown - seconds) <= tolerance_s).all():
            return None
        rank = np.argsort(order).tolist()
        delay = max(i - at for i, at in enumerate(rank))
        return [Packet(bytes(p), at, i - delay, bool(p.is_keyframe)) for i, (at, (_, p)) in enumerate(zip(rank, taken, strict=True))]


def playable(header: Header, packets: Sequence[Packet]) -> bool:
    """Whether these packets in a file of their own are found again. Of some codecs the muxer refuses a stream that it did not encode
    (MPEG-4), or writes what nobody opens (VP9)."""
    copy = io.BytesIO()
    try:
        mux(copy, header, packets)
        copy.seek(0)
        with _opened(copy) as (container, stream):
            return sum(bool(p.size) for p in container.demux(stream)) == len(packets)
    except RealrlError:
        return False


@contextlib.contextmanager
def _writing(file: VideoFile, header: Header) -> Iterator[Any]:
    """A function that adds one packet to a new mp4."""
    target = file if hasattr(file, "write") else f"file:{Path(str(file)).absolute()}"
    with _opened(io.BytesIO(header.stub)) as (_, template):
        try:
            with av.open(target, "w", format="mp4") as out:
                stream = out.add_stream_from_template(template, opaque=True)
                stream.time_base = 1 / header.fps

                def put(packet: Packet) -> None:
                    p = av.Packet(packet.data)
                    p.stream, p.time_base, p.duration = stream, 1 / header.fps, 1
                    p.pts, p.dts, p.is_keyframe = packet.pts, packet.dts, packet.key
                    out.mux_one(p)

                yield put
        except (av.FFmpegError, OSError, ValueError) as error:
            raise RealrlError(f"{_name(file)} could not be written ({line(error)}); free space or mend the permissions") from error


# ---- decoding


def decode(path: str | Path, timestamps: Sequence[float] | Array, tolerance_s: float = 1e-4, coding: Coding | None = None) -> Array:
    """The frames nearest to these seconds, in that order: uint8 [N, H, W, 3], or uint16 [N, H, W] for depth.

    Any order and repetition of timestamps; sorted ones are read in one pass, from the key frame at or before each. coding: of depth that
    is not kept as it is. Raises RealrlError naming the file when it is damaged or holds no frame within `tolerance_s` of a timestamp.
    """
    with contextlib.closing(Reader(path, coding)) as reader:
        return reader.decode(timestamps, tolerance_s)


class Reader:
    """A video that stays open, for many small calls of `decode`; one thread at a time. Not to be used after an error."""

    def __init__(self, path: str | Path, coding: Coding | None = None) -> None:
        self.path, self._coding = path, coding
        self._stack = contextlib.ExitStack()
        container, self._stream = self._stack.enter_context(_opened(path))
        self._player = Player(path, container, self._stream)

    def decode(self, timestamps: Sequence[float] | Array, tolerance_s: float = 1e-4) -> Array:
        """As the function `decode`."""
        with _named(self.path):
            return self._decode(np.asarray(timestamps, np.float64).reshape(-1), tolerance_s)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def _decode(self, wanted: Array, tolerance_s: float) -> Array:
        out: Array | None = None
        order = np.argsort(wanted, kind="stable")
        pictures = self._player.nearest(wanted[order], tolerance_s)
        for i, picture in zip(order, pictures, strict=True):
            image = _pixels(self.path, picture, self._coding)
            if out is None:
                out = np.empty((len(wanted), *image.shape), image.dtype)
            if image.shape != out.shape[1:]:
                raise RealrlError(f"{self.path} is damaged: its frames change size; {inside_mend(self.path)}")
            out[i] = image
        if out is None:
            context = self._stream.codec_context
            size, depth = (context.height, context.width), self._coding or str(context.pix_fmt or "").startswith("gray16")
            out = np.empty((0, *size), np.uint16) if depth else np.empty((0, *size, 3), np.uint8)
        return out


def frames(path: str | Path, start_s: float = 0.0, stop_s: float | None = None, coding: Coding | None = None
           ) -> Iterator[tuple[float, Array]]:
    """(seconds, frame) of every frame in [start_s, stop_s), in order; each uint8 [H, W, 3] or uint16 [H, W]. Errors as `decode`."""
    with _opened(path) as (container, stream):
        for picture in Player(path, container, stream).begin(start_s):
            if stop_s is not None and picture.time >= stop_s - 1e-6:
                return
            if picture.time >= start_s - 1e-6:
                yield picture.time, _pixels(path, picture, coding)


def times(path: str | Path) -> Array:
    """When each frame is shown, seconds [N] float64, sorted; read without decoding. Raises RealrlError on a damaged file."""
    with _opened(path) as (container, stream):
        return np.sort(np.array([float(p.pts * p.time_base) for p in container.demux(stream) if p.size and p.pts is not None]))


def probe(path: str | Path) -> dict[str, Any]:
    """What LeRobot keeps under a camera's `info`: height, width, codec, pix_fmt, is_depth_map, fps, channels, has_audio."""
    with _opened(path) as (container, stream):
        return _header(stream, _rate(stream, path), b"").info | {"has_audio": bool(container.streams.audio)}


def _pixels(path: str | Path, picture: Any, coding: Coding | None) -> Array:
    """Raises RealrlError for pictures that a player turns, which others' readers see this way or that."""
    if picture.rotation:  # not `side_data`, which keeps the picture until garbage is collected, in a forked process forever
        raise RealrlError(f"{path}: its pictures lie in another way than players show them, by a tag for turning them: write them as "
                          f"they are seen (ffmpeg -i OLD.mp4 NEW.mp4 does) and put that in its place, or {BLIND}")
    if coding is not None:
        return coding.millimetres(picture)
    name = picture.format.name
    if name.startswith("gray") and name not in ("gray", "gray16le", "gray16be"):  # eight bits of it are neither colours nor a distance
        raise RealrlError(f"{path}: pictures of {name} are depth or heat in a coding that info.json does not tell; {UNTOLD}")
    pixels: Array = picture.to_ndarray(format="gray16le" if name.startswith("gray16") else "rgb24")
    return pixels


@contextlib.contextmanager
def _opened(file: VideoFile) -> Iterator[tuple[Any, Any]]:
    """Container and video stream; whatever goes wrong inside becomes one RealrlError that names the file.

    The format is one of three that hold their pictures themselves, so that no file can pass for a play list that names other files.
    """
    with contextlib.ExitStack() as stack:
        with _named(file, inside=False):
            stored = None if hasattr(file, "read") else plain(Path(str(file)))
            target, kind = (file, "mp4") if stored is None else (f"file:{stored.absolute()}", _container(stored))
            container = stack.enter_context(av.open(target, format=kind, metadata_errors="replace"))
            if not container.streams.video:
                raise RealrlError(f"{_name(file)} holds no video; {mend(_name(file))}")
            stream = container.streams.video[0]
            if stream.codec_context is None or not stream.time_base:
                raise RealrlError(f"{_name(file)} is damaged, or of a codec that PyAV cannot decode; if others play it, encode it again "
                                  f"(ffmpeg -i FILE -c:v libx264 NEW.mp4), else {BLIND}")
        stack.enter_context(_named(file))
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "crccheck+explode"}
        stream.thread_count = 1  # frames are small and loaders many
        yield container, stream


def _container(path: Path) -> str:
    """Which of the formats that are read a film is in, by its first bytes, whatever it is called."""
    with path.open("rb") as file:
        begin = file.read(16)
    return next((kind for at, magic, kind in CONTAINERS if begin[at:].startswith(magic)), "mp4")


@contextlib.contextmanager
def _named(file: VideoFile, inside: bool = True) -> Iterator[None]:
    """Whatever PyAV raises inside becomes one RealrlError that names the file. inside: whether its packets and pictures are looked at,
    and not only whether it opens."""
    try:
        yield
    except FileNotFoundError as error:
        raise RealrlError(f"{_name(file)} is missing; {mend(_name(file))}") from error
    except (*DAMAGED, ArithmeticError) as error:
        raise RealrlError(f"{_name(file)} is truncated or damaged ({line(error)}); "
                          f"{inside_mend(_name(file)) if inside else mend(_name(file))}") from error


def _rate(stream: Any, path: str | Path) -> Fraction:
    rate = Fraction(stream.average_rate or stream.guessed_rate or 0).limit_denominator(1001)
    if rate <= 0:
        raise RealrlError(f"{path} has no frame rate; encode it again")
    return rate


def _plain(rate: Fraction) -> int | float:
    return rate.numerator if rate.denominator == 1 else float(rate)


def _name(file: VideoFile) -> str:
    return str(file) if isinstance(file, str | Path) else str(getattr(file, "name", "video"))

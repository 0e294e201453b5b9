"""The wire: openpi's format both ways, and nothing that a stranger sends does more than fail in one line."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from realrl.serve import wire
from realrl.types import RealrlError

msgpack = pytest.importorskip("msgpack", reason="needs the group serve (pip install 'realrl[serve]')")


def openpi_pack(value: Any) -> bytes:
    """A message as openpi's clients write it."""
    def array(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return {b"__ndarray__": True, b"data": x.tobytes(), b"dtype": x.dtype.str, b"shape": x.shape}
        return {b"__npgeneric__": True, b"data": x.item(), b"dtype": x.dtype.str}
    return msgpack.Packer(default=array).pack(value)


def openpi_unpack(data: bytes) -> Any:
    """A message as openpi's clients read it."""
    def array(x: dict[Any, Any]) -> Any:
        if b"__ndarray__" in x:
            return np.ndarray(buffer=x[b"data"], dtype=np.dtype(x[b"dtype"]), shape=x[b"shape"])
        return np.dtype(x[b"dtype"]).type(x[b"data"]) if b"__npgeneric__" in x else x
    return msgpack.unpackb(data, object_hook=array)


MESSAGE = {"observation/state": np.arange(3.0), "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "depth": np.ones((2, 2), ">u2"),
           "flag": np.bool_(True), "half": np.float16(0.5), "prompt": "pick é", "empty": np.zeros((0, 3), np.float32), "point": np.array(7),
           "list": [1, None, True, {"deep": 2.5}]}


@pytest.mark.parametrize(("write", "read"), [(wire.pack, wire.unpack), (openpi_pack, wire.unpack), (wire.pack, openpi_unpack)])
def test_messages_arrive_as_they_were_sent(write: Any, read: Any) -> None:
    found = read(write(MESSAGE))
    assert list(found) == list(MESSAGE)
    for key, x in MESSAGE.items():
        if isinstance(x, np.ndarray | np.generic):
            assert found[key].dtype == x.dtype and np.array_equal(found[key], x) and np.shape(found[key]) == np.shape(x)
        else:
            assert found[key] == x


@pytest.mark.parametrize("value", [object(), np.array([None]), np.array([1j]), np.zeros(1, [("a", "f4")]), {1, 2}, np.array(["text"])])
def test_what_is_no_plain_value_is_not_sent(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        wire.pack({"x": value})


def array(**changes: Any) -> bytes:
    """A message with one array, something about it wrong."""
    told = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2], **{k.encode(): v for k, v in changes.items()}}
    return msgpack.packb({"x": {k: v for k, v in told.items() if v is not None}})


DEEP = msgpack.packb(0)
for _ in range(2000):
    DEEP = b"\x91" + DEEP


@pytest.mark.parametrize("data", [
    b"", b"\xc1", b"\x80rest", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", DEEP, b"\x91" * 20 + b"\x00",
    msgpack.packb({"x": msgpack.ExtType(4, b"x")})[:-1], array(shape=[3]), array(shape=[2**31, 2**31, 0]), array(shape=[-2]),
    array(shape=[2.0]), array(shape=[True, 2]), array(shape=2), array(shape=[1] * 33), array(dtype="|O"), array(dtype="<c8"),
    array(dtype="nonsense"),
        array(dtype=[["a", "<f4"]]), array(dtype="f4,f4"), array(dtype="<f4" * 100), array(dtype=None), array(data=None),
    array(data="text"),
    msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}),
    msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
    msgpack.packb({b"__npgeneric__": True, b"dtype": "<f4"})])
def test_a_message_that_is_none_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(RealrlError) as caught:
        wire.unpack(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_noise_never_does_more_than_fail() -> None:
    rng, whole = np.random.default_rng(0), wire.pack(MESSAGE)
    for _ in range(2000):
        data = bytearray(whole if rng.random() < 0.5 else rng.bytes(rng.integers(1, 80)))
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(RealrlError):
            wire.unpack(bytes(data))

"""What goes over the websocket between a robot's server and whoever talks to it: msgpack maps, and arrays of plain numbers. No pickle.

Every message is a map with `type` and, of the first one each way, `v`, the version of the protocol. Whoever connects says:

- hello {v, role: "commander" | "watcher" | "person", token} -> welcome {v, robot, epoch, server}, or error and goodbye. One commander
  at a time has the lease, with a number of its own, the epoch, that its messages carry;
- commander: reset {epoch, seq, seed}, act {epoch, seq, action [A], source, age}, end {epoch}, bye {epoch}
  -> obs {seq, stamp, age, state [D], truth [F], images, sent [A], limited [A], reward, terminated, success, late} or error
  {error, held, of: seq};
- anybody: stop {who} and status {} -> status {...}; a person: arm {}, park {}, ready {}, and on a simulated robot fault {name, value}.

Arrays are {"_a": dtype, "s": shape, "b": bytes}, of the types in `KINDS` alone.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np

from realrl.types import Array, RealrlError

VERSION = 1
KINDS = ("|u1", "<u2", "<i4", "<i8", "<f4", "<f8", "|b1")
LARGEST_IN = 2**16  # bytes that a server takes in one message
LARGEST_OUT = 2**26  # bytes that a client takes
_INSTALL = "pip install 'realrl[serve]' (websockets and msgpack)"


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def need() -> None:
    """Raise RealrlError where what robots' servers talk with is not installed."""
    try:
        import msgpack  # noqa: F401
        import websockets  # noqa: F401
    except ModuleNotFoundError as error:
        raise RealrlError(f"talking to a robot needs {error.name}: {_INSTALL}") from None


def pack(message: dict[str, Any]) -> bytes:
    """A message as bytes."""
    import msgpack
    packed: bytes = msgpack.packb(message, default=_array)
    return packed


def unpack(data: object) -> dict[str, Any]:
    """A message from bytes that anybody may have sent. Raises ValueError on whatever is none."""
    import msgpack
    if not isinstance(data, bytes | bytearray):
        raise ValueError("a text, where a binary message is expected")
    try:
        message = msgpack.unpackb(data, object_hook=_plain, strict_map_key=True, max_ext_len=0)
    except ValueError:
        raise
    except Exception as error:  # msgpack's own kinds, RecursionError of what is nested too deep
        raise ValueError(f"no message ({type(error).__name__})") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ValueError("no map with a type")
    return message


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.str in KINDS:
        return {"_a": value.dtype.str, "s": list(value.shape), "b": value.tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _plain(found: dict[str, Any]) -> Any:
    if "_a" not in found:
        return found
    kind, shape, data = found.get("_a"), found.get("s"), found.get("b")
    if kind not in KINDS or not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > 4:
        raise ValueError("an array of a kind that is not sent here")
    if not all(isinstance(n, int) and 0 <= n <= 2**24 for n in shape):
        raise ValueError("an array of an impossible shape")
    array: Array = np.frombuffer(data, kind)
    if array.size != int(np.prod(shape, dtype=np.int64)):
        raise ValueError("an array that does not fit its shape")
    return array.reshape(shape).copy()


def number(message: dict[str, Any], name: str, low: float, high: float, default: float | None = None) -> float:
    """A finite number of a message. Raises ValueError."""
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}")
    return value

"""Reading pickles as data: a small machine of its own that knows numbers, text, lists, dictionaries and numpy arrays, nothing else.

The standard library's unpickler, restricted or not, believes what a file says: a six-byte file makes it reserve 32 GB, deep
nesting overflows its stack, and every callable it hands out is one more thing to get wrong. Here a file is read opcode by
opcode (the language is documented in the standard library's `pickletools`), no class or function is ever looked up by name, the
few names that arrays are made of stand for functions of this file, and every size is compared with the bytes that are there
before memory is taken. Python 2's pickles are read as latin-1, which is how numpy wrote its bytes there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from realrl.data.formats.common import AGAIN
from realrl.types import Array, RealrlError

MAX_OPS = 20_000_000  # ten thousand camera transitions have a million; bounds time and memory
MAX_INT_BYTES = 64  # no recording holds longer integers, and printing a huge one takes for ever
ORDERS: dict[Any, Literal["<", ">", "="]] = {"<": "<", ">": ">", "=": "=", "|": "="}
KINDS = "biufcSU"  # numpy's kinds that are plain numbers or text; objects, records and dates are none
MARK = object()


class Damaged(Exception):
    """What is wrong with a pickle, without the file's name."""


@dataclass
class _Function:
    """A callable that a pickle may name. Not a Python function, so that no pickle can set an attribute on one."""

    call: Callable[..., Any]


@dataclass
class _Dtype:
    """A dtype that waits for its byte order."""

    text: str
    order: Literal["<", ">", "="] = "="

    def made(self) -> np.dtype[Any]:
        """The numpy dtype. Raises Damaged unless it is one of plain numbers or text."""
        try:
            dtype = np.dtype(self.text).newbyteorder(self.order)
        except (TypeError, ValueError, SyntaxError, OverflowError) as error:
            raise Damaged(f"it holds an array of an unknown dtype {self.text[:40]!r}") from error
        if dtype.kind not in KINDS or dtype.itemsize == 0 or dtype.hasobject:
            raise Damaged(f"it holds an array of dtype {str(dtype)[:40]!r}; only arrays of numbers and text are read")
        return dtype


@dataclass
class _Unmade:
    """An array between its creation and the state that fills it; `places` are the memo entries that already name it."""

    places: list[int] = field(default_factory=list)


def load(path: str | Path) -> Any:
    """The content of a pickle file: numbers, text, bytes, lists, tuples, dictionaries and read-only numpy arrays.

    Raises RealrlError, in one line, for a file that is damaged, truncated, oversized for what it holds, or that names anything
    but numpy arrays; no code of the file runs, and no class is looked up.
    """
    path = Path(path)
    try:
        data = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise RealrlError(f"{path} could not be read ({error.strerror or error})") from error
    if data is None:
        raise RealrlError(f"{path} is not a file; give the pickle itself")
    try:
        return _Machine(data).run()
    except Damaged as error:
        raise RealrlError(f"{path}: {error}") from error


# ---- what arrays are made of


def _reconstruct(*args: Any) -> _Unmade:
    if len(args) != 3 or not _is(args[0], "ndarray"):
        raise Damaged("it rebuilds something else than a plain numpy array")
    return _Unmade()  # the shape asked for here is a placeholder; the true one comes with the state


def _make_dtype(*args: Any) -> _Dtype:
    text = args[0].decode("latin-1") if args and isinstance(args[0], bytes) else args[0] if args else None
    if not isinstance(text, str) or len(text) > 16:
        raise Damaged("it holds a dtype that is not a short name; only arrays of numbers and text are read")
    return _Dtype(text)


def _scalar(*args: Any) -> Any:
    if len(args) != 2 or not isinstance(args[0], _Dtype):
        raise Damaged("it holds a numpy scalar without a dtype")
    return _array(args[0], (), args[1])[()]


def _frombuffer(*args: Any) -> Array:
    if len(args) != 4 or not isinstance(args[1], _Dtype) or args[3] not in ("C", "F"):
        raise Damaged("it holds an array in a layout that numpy does not write")
    return _array(args[1], args[2], args[0], args[3])


def _encode(*args: Any) -> bytes:
    if len(args) != 2 or not isinstance(args[0], str) or args[1] not in ("latin1", "latin-1"):
        raise Damaged("it encodes something else than latin-1 text")
    return _latin(args[0])


def _ordered_dict(*args: Any) -> dict[Any, Any]:
    if len(args) > 1 or (args and not isinstance(args[0], list)):
        raise Damaged("it holds an OrderedDict that was not made from pairs")
    if any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in (args[0] if args else ())):
        raise Damaged("it holds an OrderedDict that was not made from pairs")
    return {_key(k): v for k, v in args[0]} if args else {}


def _no_bytes(*args: Any) -> bytes:
    if args:
        raise Damaged("it makes bytes out of something else")
    return b""  # how protocols 0 to 2 write an array without elements


def _not_callable(*args: Any) -> Any:
    raise Damaged("it calls numpy.ndarray directly, which numpy never does")


FUNCTIONS = {"_reconstruct": _Function(_reconstruct), "scalar": _Function(_scalar), "_frombuffer": _Function(_frombuffer),
             "dtype": _Function(_make_dtype), "ndarray": _Function(_not_callable), "encode": _Function(_encode),
             "OrderedDict": _Function(_ordered_dict), "bytes": _Function(_no_bytes)}
# numpy 2 renamed its folder, and both names are in the wild
NAMES = {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): "dtype", ("_codecs", "encode"): "encode",
         ("collections", "OrderedDict"): "OrderedDict", ("__builtin__", "bytes"): "bytes", ("builtins", "bytes"): "bytes",
         **{(f"numpy.{core}.multiarray", name): name for core in ("core", "_core") for name in ("_reconstruct", "scalar")},
         **{(f"numpy.{core}.numeric", "_frombuffer"): "_frombuffer" for core in ("core", "_core")}}


def _is(x: Any, name: str) -> bool:
    return x is FUNCTIONS[name]


def _latin(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise Damaged("it holds an array whose bytes are no bytes") from error


def _array(dtype: _Dtype, shape: Any, data: Any, order: str = "C") -> Array:
    """A read-only array over bytes that are already in memory. Raises Damaged unless they are exactly what the shape needs."""
    kind = dtype.made()
    if not isinstance(shape, tuple) or len(shape) > 16 or any(type(n) is not int or not 0 <= n < 2**40 for n in shape):
        raise Damaged("it holds an array without a plain shape")
    raw = _latin(data) if isinstance(data, str) else data
    if not isinstance(raw, (bytes, bytearray, memoryview)):
        raise Damaged("it holds an array whose content is not bytes")
    if len(raw) != math.prod(shape) * kind.itemsize or (not raw and max(shape, default=0) > 2**16):
        raise Damaged(f"it holds an array of shape {list(shape)} {kind} with {len(raw)} bytes")
    out: Array = np.frombuffer(raw, kind) if len(raw) else np.zeros(0, kind)
    out = out.reshape(shape, order="F" if order == "F" else "C")
    out.flags.writeable = False
    return out


def _key(x: Any) -> Any:
    if isinstance(x, (str, bytes, int, float)) or x is None:  # hashing a deeply nested tuple would overflow the C stack
        return x
    raise Damaged("it holds a dictionary whose key is neither text nor a number")


# ---- the machine


class _Machine:
    """One pickle being read: `data` at position `at`, a stack with marks in it, and a memo of what was named for later."""

    def __init__(self, data: bytes) -> None:
        self.raw, self.data, self.at = data, memoryview(data), 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle holds. Raises Damaged."""
        for _ in range(MAX_OPS):
            code = self.take(1)[0]
            if code == ord("."):
                return self.pop()
            step = OPS.get(code)
            if step is None:
                raise Damaged(REFUSED.get(code, f"byte {self.at - 1} is no part of a pickle; the file is damaged or no pickle"))
            step(self)
        raise Damaged(f"it has more than {MAX_OPS} steps; save it as several files")

    def take(self, n: int) -> memoryview:
        if n > len(self.data) - self.at:
            raise Damaged(f"it ends at byte {len(self.data)}, in the middle of a value; {AGAIN}")
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.raw.find(b"\n", self.at)
        if end < 0:
            raise Damaged(f"it ends at byte {len(self.data)}, in the middle of a line; {AGAIN}")
        return bytes(self.take(end + 1 - self.at))[:-1].decode("latin-1")

    def text(self, form: str) -> str:
        try:
            return bytes(self.take(self.number(form))).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise Damaged("it holds text that is not UTF-8") from error

    def push(self, x: Any) -> None:
        self.stack.append(x)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise Damaged("it takes a value where there is none; the file is damaged")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is MARK:
                items = self.stack[i + 1:]
                del self.stack[i:]
                return items
        raise Damaged("it closes a list that was never opened; the file is damaged")

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise Damaged(f"it fills a {kind.__name__} that is none; the file is damaged")
        return self.stack[-1]

    def put(self, key: int) -> None:
        x = self.pop()
        self.push(x)
        self.memo[key] = x
        if isinstance(x, _Unmade):
            x.places.append(key)

    def get(self, key: int) -> None:
        if key not in self.memo:
            raise Damaged("it names a value that was never given; the file is damaged")
        self.push(self.memo[key])

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise Damaged("it holds a dictionary with half a pair; the file is damaged")
        target = self.top(dict)
        for i in range(0, len(items), 2):
            target[_key(items[i])] = items[i + 1]

    def name(self, module: Any, name: Any) -> None:
        known = NAMES.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if known is None:
            raise Damaged(f"it asks for {str(module)[:60]!r}.{str(name)[:60]!r}, which is no numpy array; files that run code are refused, "
                          "save arrays, numbers and text only")
        self.push(FUNCTIONS[known])

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, _Function) or not isinstance(args, tuple):
            raise Damaged("it calls something that is no function; the file is damaged")
        self.push(function.call(*args))

    def build(self) -> None:
        state, x = self.pop(), self.pop()
        if isinstance(x, _Dtype) and isinstance(state, tuple) and len(state) >= 5:
            order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
            order = order if isinstance(order, str) else None
            if order not in ORDERS or any(part is not None for part in state[2:5]):
                raise Damaged("it holds an array of records; only arrays of numbers and text are read")
            x.order = ORDERS[order]
            self.push(x)
        elif isinstance(x, _Unmade) and isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _Dtype):
            made = _array(state[2], state[1], state[4], "F" if state[3] else "C")
            for key in x.places:
                if self.memo.get(key) is x:
                    self.memo[key] = made
            self.push(made)
        else:
            raise Damaged("it sets the state of something that is no numpy array; files that run code are refused")


def _integer(text: str) -> int | bool:
    if text in ("00", "01"):
        return text == "01"
    try:
        return int(text.rstrip("L")) if len(text) <= 2 * MAX_INT_BYTES else _long(len(text), b"")
    except ValueError as error:
        raise Damaged(f"it holds {text[:20]!r} where a number belongs") from error


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise Damaged(f"it holds {text[:20]!r} where a number belongs") from error


def _long(n: int, raw: Any) -> int:
    if not 0 <= n <= MAX_INT_BYTES:
        raise Damaged(f"it holds an integer of {n} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _string(text: str) -> str:
    """Python 2's quoted text, with its escapes."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        raise Damaged("it holds text without its quotes")
    try:
        return text[1:-1].encode("latin-1").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise Damaged("it holds text with a wrong escape") from error


def _unicode(text: str) -> str:
    try:
        return text.encode("latin-1").decode("raw_unicode_escape")
    except UnicodeDecodeError as error:
        raise Damaged("it holds text with a wrong escape") from error


def _tuple(n: int) -> Callable[[_Machine], None]:
    def step(m: _Machine) -> None:
        items = [m.pop() for _ in range(n)]
        m.push(tuple(reversed(items)))
    return step


def _dict(m: _Machine) -> None:
    items = m.since_mark()
    m.push({})
    m.set_items(items)


def _append(m: _Machine) -> None:
    item = m.pop()
    m.top(list).append(item)


def _set_item(m: _Machine) -> None:
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


def _appends(m: _Machine) -> None:
    items = m.since_mark()
    m.top(list).extend(items)


def _long_op(form: str) -> Callable[[_Machine], None]:
    def step(m: _Machine) -> None:
        n = m.number(form)
        m.push(_long(n, m.take(n) if 0 <= n <= MAX_INT_BYTES else b""))
    return step


def _global(m: _Machine) -> None:
    module = m.line()
    m.name(module, m.line())


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    m.name(module, name)


def _dup(m: _Machine) -> None:
    m.push(m.pop())
    m.push(m.stack[-1])


def _frame(m: _Machine) -> None:
    if m.number("<Q") > len(m.data) - m.at:
        raise Damaged(f"it ends at byte {len(m.data)}, in the middle of a frame; {AGAIN}")


def _index(text: str) -> int:
    n = _integer(text)
    return int(n) if n is not True and n is not False else int(text)


OPS: dict[int, Callable[[_Machine], Any]] = {ord(code): step for code, step in {
    "\x80": lambda m: m.take(1), "\x95": _frame, "(": lambda m: m.push(MARK), "0": lambda m: m.pop(), "1": lambda m: m.since_mark(),
    "2": _dup, "N": lambda m: m.push(None), "\x88": lambda m: m.push(True), "\x89": lambda m: m.push(False),
    "I": lambda m: m.push(_integer(m.line())), "J": lambda m: m.push(m.number("<i")), "K": lambda m: m.push(m.number("<B")),
    "M": lambda m: m.push(m.number("<H")), "L": lambda m: m.push(_integer(m.line())), "\x8a": _long_op("<B"), "\x8b": _long_op("<i"),
    "F": lambda m: m.push(_float(m.line())), "G": lambda m: m.push(m.number(">d")),
    "S": lambda m: m.push(_string(m.line())), "V": lambda m: m.push(_unicode(m.line())),
    "T": lambda m: m.push(bytes(m.take(m.number("<I"))).decode("latin-1")),
    "U": lambda m: m.push(bytes(m.take(m.number("<B"))).decode("latin-1")),
    "X": lambda m: m.push(m.text("<I")), "\x8c": lambda m: m.push(m.text("<B")), "\x8d": lambda m: m.push(m.text("<Q")),
    "B": lambda m: m.push(m.take(m.number("<I"))), "C": lambda m: m.push(bytes(m.take(m.number("<B")))),
    "\x8e": lambda m: m.push(m.take(m.number("<Q"))), "\x96": lambda m: m.push(m.take(m.number("<Q"))),
    "]": lambda m: m.push([]), "l": lambda m: m.push(m.since_mark()), "a": _append, "e": _appends,
    ")": lambda m: m.push(()), "t": lambda m: m.push(tuple(m.since_mark())), "\x85": _tuple(1), "\x86": _tuple(2), "\x87": _tuple(3),
    "}": lambda m: m.push({}), "d": _dict, "s": _set_item, "u": lambda m: m.set_items(m.since_mark()),
    "p": lambda m: m.put(_index(m.line())), "q": lambda m: m.put(m.number("<B")), "r": lambda m: m.put(m.number("<I")),
    "\x94": lambda m: m.put(len(m.memo)), "g": lambda m: m.get(_index(m.line())), "h": lambda m: m.get(m.number("<B")),
    "j": lambda m: m.get(m.number("<I")), "c": _global, "\x93": _stack_global, "R": lambda m: m.reduce(), "b": lambda m: m.build()}.items()}
_CLASSES = "it makes an object of a class, which is no numpy array; files that run code are refused, save arrays, numbers and text only"
_OUTSIDE = "it names something outside itself; files that run code are refused, save arrays, numbers and text only"
_SETS = "it holds a set; save arrays, numbers, text, lists and dictionaries only"
REFUSED = {**{ord(c): _CLASSES for c in "io\x81\x92"}, **{ord(c): _OUTSIDE for c in "PQ\x82\x83\x84\x97\x98"},
           **{ord(c): _SETS for c in "\x8f\x90\x91"}}

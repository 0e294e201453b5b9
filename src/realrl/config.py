"""Configurations: frozen dataclasses, to and from YAML and the command line.

A configuration is a tree of frozen dataclasses whose leaves are bool, int, float, str, Path, None, Literal, and tuples, lists or
string-keyed dicts of these. The dataclass is the only description: defaults, types, help text (the docstring or the comment of a field),
the names in a YAML file and, by `check` in its `__post_init__`, what values make sense all come from it."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import math
import os
import types
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
import yaml

from realrl.files import read_plain, write_text
from realrl.types import RealrlError

T = TypeVar("T")
LARGEST, DEEPEST = 2**16, 20  # a configuration's YAML has about 3,000 bytes, and no group in it lies deeper than 4


def nearest(name: str, names: Iterable[str]) -> str:
    """", did you mean 'x'?", or the list of names when none is near: the tail of an error about an unknown name."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


def shown(value: Any) -> str:
    """A value as an error may show it: its first hundred characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 100 else f"{text[:100]}..."


# ---- what values make sense -------------------------------------------------------------------------------------------------------


class OutOfBounds(RealrlError):
    """A field whose value makes no sense. owner: the class it stands in; why: the rest of the sentence. Who knows where in a tree the
    owner lies names the field in full; the message itself knows the group's usual name only."""

    def __init__(self, owner: type, name: str, why: str) -> None:
        super().__init__(f"{owner.__name__.removesuffix('Config').lower()}.{name} {why}")
        self.owner, self.name, self.why = owner, name, why


def check(cfg: Any, **bounds: str) -> None:
    """For a configuration's `__post_init__`: `check(self, steps="[1, inf)", lr="(0, 1]")` holds every named number, and every element of
    a tuple of them, to its interval; and every Literal to its words. None passes. Raises OutOfBounds."""
    for name, (kind, words) in _kinds(type(cfg)).items():  # type: ignore[arg-type]
        value = getattr(cfg, name)
        for item in value if isinstance(value, tuple | list) else () if value is None else (value,):
            if words and item not in words:
                raise OutOfBounds(type(cfg), name, f"must be one of {', '.join(map(repr, words))}, got {shown(item)}")
            number = isinstance(item, kind) and not isinstance(item, bool)
            if name in bounds and not (number and _within(item, bounds[name])):
                raise OutOfBounds(type(cfg), name, f"must be {_told(bounds[name], whole=float not in kind)}, got {shown(item)}")


@functools.cache
def _kinds(cls: Hashable) -> dict[str, tuple[tuple[type, ...], tuple[Any, ...]]]:
    """Field -> (the types a number in it may have, the words of its Literal)."""
    leaves = {name: _leaves(hint) for name, hint in get_type_hints(cls).items()}
    words = {name: [w for leaf in found if get_origin(leaf) is Literal for w in get_args(leaf)] for name, found in leaves.items()}
    return {name: ((int, float) if float in found else (int,), tuple(words[name])) for name, found in leaves.items()}


def _leaves(hint: Any) -> list[Any]:
    """The scalar types a hint is made of."""
    inner = get_args(hint) if get_origin(hint) in (Union, types.UnionType, tuple, list) else ()
    return [leaf for a in inner for leaf in _leaves(a)] or [hint]


def _within(number: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    return (low <= number if interval[0] == "[" else low < number) and (number <= high if interval[-1] == "]" else number < high)


def _told(interval: str, *, whole: bool) -> str:
    """An interval in words."""
    low, high = map(float, interval[1:-1].split(","))
    most = [f"{'at most' if interval[-1] == ']' else 'below'} {high:.15g}"] if math.isfinite(high) else []
    return ("a whole number of " if whole else "") + " and ".join([f"{'at least' if interval[0] == '[' else 'above'} {low:.15g}", *most])


# ---- to and from plain trees ------------------------------------------------------------------------------------------------------


def to_dict(cfg: Any) -> dict[str, Any]:
    """A configuration as plain dicts, lists and scalars, ready for YAML or JSON. Tuples become lists, paths become strings."""
    return {f.name: _plain(getattr(cfg, f.name)) for f in dataclasses.fields(cfg)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(cls: type[T], data: Mapping[str, Any], *, source: str = "") -> T:
    """The inverse of `to_dict`. `source` (a file's name) goes into the errors; absent fields take their defaults.

    Raises:
        RealrlError: a field that does not exist (with the nearest one that does), of the wrong type, or required and absent.
    """
    return _dataclass(cls, data, "", f"{source}: " if source else "")


def _dataclass(cls: type[T], data: Any, at: str, source: str) -> T:
    if not isinstance(data, Mapping):
        raise RealrlError(f"{source}{at or 'the configuration'} must be a mapping of fields, got {shown(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]  # T is a dataclass by contract
    hints = get_type_hints(cls)
    prefix = f"{at}." if at else ""
    for name in data:
        if name not in fields:
            told = f"'{prefix}{name}'" if isinstance(name, str) and len(name) < 100 else shown(name)
            raise RealrlError(f"{source}unknown field {told} of {cls.__name__}{nearest(str(name)[:100], fields)}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in data:
            raise RealrlError(f"{source}field '{prefix}{name}' of {cls.__name__} is missing and has no default; add it")
    values = {name: _value(hints[name], value, f"{prefix}{name}", source) for name, value in data.items()}
    try:
        return cls(**values)
    except OutOfBounds as error:
        raise RealrlError(f"{source}{prefix}{error.name} {error.why}") from error
    except ValueError as error:  # another check in __post_init__
        raise RealrlError(f"{source}{at or cls.__name__}: {error}") from error


def _value(hint: Any, value: Any, at: str, source: str) -> Any:
    """`value`, as YAML gives it, turned into the type `hint`; RealrlError where it cannot be."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, at, source)  # type: ignore[arg-type]  # a class here, never an instance
    if origin in (Union, types.UnionType):
        return _union(args, value, at, source, hint)
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in args):
            return value
        raise RealrlError(f"{source}'{at}' must be one of {', '.join(map(repr, args))}, got {shown(value)}")
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return _sequence(origin, args, value, at, source)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {k: _value(args[1], v, f"{at}.{k}", source) for k, v in value.items()}
    if isinstance(hint, type) and origin is None:
        return _scalar(hint, value, at, source)
    raise _wrong(hint, value, at, source)


def _union(args: tuple[Any, ...], value: Any, at: str, source: str, hint: Any) -> Any:
    """None for an Optional, else the first member that takes the value."""
    if value is None and type(None) in args:
        return None
    members = [a for a in args if a is not type(None)]
    if len(members) == 1:  # an Optional: its member's error says more
        return _value(members[0], value, at, source)
    for member in members:
        try:
            return _value(member, value, at, source)
        except RealrlError:
            continue
    raise _wrong(hint, value, at, source)


def _sequence(origin: Any, args: tuple[Any, ...], value: Sequence[Any], at: str, source: str) -> Any:
    if origin is list or (len(args) == 2 and args[1] is Ellipsis):
        return origin(_value(args[0], v, f"{at}[{i}]", source) for i, v in enumerate(value))
    if len(args) != len(value):
        raise RealrlError(f"{source}'{at}' must hold {len(args)} values, got {len(value)}: {shown(value)}")
    return tuple(_value(a, v, f"{at}[{i}]", source) for i, (a, v) in enumerate(zip(args, value, strict=True)))


def _scalar(hint: type, value: Any, at: str, source: str) -> Any:
    if hint is float and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-3 as a string and 1 as an int
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise _wrong(hint, value, at, source) from None
    if issubclass(hint, Path) and isinstance(value, str | Path):
        return hint(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _wrong(hint, value, at, source)


def _wrong(hint: Any, value: Any, at: str, source: str) -> RealrlError:
    name = hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint).replace("typing.", "")
    return RealrlError(f"{source}'{at}' must be {name}, got {shown(value)} ({type(value).__name__})")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, ignore: Sequence[str] = ()) -> list[str]:
    """The fields in which two `to_dict` trees differ, as "name: old -> new" lines. `ignore` names fields or whole groups, dotted."""
    a, b = _flat(old), _flat(new)
    skipped: Callable[[str], bool] = lambda name: any(name == i or name.startswith(f"{i}.") for i in ignore)
    show: Callable[[dict[str, Any], str], str] = lambda d, name: shown(d[name]) if name in d else "(absent)"
    return [f"{n}: {show(a, n)} -> {show(b, n)}" for n in sorted({*a, *b})
            if not skipped(n) and (n not in a or n not in b or a[n] != b[n])]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            out.update(_flat(value, f"{prefix}{name}."))
        else:
            out[f"{prefix}{name}"] = value
    return out


def save(cfg: Any, path: str | os.PathLike[str]) -> None:
    """Write a configuration as YAML, fields in the order of the dataclass. Atomic."""
    write_text(path, yaml.safe_dump(to_dict(cfg), sort_keys=False, allow_unicode=True))


class _Loader(yaml.SafeLoader):
    """YAML as far as a configuration needs it: plain trees with names for keys. What else it has can mean more than it looks like: an
    alias names a whole tree once more (nine lines become billions of nodes), a tag asks for another type."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.depth += 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="aliases (*) and tags (!) are not read: write the values out", problem_mark=event.start_mark)
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEEPEST} levels", problem_mark=event.start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != self.DEFAULT_SCALAR_TAG or key.value in seen:
                problem = "the name of a field must be a text" if key.tag != self.DEFAULT_SCALAR_TAG else "this name stands here twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The plain tree of a YAML file. Raises RealrlError when it is absent, no plain file, no YAML, no mapping, or a trap: aliases, tags,
    endless depth or length."""
    try:
        tree = yaml.load(read_plain(path, LARGEST).decode("utf-8"), _Loader)  # a SafeLoader that takes less
    except (OSError, UnicodeDecodeError) as error:
        raise RealrlError(f"cannot read the configuration {path}: {getattr(error, 'strerror', None) or error}; check the path") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no such day, a number of thousands of digits
        why = " ".join(str(error).split())
        raise RealrlError(f"{path} is not valid YAML: {why[:300]}") from error
    if not isinstance(tree, dict):
        raise RealrlError(f"{path} must hold a mapping of fields, e.g. a config.yaml that a run wrote")
    return tree


def load(cls: type[T], path: str | os.PathLike[str]) -> T:
    """A configuration from a YAML file. Raises RealrlError, naming the file and the field, on anything that does not fit."""
    return from_dict(cls, read(path), source=str(path))


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise RealrlError(message)


def parse(cls: type[T], args: Sequence[str], *, prog: str, description: str, default: T | None = None) -> T:
    """A configuration from the command line: `--config FILE` is the base, or `default`, dotted flags (`--imitation.lr 1e-3`) override it.

    `--help` prints every field with its default (those of FILE, where given). Unknown flags and values that do not parse print the nearest
    matches and leave with exit code 2 (SystemExit). Raises RealrlError when FILE does not fit the configuration, and for a value that makes
    no sense, with the field's name as it was typed."""
    first = _Flags(add_help=False, allow_abbrev=False, prog=prog)
    first.add_argument("--config", metavar="FILE")
    base, rest = first.parse_known_args(list(args))
    text = f"{description}\n\n--config FILE loads a saved configuration; the flags below override it."
    given = default if base.config is None else load(cls, base.config)
    try:
        made: T = tyro.cli(cls, args=rest, prog=prog, description=text, **({} if given is None else {"default": given}))  # type: ignore[call-overload]
        return made
    except OutOfBounds as error:
        flags = [word.partition("=")[0].removeprefix("--").replace("-", "_") for word in rest if word.startswith("--")]
        places = _places(cls, error.owner)
        typed = [place for place in places if any(flag.rpartition(".")[0] == place for flag in flags)]
        raise RealrlError(f"{'.'.join(filter(None, [(typed or places or [''])[0], error.name]))} {error.why}") from error


def _places(cls: Any, wanted: type, at: str = "") -> list[str]:
    """Where in the tree of configuration `cls` groups of the class `wanted` lie, as dotted names; "" is the top."""
    below = {f"{at}.{name}" if at else name: hint for name, hint in get_type_hints(cls).items() if dataclasses.is_dataclass(hint)}
    return [at] * (cls is wanted) + [place for name, hint in below.items() for place in _places(hint, wanted, name)]

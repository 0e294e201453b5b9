"""Datasets cut and joined. An edit writes a new folder and leaves its sources as they are; no video is encoded again.

The new folder appears under its name when it is whole; an error, an interruption or a kill leaves none. Side files (`realrl.data.side`)
follow their episodes. Video files are shared with the source by hard links where they are kept whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from realrl.data import labels, side, tables
from realrl.data.cells import FRACTIONS
from realrl.data.depth import is_depth, told
from realrl.data.errors import typed
from realrl.data.schema import ALIASES, won
from realrl.data.tools.pieces import Each, Piece, SourceSet, assemble
from realrl.files import sync
from realrl.types import Array, RealrlError

MOST = 10**7  # episodes in a list


@dataclass(frozen=True)
class Edited:
    """What an edit made: the folder, what is in it, and a line for what a user should know of it."""

    path: Path
    episodes: int
    frames: int
    notes: list[str] = field(default_factory=list)


def merge(directories: Sequence[str | Path], out: str | Path, *, each: Each = iter) -> Edited:
    """Several datasets as one, in the order given; equal task texts become one task.

    each: wraps the pieces in a progress bar. Raises RealrlError when the datasets differ in features, rate or robot, naming the
    difference; when one is damaged; and when `out` is not empty or cannot be written.
    """
    if len(directories) < 2:
        raise RealrlError("merge needs at least two datasets; name them all before --out")
    sources = [SourceSet(d) for d in directories]
    for other in sources[1:]:
        if difference := _difference(sources[0], other):
            raise RealrlError(f"{other.dir} does not fit {sources[0].dir}: {difference}; convert one of them first")
    return _make(sources, [p for i, s in enumerate(sources) for p in s.whole(i)], Path(out), each)


def delete_episodes(directory: str | Path, out: str | Path, episodes: Iterable[int] | str = (), *, failed: bool = False,
                    each: Each = iter) -> Edited:
    """A dataset less some episodes, by number (or as `episode_numbers` reads them) and, with `failed`, all that failed.

    Raises RealrlError on a number that is not there, when nothing or everything would go, and when `failed` is asked of a dataset
    that does not record success.
    """
    source = _opened(directory, episodes)
    gone = set(_known(source, episodes))
    if failed:
        gone |= {e for e, good in enumerate(successes(source)) if good is False}
    if not gone:
        raise RealrlError(f"{source.dir}: no episode to delete{' (none failed)' if failed else ''}; the dataset is what it should be")
    if len(gone) == len(source):
        raise RealrlError(f"{source.dir}: all {len(source)} episodes would go; delete the folder instead, if that is meant")
    return _make([source], source.whole(0, [e for e in range(len(source)) if e not in gone]), Path(out), each)


def split(directory: str | Path, out: str | Path, by: str, *, shuffle: int | None = None, each: Each = iter) -> dict[str, Edited]:
    """A dataset as several, each a folder below `out`; all appear together.

    by: "success" (folders success and failure, and unknown where there is any), fractions such as "0.8,0.2" (they may leave a rest
    out), or episodes such as "0:80,80:100"; each part may be named, "train=0.8,test=0.2", and is called part-0, part-1 ... otherwise.
    shuffle: seed of a random order for fractions. Raises RealrlError on a text that is none of these and on an empty part.
    """
    source, out = SourceSet(directory), Path(out)
    parts = {name: sorted(members) for name, members in _parts(source, by, shuffle).items()}
    if empty := [name for name, members in parts.items() if not members]:
        raise RealrlError(f"{source.dir}: part {empty[0]!r} of {by!r} would hold none of the {len(source)} episodes; choose other parts")
    done = {}
    with staged(out) as folder:
        for name, members in parts.items():
            (folder / name).mkdir()
            pieces = source.whole(0, members)
            notes = _assemble([source], pieces, folder / name, each)
            done[name] = Edited(out / name, len(pieces), sum(p.stop - p.start for p in pieces), notes)
    return done


def trim(directory: str | Path, out: str | Path, *, start: int = 0, end: int = 0, after_success: bool = False,
         keep: Mapping[int, tuple[int, int]] | None = None, episodes: Iterable[int] | str | None = None, each: Each = iter) -> Edited:
    """A dataset whose episodes begin later or end earlier.

    start, end: frames to cut from every episode; after_success: cut what follows the first success, which then ends the task;
    keep: episode -> (first frame, frame after the last) to keep of it, in place of all that; episodes: only these are cut, the
    others stay whole. The frame after a cut becomes the last observation; an episode that was cut in the middle counts as
    truncated. Raises RealrlError when an episode would have no frame left, naming it.
    """
    source = _opened(directory, episodes)
    chosen = set(range(len(source)) if episodes is None else _known(source, episodes))
    spans = dict(keep or {})
    _known(source, spans)
    if not (start or end or after_success or spans):
        raise RealrlError("nothing to trim: say how many frames at the start or the end, or after success")
    pieces = []
    for piece in source.whole():
        e, n = piece.episode, piece.stop
        first, stop, solved = (start, n - end, False) if e in chosen else (0, n, False)
        if e in spans:
            first, stop = spans[e]
        elif after_success and e in chosen:
            reached = np.flatnonzero(_success(source, e)[first:])
            if len(reached) and first + int(reached[0]) + 1 <= stop:
                stop, solved = first + int(reached[0]) + 1, True
        if not 0 <= first < stop <= n:
            raise RealrlError(f"{source.dir}: episode {e} has {n} frames, {first}:{stop} of it leaves none; "
                              "cut less, or delete the episode")
        pieces.append(Piece(0, e, first, stop, solved and stop < n))
    return _make([source], pieces, Path(out), each)


def episode_numbers(text: str, there: int | None = None, where: object = "") -> list[int]:
    """Episodes written as "3,7,10:20" (the end of a range is not part of it), each once.

    there: how many `where` holds, None if that is not known. Raises RealrlError on anything else, and before any list is made for a
    number that is not there, or for more than anybody means.
    """
    ranges = _ranges(text)
    if there is not None and (wrong := [span for span in ranges if span.stop > there]):
        raise RealrlError(f"{where} holds {there} episodes, there is no number {max(there, wrong[0].start)}; count from 0")
    if (many := sum(span.stop - span.start for span in ranges)) > MOST:
        raise RealrlError(f"episodes {text!r}: these are {many:,}, at most {MOST:,} make sense; write fewer")
    return list(dict.fromkeys(number for span in ranges for number in span))


def _ranges(text: str) -> list[range]:
    """What a list of episodes says. Raises RealrlError when it is none."""
    ranges = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})(?::([0-9]{1,18}))?\s*", word)
        if not match or (match[2] and int(match[2]) <= int(match[1])):
            raise RealrlError(f"episodes {text!r}: {word!r} is no number and no range; write them as 3,7,10:20")
        ranges.append(range(int(match[1]), int(match[2] or int(match[1]) + 1)))
    return ranges


def successes(source: SourceSet) -> list[bool | None]:
    """Whether each episode ended in success, None for unknown, see `labels.outcomes`. Raises RealrlError when nothing is known."""
    found = labels.outcomes(source.dir, source.info, source.rows)
    if all(good is None for good in found):
        raise RealrlError(f"{source.dir}: nothing says which episodes succeeded; label them (realrl data label {typed(source.dir)}), or "
                          "give episode numbers")
    return found


# ---- parts of these


def _make(sources: Sequence[SourceSet], pieces: Sequence[Piece], out: Path, each: Each) -> Edited:
    with staged(out) as folder:
        notes = _assemble(sources, pieces, folder, each)
    return Edited(out, len(pieces), sum(p.stop - p.start for p in pieces), notes)


def _assemble(sources: Sequence[SourceSet], pieces: Sequence[Piece], folder: Path, each: Each) -> list[str]:
    """The dataset and its side files; a line for what a user should know of them."""
    notes = [f"{s.dir}: {note}" for s in sources for note in s.notes] + assemble(sources, pieces, folder, each)
    return notes + side.carry([s.dir for s in sources], [(p.source, p.episode, p.start, p.stop) for p in pieces], folder)


def _difference(a: SourceSet, b: SourceSet) -> str:
    """Why two datasets cannot be one, "" if they can."""
    for what, name in (("fps", "fps"), ("robot", "robot_type")):
        if a.info.get(name) != b.info.get(name):
            return f"{what} is {b.info.get(name)}, not {a.info.get(name)}"
    for name in dict.fromkeys([*a.features, *b.features]):
        x, y = a.features.get(name), b.features.get(name)
        if x is None or y is None:
            return f"feature {name} is {'only in it' if x is None else 'missing'}"
        for field_name in ("dtype", "shape"):
            if x[field_name] != y[field_name]:
                return f"{field_name} of {name} is {y[field_name]}, not {x[field_name]}"
        small = [told(f).get(FRACTIONS) for f in (x, y)]
        if small[0] != small[1]:
            return f"pictures of {name} are {'fractions of 1' if small[1] else 'levels to 255'} there and not here"
        deep = [is_depth(f) for f in (x, y)]
        if deep[0] != deep[1]:
            return f"{name} is {'depth' if deep[1] else 'colour'} there and {'depth' if deep[0] else 'colour'} here"
    return ""


def _opened(directory: str | Path, episodes: Iterable[int] | str | None) -> SourceSet:
    """The dataset, once a list that is written as nobody can read it has been refused."""
    if isinstance(episodes, str):
        _ranges(episodes)
    return SourceSet(directory)


def _known(source: SourceSet, episodes: Iterable[int] | str) -> list[int]:
    if isinstance(episodes, str):
        return episode_numbers(episodes, len(source), source.dir)
    numbers = []
    for e in episodes:
        if not 0 <= e < len(source):
            raise RealrlError(f"{source.dir} holds {len(source)} episodes, there is no number {e}; count from 0")
        numbers.append(int(e))
    return numbers


def _success(source: SourceSet, episode: int) -> Array:
    """An episode's success flags [T]."""
    name = next((name for name in ALIASES["next.success"] if name in source.features), None)
    if name is None:
        raise RealrlError(f"{source.dir} does not record success (no column next.success); give episode numbers")
    length = int(source.length[episode])
    try:
        found = won({name: tables.to_numpy(source.frames(episode)[name], name, source.features[name])}, length)
    except ValueError as error:
        raise RealrlError(f"{source.dir}: episode {episode}: {error}; run 'realrl data check {typed(source.dir)}'") from error
    return np.zeros(length, bool) if found is None else found


def _parts(source: SourceSet, by: str, shuffle: int | None) -> dict[str, list[int]]:
    """Name -> episodes of every part that `by` describes."""
    if by == "success":
        good = successes(source)
        parts = {name: [e for e, known in enumerate(good) if known is value] for name, value in
                 {"success": True, "failure": False, "unknown": None}.items()}
        return {name: members for name, members in parts.items() if members or name != "unknown"}
    words: dict[str, str] = {}
    for i, word in enumerate(by.split(",")):
        name, equals, spec = word.strip().rpartition("=")
        name = name if equals else f"part-{i}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in words:
            raise RealrlError(f"split by {by!r}: {name!r} cannot name a part; use different names of letters, digits, '-', '_' and '.'")
        words[name] = spec
    if all(re.fullmatch(r"[01]?\.\d+", spec) for spec in words.values()):
        return _fractions(source, {name: float(spec) for name, spec in words.items()}, by, shuffle)
    if shuffle is not None or not all(re.fullmatch(r"\d+(:\d+)?", spec) for spec in words.values()):
        raise RealrlError(f"split by {by!r} is not understood{' with a shuffle' if shuffle is not None else ''}; write 'success', "
                          "fractions (train=0.8,test=0.2) or episodes (0:80,80:100)")
    parts = {name: _known(source, spec) for name, spec in words.items()}
    everyone = [e for members in parts.values() for e in members]
    if len(everyone) > len(set(everyone)):
        raise RealrlError(f"split by {by!r}: an episode is in two parts; write ranges that do not overlap, 0:80,80:100")
    return parts


def _fractions(source: SourceSet, sizes: Mapping[str, float], by: str, shuffle: int | None) -> dict[str, list[int]]:
    if sum(sizes.values()) > 1 + 1e-9:
        raise RealrlError(f"split by {by!r}: the fractions sum to {sum(sizes.values()):g}, at most 1 is there; write 0.8,0.2")
    order = np.arange(len(source)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(source))
    cuts = np.round(np.cumsum([0.0, *sizes.values()]) * len(source)).astype(int)
    return {name: order[a:b].tolist() for name, a, b in zip(sizes, cuts[:-1], cuts[1:], strict=True)}


# ---- a folder that appears whole


@contextlib.contextmanager
def staged(out: str | Path) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `out` at the end; an error, an interruption or a kill leaves no `out`.

    What earlier kills left is removed. Raises RealrlError when `out` holds something, and for every OSError inside.
    """
    out = Path(out)
    try:
        if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
            raise RealrlError(f"{out} is not empty; choose a new folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        folder = out.parent / f".{out.name}.{secrets.token_hex(4)}.tmp"
        folder.mkdir()
        fd = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # tells other edits that its maker is alive
            yield folder
            for path in (*folder.rglob("*"), folder):
                if path.is_dir():
                    sync(path)
            folder.replace(out)
            sync(out.parent)
        finally:
            os.close(fd)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise RealrlError(f"{out} could not be written ({error.strerror or error}); free space or mend the permissions") from error


def _sweep(out: Path) -> None:
    """Remove what killed edits towards the same folder left; those of living ones are locked."""
    for left in out.parent.glob(f".{out.name}.*.tmp"):
        with contextlib.suppress(OSError):
            fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(fd)

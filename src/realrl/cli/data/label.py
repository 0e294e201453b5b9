"""`realrl data label`: which episodes ended in success, said by a person: by rule, or one by one in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realrl.cli.data.episodes import EPISODES
from realrl.cli.parser import command, interrupted, mistake, progress, say

if TYPE_CHECKING:
    from realrl.data.store import Recordings
    from realrl.types import Episode

RULES = ("reward", "last")
KEYS = {"s": "success", "f": "failure", "u": "unknown"}
HELP = "s success   f failure   u unknown   enter leaves it   b back   q quit"
GROUP = 200  # episodes that are read at once


def add(actions: Any) -> None:
    """`label` and its flags."""
    parser = command(actions, "label", "Say which episodes ended in success, by rule or one by one in the terminal. Labels lie beside the "
                     "recording (DIR/derived/labels), which stays as it is, count more than it, and are read by everything that reads "
                     "episodes. What is said is kept at once: the same command continues.",
                     "realrl data label demos\n  realrl data label demos --success all --failure 5,12:14", _label)
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset, LeRobot's layout 2.x or 3")
    parser.add_argument("--success", metavar="WHICH", help=f"all; reward: those whose last reward is above 0, the others failed; last: as "
                        f"next.success of the last frame says; or {EPISODES}")
    parser.add_argument("--failure", metavar="WHICH", help="all, or a list, which counts more than a rule")
    parser.add_argument("--unknown", metavar="WHICH", help="all, or a list: what nobody can tell, whatever the recording says")
    parser.add_argument("--episodes", metavar="LIST", help=f"go through these {EPISODES} (default: all that have no label yet)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the films to look at (default: DIR-view, beside the dataset)")


def _label(args: argparse.Namespace) -> int:
    from realrl.data import labels
    from realrl.data.formats import open_dataset
    store = open_dataset(args.dir)
    if not len(store):
        raise mistake()(f"{args.dir} holds no episodes yet, there is nothing to label")
    chosen = _chosen(args, store)
    if chosen is None:
        return _one_by_one(args, store)
    how = shlex.join(part for name in KEYS.values() if (given := getattr(args, name)) for part in (f"--{name}", given))
    version = labels.give(args.dir, store.labels.rows(), chosen, how)
    told = Counter(chosen.values())
    say(f"{args.dir}: {len(chosen):,} of {len(store):,} episodes labelled: {', '.join(f'{told[word]:,} {word}' for word in told)} "
        f"(derived/labels, version {version})")
    return 0


# ---- by rule


def _chosen(args: argparse.Namespace, store: Recordings) -> dict[int, str] | None:
    """Episode -> label, as the flags say; None without one. Lists count more than rules."""
    from realrl.data.tools.edit import episode_numbers
    given = {word: text for word in KEYS.values() if (text := getattr(args, word)) is not None}
    if not given:
        return None
    if args.episodes is not None or args.out is not None:
        raise mistake()("--episodes and --out are for going through them one by one: leave them out")
    rules = [word for word, text in given.items() if text == "all" or (word == "success" and text in RULES)]
    if len(rules) > 1:
        raise mistake()(f"--{rules[0]} {given[rules[0]]} and --{rules[1]} {given[rules[1]]} both judge every episode: give one of them")
    chosen = _ruled(store, rules[0], given[rules[0]]) if rules else {}
    listed: dict[int, str] = {}
    for word, text in given.items():
        for number in episode_numbers(text, len(store), store.dir) if word not in rules else ():
            if number in listed:
                raise mistake()(f"episode {number} stands in --{listed[number]} and in --{word}: decide")
            listed[number] = word
    return chosen | listed


def _ruled(store: Recordings, word: str, rule: str) -> dict[int, str]:
    """What a rule says of every episode. Raises RealrlError where the recording has nothing that it could judge by."""
    if rule == "all":
        return dict.fromkeys(range(len(store)), word)
    from realrl.data.schema import ALIASES
    column = "next.reward" if rule == "reward" else "next.success"
    if not any(alias in store.info["features"] for alias in ALIASES[column]):
        raise mistake()(f"{store.dir} has no column {column}: --success all, a list, or one by one")
    store.labels.heeded = False  # the recording is judged, not what was said of it before
    good = [bool(e.reward[-1] > 0) if rule == "reward" else e.succeeded for e in progress(_read(store), "reading", len(store))]
    store.labels.heeded = True
    if not any(good):
        raise mistake()(f"{store.dir}: {column} of the last frame is never above 0, so every episode would have failed; if that is so, "
                        "say --failure all")
    return {e: "success" if won else "failure" for e, won in enumerate(good)}


def _read(store: Recordings) -> Iterator[Episode]:
    for start in range(0, len(store), GROUP):
        yield from store.read(range(start, min(start + GROUP, len(store))), images=False)


# ---- one by one


def _one_by_one(args: argparse.Namespace, store: Recordings) -> int:
    from realrl.data import labels
    from realrl.data.tools.edit import episode_numbers
    if not sys.stdin.isatty():
        raise mistake()(f"{args.dir}: no terminal to ask in; say which with --success all, reward, last or 0:5,7 and --failure 5,6")
    known = labels.read(args.dir, store.labels.rows())[labels.LABEL]
    wanted = range(len(store)) if args.episodes is None else episode_numbers(args.episodes, len(store), args.dir)
    first = 0 if args.episodes is not None else next((i for i, word in enumerate(known) if word is None), len(store))
    if first == len(wanted):
        say(f"{args.dir}: all {len(store):,} episodes have labels; --episodes LIST goes through some again")
        return 0
    films = _Films(args.dir, args.out)
    try:
        with _key_by_key():
            _ask(store, wanted, first, known, films)
    except KeyboardInterrupt:
        return interrupted(f"; every label is safe in {args.dir}, the same command continues")
    finally:
        films.close()
    told = Counter("without a label" if word is None else word for word in known)
    say(f"{args.dir}: {', '.join(f'{many:,} {word}' for word, many in told.items())}"
        + ("; the same command continues" if None in known else ""))
    return 0


def _ask(store: Recordings, wanted: Sequence[int], first: int, known: list[str | None], films: _Films) -> None:
    """Show one after the other and keep what is said of it at once; `known` follows."""
    from realrl.data import labels
    at, version, rows = first, None, store.labels.rows()
    store.labels.heeded = False  # both are shown, what was recorded and what is said of it
    say(HELP)
    while 0 <= at < len(wanted):
        number = wanted[at]
        for line in ("", *_facts(store, number, known[number])):
            say(line)
        say(f"  look at {films.of(number)}")
        films.prepare(wanted[at + 1:at + 2])
        while (key := _key()) not in (*KEYS, "b", "q", "\n", ""):
            say(HELP)
        if key in ("q", ""):
            return
        if key in KEYS:
            version = labels.give(store.dir, rows, {number: KEYS[key]}, "by hand", version)
            known[number] = KEYS[key]
            say(f"  {KEYS[key]}")
        at = max(at - 1, 0) if key == "b" else at + 1


def _facts(store: Recordings, number: int, label: str | None) -> tuple[str, str]:
    from realrl.data.labels import WORD
    (e,) = store.read([number], images=False)
    recorded = WORD[e.succeeded if e.judged else None]
    return (f"episode {number} of 0..{len(store) - 1}: {len(e)} steps, {len(e) / store.fps:.1f} s, return {float(e.reward.sum()):.4g}, "
            f"{e.task or 'no task text'}", f"  label: {label or 'none'}, recorded: {recorded}")


@contextlib.contextmanager
def _key_by_key() -> Iterator[None]:
    """The terminal hands over every key at once, and shows none; what was typed ahead counts."""
    import termios
    import tty
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _key() -> str:
    """The next key, small; "" at the end of the input."""
    fd = sys.stdin.fileno()
    key = os.read(fd, 1)
    if key == b"\x1b" and select.select([fd], [], [], 0.05)[0] and os.read(fd, 1) in (b"[", b"O"):  # an arrow key sends several
        while (more := os.read(fd, 1)) and not b"@" <= more <= b"~":
            pass
    return "" if key in (b"", b"\x04") else key.decode(errors="replace").replace("\r", "\n").lower()


class _Films:
    """A film of each episode (or a page of its numbers, where it has no pictures), the next one made while a person looks at this one."""

    def __init__(self, directory: Path, out: Path | None) -> None:
        whole = directory.resolve()
        self._dir, self._folder = directory, out or whole.with_name(whole.name + "-view")
        self._pool, self._made = ThreadPoolExecutor(1), dict[int, Future[str]]()

    def prepare(self, numbers: Sequence[int]) -> None:
        """Begin to make some that are not there."""
        for number in numbers:
            if number not in self._made:
                self._made[number] = self._pool.submit(self._make, number)

    def of(self, number: int) -> str:
        """Where it lies, or why there is none."""
        self.prepare([number])
        return self._made[number].result()

    def close(self) -> None:
        """Make no more."""
        self._pool.shutdown(cancel_futures=True)

    def _make(self, number: int) -> str:
        from realrl.report.pictures import cameras_of, clouds_of
        from realrl.report.view import film, page
        from realrl.report.view.clips import recorded
        try:
            found = recorded(self._dir, name=f"{self._dir.resolve().name}-{number}", numbers=[number])
            (clip,) = found.clips()
            seen = next(iter((*cameras_of(clip.episode.obs), *clouds_of(clip.episode.obs))), None)
            write: Callable[[], Path] = (lambda: film.write(clip, self._folder / f"{found.name}.mp4")) if seen else (
                lambda: page.write_page(found, self._folder / f"{found.name}.html", [clip]))
            return str(write())
        except (mistake(), OSError) as error:
            return f"nothing: {error}"

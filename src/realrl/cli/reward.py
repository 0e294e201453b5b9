"""`realrl reward label | fit | audit`: a classifier of success, from labelled frames of recordings."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realrl.cli.data.episodes import EPISODES
from realrl.cli.parser import Parser, command, group, mistake, say, screen, whole

if TYPE_CHECKING:
    from realrl.data.store import Store
    from realrl.learn.classifier import Audit
    from realrl.types import Array, Episode

NAME = "solved"
FIT = """Fit a classifier to labelled datasets, choose its threshold and audit it, on other episodes each.

Every flag below is a field of the configuration. Beside them:
  DIR ...     labelled datasets of one robot
  --out DIR   folder for the classifier

example: realrl reward fit demos failures --out runs/seated --keys images.wrist"""
SPANS = "EPISODE:FIRST:END, several with commas; frames count from 0, END is not part of it"


def add(commands: Any) -> None:
    """The commands on success classifiers."""
    reward = group(commands, "reward", "Tell success by what the robot sees: label frames, fit a classifier, audit it.",
                   "realrl reward fit demos --out runs/seated")
    actions = reward.add_subparsers(metavar="ACTION", parser_class=Parser)
    label = command(actions, "label", "Say which frames of a dataset show success. The first time all frames are labelled as next.success "
                    "has them, or people said of the episode; later calls change what is said, and label episodes that came since. "
                    "Labels lie beside the recording (DIR/derived/solved), a version a call.",
                    "realrl reward label demos --near 3\n  realrl reward label runs/hil/dataset --wrong 12,40", _label)
    label.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset")
    label.add_argument("--again", action="store_true", help="begin anew from next.success, and what people said of whole episodes")
    label.add_argument("--last", type=whole(0), default=0, metavar="N", help="beginning anew: the last N frames of a success show it, too")
    label.add_argument("--near", type=whole(0), default=0, metavar="N", help="beginning anew: so many frames before success are left out")
    label.add_argument("--wrong", metavar="LIST", help="a classifier was wrong there: these episodes failed, none of their frames shows "
                       f"success; {EPISODES}")
    label.add_argument("--solved", metavar="SPANS", help=f"frames that show success: {SPANS}")
    label.add_argument("--unsolved", metavar="SPANS", help="frames that do not")
    fit = actions.add_parser("fit", help=FIT.partition("\n")[0], add_help=False, allow_abbrev=False)  # its help is the configuration's
    fit.add_argument("dirs", type=Path, nargs="*")
    fit.add_argument("--out", type=Path)
    fit.set_defaults(command=_fit)
    audit = command(actions, "audit", "Judge a classifier by labelled frames that it was not fitted to.",
                    "realrl reward audit runs/seated --data tuesday", _audit)
    audit.add_argument("dir", type=Path, metavar="DIR", help="folder of the classifier")
    audit.add_argument("--data", type=Path, required=True, metavar="DIR", help="a labelled dataset")
    audit.add_argument("--frames", type=whole(1), metavar="N", help="as if so many frames in a row were asked for")


# ---- label


def _label(args: argparse.Namespace) -> int:
    import numpy as np

    from realrl.data import labels as outcomes
    from realrl.data import side
    from realrl.data.errors import typed
    from realrl.data.store import Store
    from realrl.data.tools.edit import episode_numbers
    from realrl.learn.classifier import NO, UNLABELLED, YES
    store = Store.open(args.dir)
    if not len(store):
        raise mistake()(f"{args.dir} holds no episodes yet, there is nothing to label")
    fresh = args.again or args.last or args.near or not side.versions(args.dir, NAME)
    labels = [_as_recorded(e, args.last, args.near) for e in store.read(images=False)] if fresh else read(store, new=True)
    wrong = episode_numbers(args.wrong, len(store), args.dir) if args.wrong else []
    for number in wrong:
        labels[number][:] = NO
    for word, value in ((args.solved, YES), (args.unsolved, NO)):
        for number, first, end in _spans(word, labels) if word else ():
            labels[number][first:end] = value
    column = np.concatenate(labels)
    version = side.write(args.dir, NAME, {NAME: column})
    if wrong:  # a run that goes on learns from them as from failures
        outcomes.give(args.dir, store.rows, dict.fromkeys(wrong, "failure"), f"reward label --wrong {args.wrong}")
        say(f"episodes {args.wrong} count as failures from now on, for a run that goes on, too (to take it back: realrl data label "
            f"{typed(args.dir)} --success ...)")
    counts = {name: int((column == value).sum()) for name, value in (("solved", YES), ("unsolved", NO), ("neither", UNLABELLED))}
    say(f"{args.dir}: {', '.join(f'{n:,} frames {name}' for name, n in counts.items())} (derived/{NAME}, version {version})")
    return 0


def _as_recorded(episode: Episode, last: int, near: int) -> Array:
    """The labels [T] of what followed each step."""
    import numpy as np

    from realrl.learn.classifier import NO, UNLABELLED, YES
    label = np.where(episode.success, YES, NO).astype(np.int8)
    if last and episode.succeeded:
        label[-last:] = YES
    first = int(np.argmax(label == YES)) if (label == YES).any() else 0
    label[max(first - near, 0):first] = UNLABELLED
    return label


def _spans(text: str, labels: Sequence[Array]) -> list[tuple[int, int, int]]:
    """(episode, first frame, frame after the last) of each. Raises RealrlError for what is none."""
    found = []
    for word in text.split(","):
        numbers = word.split(":")
        if len(numbers) != 3 or not all(n.strip().isdecimal() for n in numbers):
            raise mistake()(f"{word!r} is no span of frames: {SPANS}, e.g. 3:40:60")
        number, first, end = map(int, numbers)
        if number >= len(labels) or not first < end <= len(labels[number]):
            there = f"episode {number} has {len(labels[number])} frames" if number < len(labels) else f"there are {len(labels)} episodes"
            raise mistake()(f"{word!r} lies outside the dataset: {there}")
        found.append((number, first, end))
    return found


def read(store: Store, *, new: bool = False) -> list[Array]:
    """The labels of a dataset, [T] an episode. new: episodes that came since are labelled as recorded. Raises RealrlError where there are
    no labels, or, else, none of the newest episodes."""
    import numpy as np

    from realrl.data import side
    from realrl.data.errors import typed
    from realrl.learn.classifier import UNLABELLED
    if not side.versions(store.dir, NAME):
        raise mistake()(f"{store.dir}: its frames have no labels yet: realrl reward label {typed(store.dir)}")
    found = side.read(store.dir, NAME, missing="nan")
    if found.missing and not new:
        raise mistake()(f"{store.dir}: {found.missing} of its {len(store)} episodes came after its frames were labelled: realrl reward "
                        f"label {typed(store.dir)}, which keeps what was said of the others")
    column = np.array([UNLABELLED if x is None else x for x in found.columns[NAME].tolist()], np.int8)
    parts: list[Array] = np.split(column, np.cumsum(store.lengths)[:-1])
    for i in range(len(store) - found.missing, len(store)):
        parts[i] = _as_recorded(store.read([i], images=False)[0], 0, 0)
    return [part.copy() for part in parts]


# ---- fit and audit


def _fit(args: argparse.Namespace) -> int:
    from realrl import config
    from realrl.data.tools.edit import staged
    from realrl.learn.classifier import ClassifierConfig, fit, save
    cfg = config.parse(ClassifierConfig, args.flags, prog="realrl reward fit", description=FIT)
    if not args.dirs or args.out is None:
        raise mistake()("realrl reward fit DIR ... --out DIR: name labelled datasets and a folder for the classifier (see --help)")
    with staged(args.out) as folder:  # another classifier may be what a run relies on
        episodes, labels = _read(args.dirs)
        model, found = fit(episodes, labels, cfg)
        save(model, found, folder)
    _show(found, f"{args.out}: looks at {', '.join(model.shapes)}")
    return 0


def _audit(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from realrl.learn.classifier import audit, labelled, load
    model = load(args.dir)
    if args.frames:
        model.cfg = replace(model.cfg, frames=args.frames)
    episodes, labels = _read([args.data])
    other = [i for i, episode in enumerate(episodes) if model.identity(episode) not in model.fitted]
    if not other:
        raise mistake()(f"{args.data}: all of its {len(episodes)} episodes had a part in the fit of {args.dir}, which told then what it is "
                        "worth on others: audit it on another recording")
    if len(other) < len(episodes):
        say(f"note: {len(episodes) - len(other)} of the {len(episodes)} episodes of {args.data} had a part in the fit and are left out")
    judged = labelled(model, [episodes[i] for i in other], [labels[i] for i in other])
    _show(audit(model, judged), f"{args.dir} on {args.data}")
    return 0


def _read(folders: Sequence[Path]) -> tuple[list[Episode], list[Array]]:
    """The episodes of datasets and their labels."""
    from realrl.data.store import Store
    episodes: list[Episode] = []
    labels: list[Array] = []
    for folder in folders:
        store = Store.open(folder)
        labels += read(store)
        episodes += store.read()
    return episodes, labels


def _show(found: Audit, title: str) -> None:
    """An audit as a table, with its mends."""
    from rich.table import Table

    from realrl.types import printable
    table = Table("on episodes that it was not fitted to", "share", "95 % interval", "count", title=printable(title), title_justify="left")
    for name, share in (("unsolved frames taken for solved", found.false), ("solved frames missed", found.missed),
                        (f"episodes ended too soon ({found.frames} in a row)", found.alarms), ("solved episodes never seen", found.unseen)):
        low, high = share.interval
        rate = f"{100 * share.count / share.of:.2f} %" if share.of else "nothing to judge"
        table.add_row(name, rate, f"{100 * low:.2f} - {100 * high:.2f} %", f"{share.count:,} of {share.of:,}")
    screen().print(table)
    say(f"threshold {found.threshold:.4f}; area under the ROC "
        f"{'nothing to judge, all frames are of one kind' if math.isnan(found.auc) else f'{found.auc:.4f}'}")
    if found.alarms.count:
        say("it would end episodes too soon: label what it takes for success as unsolved (realrl reward label --unsolved), or ask for more "
            "frames in a row, before you touch the threshold")

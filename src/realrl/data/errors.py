"""What is wrong with a file of a dataset, in one line: what happened, and what mends it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shlex
import stat
from pathlib import Path
from typing import Any

import av
import pyarrow as pa

from realrl.files import read_plain
from realrl.types import RealrlError

# What a damaged parquet file or picture may raise.
DAMAGED = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError, av.FFmpegError)

BLIND = ("do without the camera: --sight.cameras of 'realrl train' names the others (--sight.kind state: none), --option cameras=NAME,NAME "
         "of 'realrl data import' (--option images=False: none)")  # what there is to do about pictures that cannot be had


DRIFT = ("if they only drifted apart, --recorded.tolerance SECONDS of 'realrl train' or --option tolerance=SECONDS of 'realrl data import' "
         "lets that pass")
LATE = ("if it is that late from end to end, write it anew with its beginning at 0 ('ffmpeg -i OLD.mp4 -c copy NEW.mp4') and put that in "
        "its place")
OTHER_SIZE = f"make a set without its episodes ('realrl data delete-episodes', or --leave-out LIST of 'realrl data import'), or {BLIND}"
FETCH = "correct it, or fetch it again"  # what nobody here wrote, and a person can read


def typed(path: Path | str) -> str:
    """A path as one types it in a shell, for a message that quotes the whole command in '...'."""
    text = str(path)
    return text if shlex.quote(text) == text else f'"{text}"' if not set(text) & set('"$`\\!') else shlex.quote(text)


def line(error: BaseException) -> str:
    """An error's text on one line of bearable length."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def plain(path: Path) -> Path:
    """The path again, for readers that open files themselves. Raises RealrlError for what could be waited for or read for ever: a pipe,
    a socket, a device, a folder; FileNotFoundError where nothing is."""
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise RealrlError(f"{path} is no plain file; put a copy of the file there")
    if about.st_size < SMALL:
        refuse_pointer(path)
    return path


SMALL = 1024  # bytes: what stands for a file in git-lfs has fewer
DEEP = 4  # folders above a file in which its data set may begin: videos/CAMERA/chunk-000/file-000.mp4
POINTER = b"version https://git-lfs.github.com/spec/"


def is_pointer(path: Path) -> bool:
    """Whether a file is what git-lfs puts in the place of one that was not fetched."""
    try:
        return stat.S_ISREG((about := os.stat(path)).st_mode) and about.st_size < SMALL and read_plain(path, SMALL).startswith(POINTER)
    except (OSError, RealrlError):
        return False


def refuse_pointer(path: Path) -> None:
    """Raise RealrlError for a git-lfs pointer: the file is not damaged, it was never fetched."""
    if is_pointer(path):
        folder = next((root for root in path.parents[:DEEP] if (root / "meta").is_dir()), path.parent)
        raise RealrlError(f"{path} is a git-lfs pointer, not the file: run 'git lfs pull' in {typed(folder)}")


def mend(path: str | Path) -> str:
    """What to do about a damaged or missing file: `repair` mends a dataset of version 3; else it is fetched again, or its episodes stay
    away."""
    root = next((root for root in Path(path).parents[:DEEP] if any((root / name).is_dir() for name in ("meta", "data"))), None)
    if root is not None:
        version = ""
        with contextlib.suppress(OSError, RealrlError, ValueError, AttributeError, RecursionError):
            version = str(json.loads(read_plain(root / "meta/info.json")).get("codebase_version"))
        if version.startswith("v3.") or (not version and holds_recordings(root)):
            return f"run 'realrl data repair {typed(root)}'"
        if version.startswith("v2."):
            return ("fetch it again, or remove it and leave its episodes out: --recorded.missing episodes of 'realrl train', --option "
                    "missing=episodes of 'realrl data import'") if Path(path).suffix in (".parquet", ".mp4") else FETCH
    return "fetch it again, or restore it from a copy"


def holds_recordings(root: Path) -> bool:
    """Whether there are data files or episodes tables as we lay them out, whatever else is lost."""
    return any(next(root.glob(f"{folder}/chunk-*/file-*.parquet"), None) for folder in ("data", "meta/episodes"))


def read_json(path: Path, most: int = 2**27) -> Any:
    """A JSON document. Raises FileNotFoundError where none is, and RealrlError for what is none, or too deep or too large to be used."""
    refuse_pointer(path)
    try:
        return copy.deepcopy(json.loads(read_plain(path, most)))  # whatever is nested too deep to be used is found here
    except FileNotFoundError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise RealrlError(f"{path} is not readable JSON ({line(error)}); {mend(path)}") from error


def legible(name: str | Path) -> None:
    """Raise RealrlError for a name that is no text here. pyarrow, h5py and safetensors open files by names in UTF-8 alone, and what they
    say of another would be taken for damage."""
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        raise RealrlError(f"{name}: its name is not in UTF-8, in which files are opened here: rename it (convmv), or go into that folder "
                          "(cd) and name what is below; where the name looks right in the terminal, set PYTHONUTF8=1") from error

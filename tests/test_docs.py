"""What README, CONTRIBUTING and docs/ name is there: modules and names, commands and flags, files, targets of make."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from realrl.cli import main as cli
from test_architecture import FLOORS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACES = (ROOT, ROOT / "src" / "realrl", ROOT / "src" / "realrl" / "data", ROOT / "docs")  # what paths in the text are relative to
RECORDED = re.compile(r"<!-- table (\w+) -->.*?<!-- end \1 -->", re.DOTALL)  # rows and the commands that made them, as they were given
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def written(page: Path) -> str:
    """What people wrote of a page."""
    return RECORDED.sub("", page.read_text(encoding="utf-8"))


def code(page: Path) -> Iterator[str]:
    """Every line of code of a page, in fences and between backticks; a continued line is one."""
    text = written(page)
    for fence in FENCE.findall(text):
        yield from fence.replace("\\\n", " ").splitlines()
    yield from INLINE.findall(FENCE.sub("", text))


def resolves(name: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            if not hasattr(found, part) and part not in getattr(found, "__dataclass_fields__", ()):
                return False
            found = getattr(found, part, None)
        return True
    return False


def unknown_names(page: Path) -> list[str]:
    text = written(page)
    names = {name.rstrip(".") for name in re.findall(r"(?<![\w./-])realrl(?:\.\w+)+", text)}
    for module, imported in re.findall(r"^from (realrl[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
    return sorted(name for name in names if not resolves(name))


@functools.cache
def classes() -> dict[str, set[str]]:
    """What every class of the package has: its bases, methods, fields and what its methods assign to self."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src" / "realrl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                has = found.setdefault(node.name, set())
                has |= {ast.unparse(base).split(".")[-1] for base in node.bases}
                for item in ast.walk(node):
                    if isinstance(item, ast.FunctionDef):
                        has.add(item.name)
                    elif isinstance(item, (ast.Name, ast.Attribute)) and isinstance(item.ctx, ast.Store):
                        has.add(item.id if isinstance(item, ast.Name) else item.attr)
    return found


def unknown_members(page: Path) -> list[str]:
    """`Class.member` of a class of ours that has no such member, nor has a base of it."""
    wrong = []
    for name, member in re.findall(r"`([A-Z]\w+)\.(\w+)[`(]", FENCE.sub("", written(page))):
        has = classes().get(name)
        if has is not None and not any(member in classes().get(one, ()) for one in (name, *has)):
            wrong.append(f"{name}.{member}")
    return wrong


@functools.cache
def help_of(*words: str) -> str:
    """What a command's --help prints, "" where there is no such command."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cli.main([*words, "--help"])
    except SystemExit as left:
        return out.getvalue() if left.code == 0 else ""
    return ""


def unknown_flags(page: Path) -> list[str]:
    wrong = []
    for line in code(page):
        for command in re.findall(r"(?:^|[\s/;])realrl ([^#;|]+)", re.sub(r"\w*python\w*", "", line)):
            with contextlib.suppress(ValueError):
                wrong += unknown_in(shlex.split(command))
    return sorted(set(wrong))


def unknown_in(words: list[str]) -> list[str]:
    """What a command of these words does not know: itself, or flags of it. COMMAND and the like stand for any."""
    depth = 2 if words[:1] in (["train"], ["data"], ["reward"], ["robot"], ["calibrate"]) else 1
    named = [w for w in words[:depth] if re.fullmatch(r"[a-z][a-z0-9-]*", w)]
    flags = [w.partition("=")[0] for w in words if re.match(r"--[a-z]", w)]
    if not named:
        return []
    told = help_of(*named)
    if not told:
        return [f"realrl {' '.join(named)}"]
    return [f"realrl {' '.join(named)} {flag}" for flag in flags if not re.search(rf"(?<![\w.-]){re.escape(flag)}(?![\w.-])", told)]


def unknown_paths(page: Path) -> list[str]:
    """Paths with a folder that end like a file of ours, or begin in a folder of ours."""
    wrong = []
    for text in INLINE.findall(FENCE.sub("", written(page))):
        for word in text.split():
            path = re.sub(r"[,;:.)]+$", "", word.split("::")[0])
            ours = re.match(r"(src|tests|docs|benchmarks|\.ci)/", path) or re.search(r"/.*\.(py|md|toml|jsonl)$", path)
            plain = re.fullmatch(r"[\w./-]+", path) and not path.startswith(("/", "runs/")) and "NAME" not in path
            if ours and plain and not any((place / path).exists() for place in (*PLACES, page.parent)):
                wrong.append(path)
    return wrong


def unknown_programs(page: Path) -> list[str]:
    """`python -m benchmarks.NAME`, `python FILE.py` of the repository and `make TARGET`."""
    targets, wrong = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)), []
    for line in code(page):
        wrong += [m for m in re.findall(r"python -m (benchmarks[\w.]*)", line) if "NAME" not in m and importlib.util.find_spec(m) is None]
        wrong += [f for f in re.findall(r"python ((?:benchmarks|docs|tests)/\S+\.py)", line) if "NAME" not in f and not (ROOT / f).exists()]
        wrong += [f"make {t}" for t in re.findall(r"^make ([a-z][\w-]*)", line) if t not in targets]
    return wrong


CHECKS = (unknown_names, unknown_members, unknown_flags, unknown_paths, unknown_programs)


@pages
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_what_is_named_is_there(page, check):
    assert check(page) == [], f"{page.relative_to(ROOT)} names what is not there"


def test_the_table_of_the_house_has_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert not [room for room in FLOORS if f"`{room}`" not in text and f"`{room.replace('.', '/')}/`" not in text]


def test_the_checks_can_fail(tmp_path):
    """A check of the checks: a page that is wrong in every way is refused, and one that is right is not."""
    page = tmp_path / "page.md"
    page.write_text("`realrl.cell.nowhere`\n```python\nfrom realrl.types import Batch, Butch\n```\n"
                    "```\nrealrl train rl100 --run x --polcy 3\nrealrl trian\npython -m benchmarks.nothing\nmake tea\n```\n"
                    "`tests/test_nothing.py`, `algos/none.py`, `ChunkView.nothing` and `realrl data chek`\n")
    assert unknown_names(page) == ["realrl.cell.nowhere", "realrl.types.Butch"]
    assert unknown_members(page) == ["ChunkView.nothing"]
    assert unknown_flags(page) == ["realrl data chek", "realrl train rl100 --polcy", "realrl trian"]
    assert unknown_paths(page) == ["tests/test_nothing.py", "algos/none.py"]
    assert unknown_programs(page) == ["benchmarks.nothing", "make tea"]
    page.write_text("`realrl.types.Batch.reward`, `ChunkView.batch`, `algos/bc.py`, `make run`\n"
                    "`realrl train rl100 --critic.no-whiten --run DIR`\n")
    assert [check(page) for check in CHECKS] == [[]] * len(CHECKS)

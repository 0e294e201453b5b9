"""The house stays as it is laid out: import floors, one paper one file, no dead configuration."""

from __future__ import annotations

import ast
import functools
from collections.abc import Sequence
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src" / "realrl"

# A module imports strictly lower floors, or siblings inside its own folder. New modules and folders get a line here.
# `data` has rooms of its own: the core below its recorder, tools and formats.
FLOORS = {
    "types": 0, "losses": 0, "files": 1, "terminal": 1, "memory": 1,
    "config": 2, "events": 2, "checkpoint": 3, "run": 4, "scene": 3, "streaming": 3, "nets": 3,
    "generative": 4, "data": 4, "envs": 4, "robots": 5, "robots.admittance": 3, "robots.law": 3, "robots.turns": 2, "policies": 6,
    "data.record": 5, "data.formats": 5, "data.tools": 6,
    "learn": 7, "cell": 8, "algos": 8, "report": 9, "serve": 9, "cli": 10,
}
# who uses another of their own floor
SIDEWAYS: dict[str, set[str]] = {"losses": {"types"}, "robots.admittance": {"robots.law"}, "__main__": {"cli"}}
UPWARDS = {("data/store.py", "realrl.data.formats")}  # where people look for `open_dataset`; only when it is called
SIMULATORS = {"mujoco", "metaworld", "gymnasium_robotics"}


def modules() -> list[Path]:
    return sorted(p for p in SRC.rglob("*.py"))


def room(parts: Sequence[str]) -> str:
    """The entry of the floor table that a dotted name below the package belongs to: its longest prefix there, "" for none."""
    return next((name for n in (2, 1) if (name := ".".join(parts[:n])) in FLOORS), "")


def unit(path: Path) -> str:
    """The entry of the floor table that a file belongs to; its own name where it has none, "" for the package itself."""
    parts = [p.removesuffix(".py") for p in path.relative_to(SRC).parts if p != "__init__.py"]
    return room(parts) or ".".join(parts[:1])


@functools.cache
def imports(path: Path) -> list[tuple[str, int]]:
    """(absolute dotted name, line) of every import in a file, those inside functions and type-checking blocks included."""
    found: list[tuple[str, int]] = []
    package = ("realrl", *path.relative_to(SRC).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[:len(package) - node.level + 1]) if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            found += ((f"{name}.{alias.name}", node.lineno) for alias in node.names)
    return found


def test_every_module_has_a_floor() -> None:
    homeless = sorted({unit(p) for p in modules()} - FLOORS.keys() - {"", "__main__"})
    assert not homeless, f"not in the floor table of tests/test_architecture.py: {homeless}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_down(path: Path) -> None:
    here, wrong = unit(path), []
    for name, line in imports(path):
        there = room(name.split(".")[1:]) if name.split(".")[0] == "realrl" else ""
        if not there:
            continue
        within = there == here and here != "algos"  # methods never import each other
        lower = FLOORS[there] < FLOORS.get(here, 11)
        known = there in SIDEWAYS.get(here, ()) or (str(path.relative_to(SRC)), name) in UPWARDS
        if not (within or lower or known):
            wrong.append(f"line {line}: {name} (floor {FLOORS[there]}) from {here or 'the package'} (floor {FLOORS.get(here, 11)})")
    assert not wrong, "\n".join(wrong)


@functools.cache
def at_module_level(path: Path) -> set[Path]:
    """The files of the house that importing this one reads at once: not what functions and type-checking blocks import later."""
    later = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for name, block in ast.iter_fields(node):
            if isinstance(block, list):
                setattr(node, name, [x for x in block if not isinstance(x, later) and not (isinstance(x, ast.If) and is_type_checking(x))])
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("realrl"):
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                found |= {file for file in (file_of(name) or file_of(str(node.module)),) if file}
        elif isinstance(node, ast.Import):
            found |= {file for alias in node.names if (file := file_of(alias.name))}
    return found - {path}


def is_type_checking(node: ast.If) -> bool:
    return "TYPE_CHECKING" in ast.unparse(node.test)


def file_of(name: str) -> Path | None:
    """The file of a dotted module name in the house, None for anything else."""
    if name.split(".")[0] != "realrl":
        return None
    base = SRC.joinpath(*name.split(".")[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if base != SRC and p.is_file()), None)


def closure(path: Path) -> set[Path]:
    """A file and all that it reaches through module-level imports."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += at_module_level(file)
    return seen


@pytest.mark.parametrize("path", sorted((SRC / "algos").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_a_method_is_read_with_little_beside_it(path: Path) -> None:
    """One paper, one file, over a small library: what one has to read to understand a method stays small."""
    files = closure(path)
    lines = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    longest = ", ".join(f"{p.relative_to(SRC)} {n}" for p, n in sorted(lines.items(), key=lambda item: -item[1])[:8])
    assert len(files) <= 24 and sum(lines.values()) <= 4500, f"{len(files)} files, {sum(lines.values())} lines: {longest}"
    assert lines[path] <= 450, f"{path.name} has {lines[path]} lines"


def test_no_circles() -> None:
    """Nothing reaches itself, also through what functions import later within one room."""
    graph = {path: at_module_level(path) for path in modules()}
    ready: set[Path] = set()
    while fresh := {p for p, needs in graph.items() if p not in ready and needs <= ready}:
        ready |= fresh
    left = sorted(str(p.relative_to(SRC)) for p in graph.keys() - ready)
    assert not left, f"these import one another in a circle, or from one: {left}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SRC)))
def test_simulators_stay_in_envs(path: Path) -> None:
    wrong = [f"line {line}: {name}" for name, line in imports(path) if name.split(".")[0] in SIMULATORS and unit(path) != "envs"]
    assert not wrong, f"only envs/ may import a simulator: {wrong}"


def is_frozen_config(node: ast.AST) -> bool:
    if not (isinstance(node, ast.ClassDef) and node.name.endswith("Config")):
        return False
    return any(isinstance(d, ast.Call) and "dataclass" in ast.unparse(d.func) and "frozen=True" in ast.unparse(d)
               for d in node.decorator_list)


def test_every_config_field_is_read() -> None:
    declared: dict[str, str] = {}
    read: set[str] = set()
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and is_frozen_config(node):
                for item in node.body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        declared[f"{node.name}.{item.target.id}"] = str(path.relative_to(SRC))
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    dead = {name: file for name, file in declared.items() if name.split(".")[1] not in read}
    assert not dead, f"config fields that nothing reads (use them or remove them): {dead}"


def marked_up(path: Path) -> list[int]:
    """Lines at which a file lets rich read markup: a console of its own, or none said, or a column of a bar without markup=False."""
    wanted = {"Console": "markup=False", "TextColumn": "markup=False", "Live": "console=", "Progress": "console=",
              "track": "markup=False"}  # which it does not know: its column reads markup whatever its console does
    tree = ast.parse(path.read_text(encoding="utf-8"))
    rich = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rich")
            for alias in node.names}
    if not rich:
        return []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in rich]
    return [node.lineno for node in calls if (said := wanted.get(ast.unparse(node.func)))
            and not any(ast.unparse(keyword).startswith(said) for keyword in node.keywords)]


def test_warnings_are_told_to_people() -> None:
    """The command line shows ours in a line; numpy's, which are for whoever mends the code, with theirs (`terminal.warn_in_a_line`)."""
    warning = [path for path in modules() if "warnings.warn" in path.read_text(encoding="utf-8")]
    calls = [(path, call) for path in warning for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(call, ast.Call) and ast.unparse(call.func) == "warnings.warn"]
    named = {str(path): [ast.unparse(word) for word in call.args[1:2]] for path, call in calls}
    assert len(calls) > 3 and all(kind in ([], ["UserWarning"]) for kind in named.values()), named


def test_brackets_are_shown_as_they_are() -> None:
    """Paths, tasks and packages have brackets, which rich would take for styles."""
    found = {str(path.relative_to(SRC)): lines for path in modules() if (lines := marked_up(path))}
    assert not found, f"use terminal.console, and TextColumn(..., markup=False): {found}"


def test_the_checks_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of the checks: a house with every fault is refused."""
    files = {"types.py": "from realrl.cli import main", "algos/one.py": "from realrl.algos import two", "algos/two.py": "import mujoco",
             "attic.py": "from rich.progress import track\ntrack([], console=console())", "run.py": "from . import cli",
             "nets/mlp.py": "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass NetConfig:\n    width: int = 1"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("test_architecture.SRC", tmp_path)
    for check in (test_every_module_has_a_floor, test_every_config_field_is_read, test_brackets_are_shown_as_they_are):
        with pytest.raises(AssertionError):
            check()
    for name in ("types.py", "algos/one.py", "run.py"):
        with pytest.raises(AssertionError):
            test_imports_go_down(tmp_path / name)
    with pytest.raises(AssertionError):
        test_simulators_stay_in_envs(tmp_path / "algos" / "two.py")


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest would leave all but one of them out, and say so where nobody looks."""
    names = [p.name for p in Path(__file__).parent.rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}

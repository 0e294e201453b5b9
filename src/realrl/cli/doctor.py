"""What this machine has for realrl, and how to get what is missing: `realrl doctor`."""

from __future__ import annotations

import argparse
import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from realrl.cli.parser import command, mistake, screen

PACKAGES = ("realrl", "torch", "numpy", "scipy", "gymnasium", "gymnasium-robotics", "metaworld", "mujoco", "pyarrow", "safetensors",
            "tyro", "rich", "tensorboard", "matplotlib", "jinja2", "pyyaml")
SUITES = {"Meta-World": "metaworld", "Adroit": "gymnasium_robotics", "Gymnasium MuJoCo": "mujoco"}
DISPLAY = {"EGL": ("EGL", "libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libgles2 libglx-mesa0"), "OSMesa": ("OSMesa", "libosmesa6 libgl1")}


@dataclass(frozen=True)
class Finding:
    """One thing looked for. ok: it is there; value: what was found; mend: how to get it, empty when nothing is needed."""

    group: str
    name: str
    ok: bool
    value: str
    mend: str = ""
    required: bool = True  # realrl does not work without it


def add(commands: Any) -> None:
    """`doctor`, which has no flags."""
    command(commands, "doctor", "Versions, devices and rendering of this machine; how to get what is missing.", "realrl doctor", _doctor)


def _doctor(args: argparse.Namespace) -> int:
    findings = report()
    show(findings)
    return 0 if healthy(findings) else 1


def report() -> list[Finding]:
    """Everything `realrl doctor` looks at. Reads versions and looks for libraries; renders nothing and starts no simulator."""
    return [*_versions(), *_devices(), *_suites(), *_rendering(), *_people(), *_groups()]


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether everything that is required is there."""
    return all(f.ok for f in findings if f.required)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> list[Finding]:
    found = [Finding("versions", "python", sys.version_info >= (3, 10), platform.python_version(), "install Python 3.10 or newer")]
    for package in PACKAGES:
        version = _installed(package)
        found.append(Finding("versions", package, version is not None, version or "missing", f"pip install {package}"))
    return found


def _devices() -> list[Finding]:
    import torch

    from realrl.cell.products import by_onednn
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    found = [Finding("devices", "cpu", True, f"{cores} cores, {threads} torch threads"),
             Finding("devices", "threads", threads <= cores, f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}",
                     f"more threads than cores slow everything down: set OMP_NUM_THREADS={cores} or less", required=False),
             Finding("devices", "products", True, f"large ones by {'oneDNN' if by_onednn() else 'MKL or whatever torch chooses'}, float32")]
    if not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else "no usable CUDA device"
        return [*found, Finding("devices", "cuda", False, why, "not needed; for a GPU see https://pytorch.org/get-started/locally",
                                required=False)]
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        found.append(Finding("devices", f"cuda:{i}", True, f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"))
    return found


def _suites() -> list[Finding]:
    """Whether each suite's package is there; found without importing it, which takes seconds."""
    found = []
    for suite, module in SUITES.items():
        there = importlib.util.find_spec(module) is not None
        value = f"{module} {'found' if there else 'missing'}"
        found.append(Finding("suites", suite, there, value, f"pip install {module.replace('_', '-')}"))
    return found


def _rendering() -> list[Finding]:
    """GL back ends for cameras: whether EGL's driver starts, whether OSMesa's library loads. States and clouds by rays need none."""
    from realrl.envs.mujoco.gl import check, egl_works
    chosen = os.environ.get("MUJOCO_GL", "unset")
    found = []
    for backend, (library, packages) in DISPLAY.items():
        path = ctypes.util.find_library(library)
        works = path is not None and (backend != "EGL" or egl_works())
        value = "missing" if path is None else path if works else f"{path}, but no device of it starts"
        found.append(Finding("rendering", backend, works, value,
                             f"apt-get install {packages} (only for cameras and clouds by rendered depth)", required=False))
    any_there = any(f.ok for f in found)
    used = next((f.name for f in found if f.ok), "none")
    value = f"unset: {used} is used" if chosen == "unset" else chosen
    hint = "" if any_there else "install EGL or OSMesa first"
    try:
        check()
    except mistake() as error:  # then no simulator can be imported, whatever it would draw
        return [*found, Finding("rendering", "MUJOCO_GL", False, value, str(error))]
    return [*found, Finding("rendering", "MUJOCO_GL", any_there, value, hint, required=False)]


def _people() -> list[Finding]:
    """What a person can steer with: `--human keyboard` and `--human gamepad`."""
    typed = sys.stdin is not None and sys.stdin.isatty()
    found = [Finding("people", "keyboard", typed, "a terminal to type in" if typed else "standard input is no terminal",
                     "only for --human keyboard: run it in a terminal", required=False)]
    if importlib.util.find_spec("pygame") is None:
        return [*found, Finding("people", "gamepad", False, "pygame is missing", "only for --human gamepad: pip install pygame",
                                required=False)]
    from realrl.robots.devices import gamepads
    names = gamepads()
    return [*found, Finding("people", "gamepad", bool(names), ", ".join(names) or "none plugged in",
                            "only for --human gamepad: plug one in", required=False)]


def declared() -> dict[str, list[str]]:
    """The optional dependency groups of the installed realrl, and what is in each; {} where it is not installed."""
    wanted: dict[str, list[str]] = {}
    requirements = importlib.metadata.requires("realrl") if _installed("realrl") else None
    for line in requirements or []:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        name = re.match(r"[\w.-]+", line)
        if extra and name:
            wanted.setdefault(extra[1], []).append(name[0])
    return wanted


def _groups() -> list[Finding]:
    """Each optional group, whole or with what it lacks."""
    from realrl.nets.text import HINT
    apart = {"language": HINT}  # weights that ask for gigabytes that nobody uses
    found = []
    for group, names in sorted(declared().items()):
        missing = [n for n in names if _installed(n) is None]
        found.append(Finding("optional groups", group, not missing, f"missing {', '.join(missing)}" if missing else "installed",
                             apart.get(group, f'pip install "realrl[{group}]"'), required=False))
    return found


def show(findings: Sequence[Finding]) -> None:
    """Print findings as a table, one section a group; a mend is shown for what is missing only."""
    from rich.table import Column, Table
    from rich.text import Text
    shown = screen()
    table = Table("", "what", "found", Column("how to get it", overflow="fold"), title="realrl doctor", title_justify="left")
    for i, finding in enumerate(findings):
        mark = Text("ok", "green") if finding.ok else Text("no", "red") if finding.required else Text("--", "yellow")
        last = i + 1 == len(findings) or findings[i + 1].group != finding.group
        table.add_row(mark, finding.name, finding.value, "" if finding.ok else finding.mend, end_section=last)
    shown.print(table)
    shown.print("Everything realrl needs is here." if healthy(findings)
                else Text("Something realrl needs is missing: see 'no' above.", "red"))

"""Hooks of mkdocs: README and CONTRIBUTING as pages, a page a module from its docstrings, and links that leave docs/ led to them."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS, PACKAGE = ROOT / "docs", ROOT / "src" / "realrl"
OUTER = {"index.md": ROOT / "README.md", "contributing.md": ROOT / "CONTRIBUTING.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s:]+)\)")  # not to the web
Definition = ast.FunctionDef | ast.ClassDef


def modules() -> list[Path]:
    """Every module that says what it is for."""
    return [p for p in sorted(PACKAGE.rglob("*.py")) if ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]


def dotted(module: Path) -> str:
    """`realrl.cell.rollout` of its file."""
    return ".".join(module.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def on_config(config: Any) -> Any:
    """The modules' pages join the navigation, a section a room."""
    rooms: dict[str, list[str]] = {}
    for module in modules():
        name = dotted(module)
        rooms.setdefault(".".join(name.split(".")[:2]) if module.parent != PACKAGE else "realrl", []).append(f"api/{name}.md")
    config.nav.append({"API": [{room: pages} for room, pages in sorted(rooms.items())]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Pages that are not files of docs/."""
    for name, source in OUTER.items():
        files.append(File.generated(config, name, content=source.read_text(encoding="utf-8")))
    for module in modules():
        files.append(File.generated(config, f"api/{dotted(module)}.md", content=reference(module)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are on disk, led to where their targets are in the site; what the site does not have stays as text."""
    here = page.file.src_uri
    base = OUTER[here].parent if here in OUTER else (DOCS / here).parent

    def lead(link: re.Match[str]) -> str:
        name, mark, anchor = link[2].partition("#")
        target = site_path((base / name).resolve()) if name else here
        return f"[{link[1]}]({os.path.relpath(target, Path(here).parent)}{mark}{anchor})" if target else link[1]
    return markdown if here.startswith("api/") else LINK.sub(lead, markdown)


def site_path(file: Path) -> str | None:
    """Where a file of the repository is in the site."""
    for name, source in OUTER.items():
        if file == source:
            return name
    if file.is_relative_to(DOCS) and file.suffix == ".md":
        return file.relative_to(DOCS).as_posix()
    return f"api/{dotted(file)}.md" if file in modules() else None


def reference(module: Path) -> str:
    """A module's page: what it is for, and every public name of it."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    parts = [f"# {dotted(module)}", text(tree)]
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            parts += described(node, "##")
    return "\n\n".join(parts) + "\n"


def described(node: Definition, mark: str) -> Iterator[str]:
    """A class with its fields and public methods, or a function."""
    yield f"{mark} {node.name}"
    yield f"```python\n{signature(node)}\n```"
    yield text(node)
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and ast.get_docstring(item):
                yield from described(item, mark + "#")


def signature(node: Definition) -> str:
    """As it is written; of a class its bases and fields, each with what is said of it."""
    if isinstance(node, ast.FunctionDef):
        gives = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"def {node.name}({ast.unparse(node.args)}){gives}"
    lines = [f"class {node.name}({', '.join(map(ast.unparse, node.bases))}):" if node.bases else f"class {node.name}:"]
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign):
            lines.append(f"    {ast.unparse(item)}")
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                lines[-1] += f"  # {' '.join(after.value.value.split())}"
    return "\n".join(lines)


def text(node: ast.Module | Definition) -> str:
    """The docstring, with what HTML would take for a tag spelt out."""
    return re.sub(r"<(?=[\w/!])", "&lt;", ast.get_docstring(node) or "")

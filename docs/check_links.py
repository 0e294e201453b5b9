"""Check that every relative link and picture in Markdown pages leads somewhere: `python docs/check_links.py README.md docs`.

Anchors (`page.md#a-heading`) must name a heading of their page. Links to the web are not visited. Exit code 1 and one line a broken link.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors GitHub makes of a page's headings."""
    headings = re.findall(r"^#+\s+(.+?)\s*#*$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def broken(page: Path) -> list[str]:
    """One line for every link of a page that leads nowhere."""
    out = []
    for link in (a or b for a, b in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists():
            out.append(f"{page}: {link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            out.append(f"{page}: {link}: no such heading")
    return out


def main(arguments: list[str]) -> int:
    pages: list[Path] = []
    for argument in map(Path, arguments):
        if not argument.exists():
            print(f"{argument}: no such file or folder")
            return 1
        pages += sorted(argument.rglob("*.md")) if argument.is_dir() else [argument]
    wrong = [line for page in pages for line in broken(page)]
    print("\n".join(wrong) if wrong else f"{len(pages)} pages, every link resolves")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`view`: from a task, a dataset or a run to files on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from realrl.files import write_text
from realrl.report.template import render
from realrl.report.view import film, recording
from realrl.report.view.clips import Clip, Each, EpisodeSet, is_dataset, is_run, of_run, recorded
from realrl.report.view.media import section
from realrl.report.view.scenes import rolled
from realrl.types import RealrlError


def view(what: str, *, episodes: Sequence[int] | None = None, worst: int | None = None, out: Path | None = None, policy: Path | None = None,
         seed: int = 0, sights: Sequence[str] | None = None, mp4: bool = False, rerun: bool = False,
         each: Each[Any] = lambda items, what, total: items, tell: Callable[[str], None] = lambda note: None) -> list[Path]:
    """Write what there is to see of a task, a dataset or a run, and return the files: a page a set of episodes, and what else was asked.

    episodes: their numbers; of a task, added to `seed`, the start. worst: so many, failures first. out: folder, by default beside what
    is viewed. policy: who acts on a task. sights: what to look at a task with, by default its pictures. mp4, rerun: also a film, a
    recording an episode.
    each: wraps what takes long in a progress bar (items, what, how many). tell: gets what a page says it lacks. Raises RealrlError on
    what is none of the three, on options that do not fit it, and where a file cannot be written or Rerun is not installed.
    """
    if episodes is not None and worst is not None:
        raise RealrlError("which episodes? give --episodes or --worst, not both")
    if rerun:
        recording.module()  # before anything long
    sets, beside = _opened(Path(what), what, episodes, worst, policy, seed, sights)
    folder = out or beside
    files: list[Path] = []
    for found in sets:
        files += write_set(found, folder, mp4=mp4, rerun=rerun, each=each, tell=tell)
    return files


def _opened(path: Path, what: str, episodes: Sequence[int] | None, worst: int | None, policy: Path | None, seed: int,
            sights: Sequence[str] | None) -> tuple[list[EpisodeSet], Path]:
    """(the sets of episodes, the folder their pages go to by default)."""
    if is_dataset(path) or is_run(path):
        for option, value in (("--policy", policy), ("--sight", sights)):
            if value is not None:
                raise RealrlError(f"{path} was recorded already, {option} is for a task: leave it out")
        if is_run(path) and not is_dataset(path):
            return of_run(path, numbers=episodes, worst=worst), path / "view"
        return [recorded(path, numbers=episodes, worst=worst)], path.resolve().with_name(path.resolve().name + "-view")
    if path.exists():
        raise RealrlError(f"{path} is neither a LeRobot dataset nor the folder of a run: give one of them; other formats become one by "
                          "`realrl data import`")
    if worst is not None:
        raise RealrlError("--worst is for recorded episodes: run many with `realrl evaluate --save-failures N`, or give --episodes")
    starts = [seed + i for i in (episodes if episodes is not None else [0])]
    seen = rolled(what, policy=policy, seeds=starts, sights=("rgb",) if sights is None else sights)
    return [seen], Path(f"view-{what.replace('/', '-')}")


def write_set(found: EpisodeSet, folder: Path, *, mp4: bool = False, rerun: bool = False,
              each: Each[Any] = lambda items, what, total: items, tell: Callable[[str], None] = lambda note: None) -> list[Path]:
    """Write a set's page into a folder, and its films and recordings; gives the files, the page first. Raises as `view`."""
    files: list[Path] = []
    notes: dict[str, None] = {}  # in order, each once

    def clips() -> Iterator[Clip]:
        for clip in each(found.clips(), f"drawing {found.title}", len(found.numbers)):
            stem = folder / f"{found.name}-{clip.number}"
            folder.mkdir(parents=True, exist_ok=True)
            if mp4:
                files.append(film.write(clip, stem.with_name(stem.name + ".mp4")))
            if rerun:
                files.append(recording.write(clip, stem.with_name(stem.name + ".rrd")))
            notes.update(dict.fromkeys(clip.notes))
            yield clip

    try:
        written = [write_page(found, folder / f"{found.name}.html", clips()), *files]
    except OSError as error:
        raise RealrlError(f"{folder} could not be written ({error.strerror or error}); free space or choose another folder") from error
    for note in notes:
        tell(note)
    return written


def write_page(found: EpisodeSet, file: Path, clips: Iterable[Clip]) -> Path:
    """Write one page of these clips and return its path."""
    sections = [section(clip) for clip in clips]
    shared = [note for note in sections[0]["notes"] if all(note in s["notes"] for s in sections)] if len(sections) > 1 else []
    for s in sections:
        s["notes"] = [note for note in s["notes"] if note not in shared]  # said once, at the top
    own = resources.files("realrl.report").joinpath("view")
    script, style = (Markup(own.joinpath(name).read_text(encoding="utf-8")) for name in ("player.html", "view.css"))
    html = render("view/view.html", {"title": found.title, "kicker": found.kicker, "sections": sections, "script": script, "own": style,
                                     "mixed": len({s["outcome"] for s in sections}) > 1, "lead": _lead(sections), "notes": shared})
    write_text(file, html)
    return file


def _lead(sections: Sequence[dict[str, Any]]) -> str:
    good, bad, open_ = (sum(s["outcome"] == outcome for s in sections) for outcome in ("success", "failed", "unknown"))
    many = f"{len(sections)} episode{'s' * (len(sections) != 1)}"
    rest = f", {open_} unknown" if open_ else ""
    return f"{many}: {good} succeeded, {bad} failed{rest}." if good or bad else f"{many}, how they ended is unknown."

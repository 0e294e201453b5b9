"""What a policy foresaw of recordings it was not fitted to: the table, and its plans drawn over what was really done."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Group, RenderableType
from rich.table import Table

from realrl.report.figures import BLUE, GREY, ORANGE, Panel, small_multiples
from realrl.report.pictures import jpeg
from realrl.report.reading import number_of
from realrl.report.tables import MISSING, Grid, figure3, percent
from realrl.types import Array, RealrlError, printable

BASELINES = ("keep still", "mean action", "ridge")
MOST_JOINTS = 40  # rows; summary.json has them all
DRAWN = 8  # joints, the hardest to foresee


def foresight_of(summary: Mapping[str, Any], where: str = "summary.json") -> list[tuple[str, Mapping[str, Any]]]:
    """The stages of a summary that were compared with recordings: (name, what was found). Raises RealrlError on a field of a wrong kind."""
    stages = summary.get("stages") or []
    found = [(str(s.get("name")), s["foresight"]) for s in stages if isinstance(s, Mapping) and s.get("foresight") is not None]
    for name, told in found:
        at = f"{where}, stage '{name}'"
        if not isinstance(told, Mapping) or not all(isinstance(told.get(k), Mapping) for k in ("errors", "mean_error", "error_of_range")):
            raise RealrlError(f"{at}: 'foresight' should hold errors, mean_error and error_of_range")
        joints, units = told.get("joints"), told.get("units")
        if not (isinstance(joints, list) and isinstance(units, list) and len(joints) == len(units)) or not all(
                isinstance(e, list) and len(e) == len(joints) for e in told["errors"].values()):
            raise RealrlError(f"{at}: 'foresight' should hold an error for every joint")
    return found


def foresight_grid(found: Sequence[tuple[str, Mapping[str, Any]]], where: str = "summary.json") -> Grid:
    """A row a joint, a column a predictor: those of one robot's last stage, the one-step head of its own, then the baselines."""
    told = [t for name, t in found if not _student(name)][-1:] + [t for name, t in found if _student(name)]
    last = told[0]
    columns = {who: (t["errors"][who], t["mean_error"].get(who), t["error_of_range"].get(who))
               for t in told for who in t["errors"] if who not in BASELINES}
    columns |= {who: (last["errors"][who], last["mean_error"].get(who), last["error_of_range"].get(who))
                for who in BASELINES if who in last["errors"]}
    rows = []
    for j, (joint, unit) in enumerate(zip(last["joints"], last["units"], strict=True)):
        if j < MOST_JOINTS:
            rows.append([printable(f"{joint} [{unit}]" if unit else str(joint)), *(_small(errors[j]) for errors, *_ in columns.values())])
    if len(last["joints"]) > MOST_JOINTS:
        rows.append([f"{len(last['joints']) - MOST_JOINTS} more in {where}", *("" for _ in columns)])
    rows.append(["mean", *(_small(mean) for _, mean, _ in columns.values())])
    rows.append(["mean, % of the range", *(MISSING if of is None else f"{100 * of:.2f}" for *_, of in columns.values())])
    return Grid(["Held-out error", *columns], rows, len(rows) - 1)


def _student(stage: str) -> bool:
    return stage.partition(" ")[0] == "one-step"


def by_robot(found: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """The stages of each robot: "" the first one, whose stages are called "imitation", then "imitation NAME" and so on."""
    robots: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, told in found:
        robots.setdefault(name.partition(" ")[2], []).append((name, told))
    return robots


def _small(value: Any) -> str:
    number = number_of({"error": value}, "error", "summary.json")
    return MISSING if number is None else "0" if number == 0 else f"{number:.2g}" if abs(number) < 1e-3 else figure3(number)


def verdict(summary: Mapping[str, Any]) -> str:
    """In a sentence: whether the policy foresees more than anybody can without learning."""
    found = foresight_of(summary)
    if not found:
        return "Nothing was compared with recordings yet."
    robots = by_robot(found)
    return " ".join(f"{f'{name}: ' if len(robots) > 1 else ''}{_verdict(of, summary)}" for name, of in
                    ((name or str(summary.get("task", "")).partition("/")[2], of) for name, of in robots.items()))


def _verdict(found: Sequence[tuple[str, Mapping[str, Any]]], summary: Mapping[str, Any]) -> str:
    """The same of one robot's stages."""
    told = found[-1][1]
    loss = number_of(told, "denoising_loss", "summary.json")
    spread = "" if loss is None else f" Its denoising loss there is {figure3(loss)}."
    losing = [who for who in BASELINES if who in (told.get("loses_to", summary.get("loses_to")) or [])]
    held = "held-out part" if told.get("cut") else "held-out episode"
    plans, episodes = (f"{n:,} {what}{'' if n == 1 else 's'}" for n, what in ((told.get("decisions", 0), "plan"),
                                                                               (told.get("episodes", 0), held)))
    scope = f"{plans} in {episodes}"
    if losing:
        return (f"On {scope} the policy is worse than {' and than '.join(losing)}: do not run it. More and more varied demonstrations help "
                f"first; then look at what 'realrl data check' warns of.{_read(found)}")
    return (f"On {scope} the policy is better than keeping still, the mean action and ridge regression. That is not yet a success rate: "
            f"only trials tell one.{spread}{_followed(told)}{_read(found)}")


def _read(found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Whether what it was told mattered, where it could."""
    told = next((t["reading"] for _, t in reversed(found) if isinstance(t.get("reading"), Mapping)), None)
    if told is None or not isinstance(told.get("texts"), Mapping):
        return ""
    number = {key: number_of(told, key, "summary.json, 'reading'") for key in ("told", "told_another", "low", "high", "episodes")}
    right, other, low, high = (number[key] for key in ("told", "told_another", "low", "high"))
    if right is None or other is None:
        return ""
    said = f" Told another of its {len(told['texts'])} texts, it errs by {100 * other:.2f} % of the range in place of {100 * right:.2f}"
    if low is None or high is None:
        return f"{said}; one episode cannot say whether that is chance."
    span = f"{100 * low:+.2f} to {100 * high:+.2f}, 95 % over {number['episodes']:.0f} episodes"
    reads = "it does what it is told" if low > 0 else "what it is told makes no difference that these episodes show"
    return f"{said} ({span}): {reads}."


def _followed(told: Mapping[str, Any]) -> str:
    """How much of it is the network, where a linear reference does the rest."""
    gains = told.get("followed")
    if not isinstance(gains, list) or not all(isinstance(g, float) for g in gains) or all(g == 1 for g in gains):
        return ""
    idle = sum(g == 0 for g in gains)
    return (f" Its network foresaw too little of episodes it was not fitted to: on {idle} of {len(gains)} joints the policy is its linear "
            "reference alone." if idle else " Its network is followed part of the way on some joints.")


def hindsight_lines(summary: Mapping[str, Any]) -> list[str]:
    """For each round of offline learning what its gate said, and what nobody can know without a trial."""
    lines = []
    for stage in summary.get("stages") or []:
        told = stage.get("hindsight") if isinstance(stage, Mapping) else None
        if not isinstance(told, Mapping):
            continue
        number = {key: number_of(told, key, f"summary.json, stage '{stage.get('name')}'") for key in told if key != "rewarded"}
        seen = ", ".join(f"{number[how]:.0f} {how}" for how in ("success", "failure", "unknown") if number.get(how))
        lines.append(
            f"{stage.get('name')}: {_counted(number, 'accepted')} of {_counted(number, 'judged')} candidates passed the gate. In a model "
            f"of {_counted(number, 'episodes')} recorded episodes ({seen}) the policy returns {_small(number.get('ended_with'))}, it "
            f"returned {_small(number.get('began_with'))} before; the recording itself {_small(number.get('recorded'))}. The model "
            f"explains {_share(number.get('model_r2'))} of how unseen episodes go on and expects {_small(number.get('model_endings'))} "
            "endings for one that there was.")
        if not told.get("rewarded"):
            lines.append("The recording pays no reward, so no candidate can be better than another: say which episodes succeeded with "
                         "'realrl data label'.")
        elif not number.get("failure"):
            lines.append("No episode is known to have failed, so the critics have not seen what to avoid.")
    return [*lines, "No trial was run. All of this is what a model of the recording says; how often the policy succeeds is not known "
            "until it is tried."] if lines else []


def _counted(number: Mapping[str, float | None], key: str) -> str:
    return MISSING if (value := number.get(key)) is None else f"{value:.0f}"


def _share(value: float | None) -> str:
    return MISSING if value is None else percent(value)


def foresight_table(summary: Mapping[str, Any]) -> RenderableType:
    """The same for the terminal, with the verdict below; a table a robot."""
    robots = by_robot(foresight_of(summary))
    if not robots:
        return _table(summary, "", [])
    return Group(*(_table(summary, name, of) for name, of in robots.items()))


def _table(summary: Mapping[str, Any], name: str, found: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """One robot's."""
    table = Table(title=printable(name or str(summary.get("task") or "")), title_justify="left", header_style="bold",
                  caption=_verdict(found, summary) if found else verdict(summary), caption_justify="left")
    if not found:
        return table
    grid = foresight_grid(found)
    for i, head in enumerate(grid.headers):
        table.add_column(head, justify="right" if i else "left")
    for i, row in enumerate(grid.rows):
        table.add_row(*row, style="bold" if i == grid.final else None)
    return table


def foresight_parts(run_dir: Path, summary: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """What the page shows: verdict, table, and per stage a film strip with plans drawn over what was done. None where nothing was compared.
    """
    found = foresight_of(summary, where)
    if not found:
        return None
    drawn = _kept(run_dir)
    parts = [_stage(name, told, drawn[name]) for name, told in found if name in drawn]
    grids = [(name, foresight_grid(of, where)) for name, of in by_robot(found).items()]
    return {"verdict": verdict(summary), "grids": grids, "parts": parts,
            "notes": [*hindsight_lines(summary), *(str(n) for n in (summary.get("recorded") or {}).get("notes") or [])]}


def _kept(run_dir: Path) -> dict[str, dict[str, Array]]:
    """What `RecordedCell` kept for drawing: stage -> arrays. Raises RealrlError for a damaged file."""
    found = {}
    for path in sorted((run_dir / "foresight").glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found[path.stem] = {key: arrays[key] for key in arrays.files}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise RealrlError(f"{path} is damaged ({error}): delete it and make the report again, without its drawing") from None
    return found


def _stage(name: str, told: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    """One stage's film strip and drawing, of the first held-out episode."""
    rows = np.flatnonzero(arrays["episode"] == arrays["episode"][0])
    heads = [who for who in told["errors"] if who in arrays]
    worst = np.argsort([-float(told["errors"][heads[0]][j]) / max(float(np.ptp(arrays["true"][rows][..., j])), 1e-9)
                        for j in range(len(told["joints"]))])[:DRAWN]
    panels = [Panel(str(told["joints"][j]), str(told["units"][j]) or "as recorded", "control step", _drawer(arrays, rows, heads, int(j)))
              for j in sorted(worst)]
    caption = "Grey: what was done. " + ", ".join(f"{colour}: {head}" for head, colour in zip(heads, ("Blue", "orange"), strict=False)) + \
        ". Each piece is a plan, drawn where it began; the joints shown are the hardest to foresee."
    films = [jpeg(picture) for picture in arrays.get("film", ())]
    return {"title": name, "strip": films, "drawing": small_multiples(panels, f"Plans of {name} over recorded actions", caption)}


def _drawer(arrays: Mapping[str, Array], rows: Array, heads: Sequence[str], joint: int) -> Callable[[Axes], None]:
    """Draws a joint's recorded course and the plans of each head."""
    start, valid = arrays["start"][rows], arrays["valid"][rows]
    chunk = valid.shape[1]
    picked = [i for n, i in enumerate(range(len(rows))) if n == 0 or start[i] % chunk == 0]

    def draw(axes: Axes) -> None:
        for i in picked:
            t = start[i] + np.flatnonzero(valid[i])
            axes.plot(t, arrays["true"][rows][i, valid[i], joint], color=GREY, linewidth=2.2, alpha=.55, solid_capstyle="butt")
            for head, colour in zip(heads, (BLUE, ORANGE), strict=False):
                axes.plot(t, arrays[head][rows][i, valid[i], joint], color=colour, linewidth=.9)
    return draw

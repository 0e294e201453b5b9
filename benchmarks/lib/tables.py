"""Rewrites the tables in docs/benchmarks.md from benchmarks/results/*.jsonl: `python -m benchmarks.lib.tables`.

A table stands between `<!-- table NAME -->` and `<!-- end NAME -->`; everything else in the page is written by hand. So does README's
sentence for a newcomer. What no JSON row holds is marked "not run". `--check` changes nothing and fails when a page is not up to date.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import devices, faults, flow_speed, robot_timing, updates
from benchmarks.lib import (
    advantage,
    assembling,
    beside,
    commanding,
    dream_costs,
    dreaming,
    everywhere,
    gates,
    helping,
    lateness,
    practising,
    pushing,
    served,
    serving,
    walking,
)
from benchmarks.lib.common import RESULTS, ROOT, read_rows
from benchmarks.studies import reference, waiting, wide_plans
from realrl.cell.evaluate import wilson
from realrl.files import write_text
from realrl.types import RealrlError

PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
NOT_RUN = "not run"
Row = dict[str, Any]

METHODS = {"demonstrator": "demonstrator, as in the demonstrations", "clean demonstrator": "demonstrator without noise",
           "imitation": "imitation", "more-bc": "more behaviour cloning", "filtered-bc": "filtered behaviour cloning",
           "weighted-bc": "advantage-weighted behaviour cloning", "iql-gaussian": "IQL, Gaussian policy",
           "offline-1": "**offline RL, first round** (the baselines' data)", "offline": "**offline RL, last round**",
           "dppo": "online with DPPO's settings", "online": "**online RL, 10 steps**", "one-step": "**online RL, one step**",
           "exploring": "online RL, exploring (10 steps and their noise)"}
"""Methods in the order of the tables; "offline" is the last offline round."""
METAWORLD = ("push-wall-v3", "peg-insert-side-v3", "box-close-v3", "disassemble-v3")
ADROIT = ("door", "hammer", "pen", "door (human)")
VISION = ("door", "hammer", "pen", "box-close-v3", "peg-insert-side-v3", "door-rgb")
LOCOMOTION = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")
PUBLISHED: dict[str, dict[str, dict[str, str]]] = {  # table -> row -> task -> figure
    "metaworld": {
        "published: DP3 imitation, 10 demonstrations, point clouds": {
            "peg-insert-side-v3": "69 %", "box-close-v3": "42 %", "disassemble-v3": "69 %"},
        "published: RL-100, online": {"peg-insert-side-v3": "100 %"},
        "published: ReinFlow, in RL-100's paper": {"peg-insert-side-v3": "< 20 %"}},
    "adroit": {
        "published: DP3 imitation, 10 demonstrations, point clouds": {"door": "62 %", "hammer": "100 %", "pen": "43 %"},
        "published: RL-100, online": {"door": "about 100 %", "hammer": "about 100 %"},
        "published: DPPO, in RL-100's paper": {"door": "90 %, a plateau", "hammer": "90 %, a plateau"}},
    "vision": {
        "published: DP3 imitation, 10 demonstrations": {
            "door": "62 %", "hammer": "100 %", "pen": "43 %", "box-close-v3": "42 %", "peg-insert-side-v3": "69 %"},
        "published: RL-100, online": {"door": "about 100 %", "hammer": "about 100 %", "peg-insert-side-v3": "100 %"}},
    "locomotion": {
        "published: RL-100": {"HalfCheetah-v5": "about 10,000"}, "published: DPPO, in RL-100's paper": {"HalfCheetah-v5": "4,500"},
        "published: DSRL, in RL-100's paper": {"HalfCheetah-v5": "3,000"}}}


def grid(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def percent(success: Row) -> str:
    """A rate with its interval."""
    return f"{100 * success['rate']:.1f} % [{100 * success['low']:.1f}, {100 * success['high']:.1f}]"


def last_round(rows: Sequence[Row]) -> list[Row]:
    """The rows with each run's last offline round renamed to "offline"; of earlier ones only the first stays, the baselines' peer."""
    best: dict[tuple[Any, Any], int] = {}
    for row in rows:
        if found := re.fullmatch(r"offline-(\d+)", row["method"]):
            key = (row["task"], row["seed"])
            best[key] = max(best.get(key, 0), int(found[1]))
    final = [{**r, "method": "offline"} for r in rows if r["method"] == f"offline-{best.get((r['task'], r['seed']))}"]
    return [r for r in rows if r["method"] == "offline-1" or not r["method"].startswith("offline-")] + final


# -- tables ----------------------------------------------------------------------------------------------------------------------------


USUAL = tuple(method for method in METHODS if method != "exploring")


def success_table(rows: Sequence[Row], tasks: Sequence[str], published: str, methods: Sequence[str] = USUAL) -> str:
    """Methods down, tasks across: success pooled over the training seeds, the number of seeds, and the worst of them."""
    rows = last_round(rows)

    def cell(method: str, task: str) -> str:
        of = [r for r in rows if r["task"] == task and r["method"] == method]
        found = [r["success"] for r in of]
        if not found:
            return NOT_RUN
        usual = [r["eta0"]["rate"] for r in of if "eta0" in r]
        other = f"; eta = 0: {100 * sum(usual) / len(usual):.1f} %" if usual else ""
        total = sum(s["n"] for s in found)
        pooled = wilson(round(sum(s["rate"] * s["n"] for s in found)), total)
        worst = f", worst of {len(found)} seeds {100 * min(s['rate'] for s in found):.1f} %" if len(found) > 1 else ""
        return f"{percent(vars(pooled))}, n = {total}{worst}{other}"

    lines = [[name, *(cell(method, task) for task in tasks)] for method, name in METHODS.items() if method in methods]
    lines += [[name, *(figures.get(task, "-") for task in tasks)] for name, figures in PUBLISHED[published].items()]
    return "\n\n".join(filter(None, [grid(["", *tasks], lines), curves(rows), detail(rows, tasks), commands(rows)]))


def detail(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    """One line a run and method: what it cost."""
    order = {m: i for i, m in enumerate(METHODS)}
    known = sorted((r for r in rows if r["task"] in tasks and r["method"] in order),
                   key=lambda r: (tasks.index(r["task"]), -1 if r["seed"] is None else r["seed"], order[r["method"]]))
    if not known:
        return f"Per run: {NOT_RUN}."
    lines = [[r["task"], "-" if r["seed"] is None else str(r["seed"]), r["method"], percent(r["success"]), str(r["success"]["n"]),
              f"{r['cycle_steps']:.0f}" if r.get("cycle_steps") else "-", f"{r['env_steps']:,}",
              f"{r['wall_s'] / 60:.1f}" if r.get("wall_s") else "-"] for r in known]
    head = ["task", "seed", "method", "success [95 %]", "n", "steps to success", "environment steps so far", "minutes"]
    return f"<details><summary>Per run</summary>\n\n{grid(head, lines)}\n\n</details>"


def curves(rows: Sequence[Row]) -> str:
    """The success of the training episodes of every online round, one line a run; "" without any."""
    found = [r for r in rows if r["method"] == "curve" and r["success_rate"]]
    if not found:
        return ""
    most = max(len(r["success_rate"]) for r in found)
    lines = [[f"{r['task']}, seed {r['seed']}", *(f"{100 * x:.0f}" for x in r["success_rate"]), *[""] * (most - len(r["success_rate"])),
              f"{int(r['env_steps'][-1]):,}"] for r in found]
    head = ["success of training episodes [%], round", *map(str, range(1, most + 1)), "environment steps"]
    return grid(head, lines)


def return_table(rows: Sequence[Row], tasks: Sequence[str], published: str) -> str:
    """Locomotion: return with its interval, one entry a seed."""
    def cell(method: str, task: str) -> str:
        found = [r for r in rows if r["task"] == task and r["method"] == method]
        return "; ".join(f"{r['return']['mean']:,.0f} [{r['return']['low']:,.0f}, {r['return']['high']:,.0f}], n = {r['return']['n']}, "
                         f"{r['env_steps']:,} steps, {r['wall_s'] / 60:.0f} min, seed {r['seed']}" for r in found) or NOT_RUN

    names = {"medium data": "medium data (PPO, stochastic)", "imitation": "imitation", "online": "**online RL, 10 steps**",
             "one-step": "**online RL, one step**"}
    lines = [[name, *(cell(method, task) for task in tasks)] for method, name in names.items()]
    lines += [[name, *(figures.get(task, "-") for task in tasks)] for name, figures in PUBLISHED[published].items()]
    return "\n\n".join([grid(["", *tasks], lines), commands(rows)])


def latency_table(rows: Sequence[Row]) -> str:
    """One line a network and method."""
    nets = {"skip": "skip-net", "unet": "U-Net", "unet-large": "U-Net, the paper's size"}
    lines = []
    for r in rows:
        target = "-" if r["target_ms"] is None else f"{r['target_ms']} ms"
        name = f"{nets[r['net']]}, {r['parameters'] / 1e6:.2f} M, chunk {r['chunk']}"
        numbers = [f"{r['p50_ms']:.3f}", f"{r['p99_ms']:.3f}", f"{r['times_faster_than_diffusers']:.1f}"]
        lines.append([name, r["method"], *numbers, target, str(r["calls"])])
    head = ["network", "", "p50 [ms]", "p99 [ms]", "times faster than diffusers", "target for p50", "calls"]
    return "\n\n".join([grid(head, lines or [[NOT_RUN] * len(head)]), commands(rows)])


def collection_table(rows: Sequence[Row]) -> str:
    """One line a way of collecting."""
    lines = [[r["task"], r["method"], f"{r['steps_per_s']:,.0f}", f"{r['times_plain_loop']:.2f}", f"{r['steps']:,}"] for r in rows]
    head = ["task", "", "environment steps/s", "times the plain loop", "steps taken"]
    return "\n\n".join([grid(head, lines or [[NOT_RUN] * len(head)]), commands(rows)])


def loading_table(rows: Sequence[Row]) -> str:
    """Windows with images, one line a way of loading, beside LeRobot's best; then windows of numbers."""
    images, numbers = ([r for r in rows if r["kind"] == kind] for kind in ("images", "numbers"))
    peer = max((r["samples_per_s"] for r in images if r["method"].startswith("LeRobot")), default=None)
    lines = [[r["method"], f"{r['samples_per_s']:,.0f}", f"{r['samples_per_s'] / peer:.1f}" if peer else NOT_RUN, f"{r['batches']:,}",
              f"{r['wall_s']:.1f}"] for r in images]
    head = ["", "samples/s", "times LeRobot's best", "batches", "seconds"]
    built = [f"Building the cache once: {r['build_s']:.1f} s for {r['cache_mb']:,.0f} MB." for r in images if "build_s" in r]
    small = [[r["method"], f"{r['p50_ms']:.3f}", f"{r['p90_ms']:.3f}", "1 ms", str(r["calls"])] for r in numbers]
    head_small = [f"{numbers[0]['batch'] if numbers else 256} low-dimensional windows out of", "p50 [ms]", "p90 [ms]", "target", "calls"]
    return "\n\n".join([grid(head, lines or [[NOT_RUN] * len(head)]), *built, grid(head_small, small or [[NOT_RUN] * len(head_small)]),
                        commands(rows)])


def scale_table(rows: Sequence[Row]) -> str:
    """One line a figure."""
    lines = [[r["measure"], f"{r['value']:,.2f} {r['unit']}", "-" if r["target"] is None else f"< {r['target']:g} {r['unit']}",
              f"{r['episodes']:,} episodes, {r['frames']:,} frames", str(r.get("n", "-"))] for r in rows]
    head = ["", "median", "target", "dataset", "n"]
    return "\n\n".join([grid(head, lines or [[NOT_RUN] * len(head)]), commands(rows)])


def recording_table(rows: Sequence[Row]) -> str:
    """One line a codec and rate."""
    def verdict(r: Row) -> str:
        return "yes" if r["holds"] else f"no, the encoder sustains {r['limit_hz']:.1f} Hz"

    lines = [[f"{r['cameras']} x {r['size'][1]}x{r['size'][0]} at {r['hz']} Hz", r["codec"], verdict(r), f"{r['reached_hz']:.2f}",
              " / ".join(f"{r['add_ms'][q]:.2f}" for q in ("p50", "p99", "max")), f"{r['late_ms']['p99']:.1f} / {r['late_ms']['max']:.1f}",
              str(r["spilled"]), f"{r['commit_s']:.2f}", f"{r['cpu_cores']:.2f}", f"{r['frames']:,}"] for r in rows]
    head = ["cameras", "codec", "holds", "rate reached [Hz]", "adding a step, p50 / p99 / max [ms]", "ticks late, p99 / max [ms]",
            "frames spilled to disk", "on disk after the last frame [s]", "cores used", "steps"]
    return "\n\n".join([grid(head, lines or [[NOT_RUN] * len(head)]), commands(rows)])


def samplers_table(rows: Sequence[Row]) -> str:
    """One line a run and stage, samplers across."""
    by = {(r["task"], r["seed"], r["stage"], r["sampler"]): r for r in rows}
    names = {"mean": "noise left out (deployed)", "ddim": "eta = 0", "exploring": "exploring"}
    keys = sorted(dict.fromkeys(k[:3] for k in by), key=lambda k: (k[0], k[1], k[2] != "imitation"))
    lines = [[task, str(seed), stage, *(percent(by[task, seed, stage, s]["success"]) if (task, seed, stage, s) in by else NOT_RUN
                                         for s in names)] for task, seed, stage in keys]
    head = ["task", "seed", "after", *names.values()]
    return "\n\n".join([grid(head, lines or [[NOT_RUN] * len(head)]), commands(rows)])


def human_table(rows: Sequence[Row]) -> str:
    """Door, PushT, the real robot, robosuite: a grid each."""
    def part(what: str) -> list[Row]:
        return sorted((r for r in rows if r["what"] == what), key=lambda r: (-1 if r["seed"] is None else r["seed"], r["starts"]))

    def who(r: Row) -> str:
        return "people, as recorded" if r["seed"] is None else f"imitation, {r['sampler']}, seed {r['seed']}"

    def spread(x: Row) -> str:
        return f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]"

    def cost(r: Row) -> str:
        where = f", {r['fitted_on']}" if "fitted_on" in r else ""
        return f"{r['steps']:,} steps of {r['batch']}, {r['cpu_s'] / 60:.0f} min{where}" if "cpu_s" in r else "-"

    door = [[who(r), r["starts"], percent(r["success"]), percent(r["opened"]), spread(r["hinge"]), str(r["success"]["n"]), cost(r)]
            for r in part("door")]
    pusht = [[who(r), r["starts"], spread(r["coverage"]), spread(r["score"]), percent(r["success"]), str(r["coverage"]["n"]), cost(r)]
             for r in part("pusht")]
    pusht += [[f"from images: {who(r)}", r["starts"], spread(r["coverage"]), spread(r["score"]), percent(r["success"]),
               str(r["coverage"]["n"]), cost(r)] for r in part("pusht images") if "coverage" in r]
    pusht.append(["published: Diffusion Policy", "its own", "-", "0.91 - 0.95", "-", "-", "-"])
    suite = [[r["starts"], f"{r['steps']:,}", *(f"{r['gripper_cm'][k]:.1f}" for k in ("median", "largest", "last")), str(r["within_1cm"]),
              "yes" if r["solved"] else "no"] for r in part("robosuite")]
    other = [f"Reachy 2, seed {r['seed']}: denoising loss on the third episode {r['loss_before']:.3f} before, {r['loss']:.3f} after "
             f"{cost(r)}; mean error of a planned joint target {r['error_rad']:.3f} rad (keeping the last one: {r['hold_rad']:.3f})."
             for r in part("reachy")]
    other += [f"PushT with images: {r['demos']} episodes, {r['frames']:,} frames of 96 x 96 imported, encoded and read back in "
              f"{r['wall_s']:.0f} s, {r['bytes'] / 2**20:.1f} MiB, mean error {r['mean_error_of_255']:.2f} of 255."
              for r in part("pusht images") if "bytes" in r]
    return "\n\n".join([
        grid(["Adroit door", "starts", "hinge at 1.35 rad", "more than 1 rad", "largest angle [rad]", "n", "fit"], door or [[NOT_RUN] * 7]),
        grid(["PushT", "starts", "best coverage", "score", "coverage 0.95", "n", "fit"], pusht),
        grid(["robosuite, replayed", "steps", "gripper off, median [cm]", "largest", "last", "steps within 1 cm", "solved at the end"],
             suite or [[NOT_RUN] * 7]), *other, commands(rows)])


def real_data_table(rows: Sequence[Row]) -> str:
    """Recordings alone: held-out errors beside three predictors, median of the seeds; then beside LeRobot with equal steps."""
    who = ("greedy", "exploring", "one-step", "keep still", "mean action", "ridge")
    lines, against = [], []
    for name in dict.fromkeys(r["set"] for r in rows):
        for kind in ("default", "no reference", "flow"):
            if not (mine := [r for r in rows if r["set"] == name and r["who"] == kind]):
                continue
            acting = "flow" if kind == "flow" else "greedy"  # a flow draws its noise whether it explores or not
            middle = {w: statistics.median(100 * r["of_range"][w] for r in mine) for w in mine[0]["of_range"]}
            own = statistics.median(r["error"][acting] for r in mine)
            best = min(("keep still", "mean action", "ridge"), key=lambda w: middle[w])
            shown = (acting, *who[1:])
            errors = [*(f"{middle[w]:.2f}" if w in middle else "-" for w in shown), f"{middle[acting] / middle[best]:.2f}", f"{own:.3g}"]
            scope = [str(mine[0]["joints"]), str(len(mine)), f"{mine[0]['decisions']:,} in {mine[0]['episodes']}", f"{mine[0]['steps']:,}"]
            minutes = statistics.median(r["wall_s"] for r in mine) / 60
            lines.append([name if kind == "default" else f"{name}, {kind}", *errors, *scope, f"{minutes:.1f}"])
        for r in (r for r in rows if r["set"] == name and r["who"] == "equal steps"):
            against.append([name, str(r["seed"]), *(f"{100 * r['of_range'][w]:.2f}" for w in ("realrl", "lerobot", "keep still", "ridge")),
                            f"{r['steps']:,}", f"{r['lerobot_parameters'] / 1e6:.0f} M",
                            f"{r['wall_s'] / 60:.1f} / {r['lerobot_wall_s'] / 60:.1f}"])
    head = ["set (episodes), % of the joints' ranges", *who, "greedy / best of the three", "greedy, own units", "joints", "seeds",
            "held-out plans in episodes", "steps", "minutes"]
    other = ["the first eight actions, % of the range", "seed", "realrl", "LeRobot diffusion", "keep still", "ridge", "steps of 64",
             "its parameters", "minutes, ours / its"]
    second = grid(other, against) if against else f"Beside LeRobot's diffusion policy: {NOT_RUN}."
    told = [_told_row(r) for r in rows if "reading" in r]
    third = [grid(["told what to do, % of the range", "seed", "texts", "told its text", "told another", "more, 95 %", "held-out episodes"],
                  told)] if told else []
    return "\n\n".join([grid(head, lines), *third, second, commands(rows)]) if lines else NOT_RUN


def _told_row(row: Row) -> list[str]:
    """A set of several texts: errors under the right one and another."""
    told = row["reading"]
    span = "-" if told["low"] is None else f"{100 * told['low']:+.2f} to {100 * told['high']:+.2f}"
    return [row["set"], str(row["seed"]), str(len(told["texts"])), f"{100 * told['told']:.2f}", f"{100 * told['told_another']:.2f}", span,
            str(told["episodes"])]


def rendering_table(rows: Sequence[Row]) -> str:
    """Sights down, tasks across."""
    tasks = list(dict.fromkeys(r["task"] for r in rows if "steps_per_s" in r))
    sights = list(dict.fromkeys(r["sight"] for r in rows if "steps_per_s" in r))
    by = {(r["task"], r["sight"]): r for r in rows}

    def cell(row: Row | None) -> str:
        if row is None:
            return NOT_RUN
        return f"{row['steps_per_s']:,.0f}" + (f" (target {row['target_steps_per_s']:g})" if row.get("target_steps_per_s") else "")

    lines = [[sight, *(cell(by.get((task, sight))) for task in tasks)] for sight in sights]
    sampled = [[r["task"], r["sight"], f"{r['ms']:.2f}"] for r in rows if "steps_per_s" not in r]
    more = [grid(["sampling the farthest points", "", "p50 [ms]"], sampled)] if sampled else []
    return "\n\n".join([grid(["environment steps/s, all included", *tasks], lines or [[NOT_RUN]]), *more, commands(rows)])


def encoders_table(rows: Sequence[Row]) -> str:
    """One line a network, form, batch and number of threads."""
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    lines = [[r["case"], r["form"], str(r["batch"]), str(r["threads"]), ms(r.get("forward_ms")), ms(r.get("step_ms"))] for r in rows]
    head = ["", "form", "batch", "threads", "forward [ms]", "training step [ms]"]
    return "\n\n".join([f"<details><summary>All encoders</summary>\n\n{grid(head, lines or [[NOT_RUN] * len(head)])}\n\n</details>",
                        commands(rows)])


def vision_latency_table(rows: Sequence[Row]) -> str:
    """One line a case and head, stages across."""
    stages = ("sampling", "encoder", "head", "all")
    clocks = {"thread": " (the thread's own time)"}
    lines = [[r["case"] + clocks.get(r.get("clock", ""), ""), {"ddim": "10 steps", "flow": "10 steps", "one-step": "one step"}[r["head"]],
              *(f"{r['ms'][s]['p50']:.2f} / {r['ms'][s]['p99']:.2f}" for s in stages), str(r["calls"])] for r in rows]
    head = ["p50 / p99 [ms]", "", "sampling the cloud", "encoder", "head", "all", "calls"]
    return "\n\n".join([grid(head, lines or [[NOT_RUN] * len(head)]), commands(rows)])


def latent_probe_table(rows: Sequence[Row]) -> str:
    """One line a run, stage and part."""
    def axes(values: Sequence[float]) -> str:
        return " / ".join(f"{v:.1f}" for v in values)

    lines = [[f"{r['task']}, seed {r['seed']}", r["stage"], r["part"], axes(r["error_mm"]), axes(r["spread_mm"]),
              f"{r['episodes']}, {r['frames']:,} frames"] for r in rows]
    head = ["run", "encoder after", "what", "error x / y / z [mm]", "spread [mm]", "rollouts"]
    return "\n\n".join([grid(head, lines or [[NOT_RUN] * len(head)]), commands(rows)])


def ablations_table(rows: Sequence[Row]) -> str:
    """Variants down, stages across, and what training looked like."""
    names = list(dict.fromkeys(r["task"] for r in rows))
    known = {"imitation": "imitation", "offline-1": "offline RL", "online": "online RL, 10 steps", "one-step": "online RL, one step",
             "exploring": "online RL, exploring"}
    methods = {m: title for m, title in known.items() if any(r["method"] == m for r in rows)} or dict(list(known.items())[:4])

    def cell(variant: str, method: str) -> str:
        found = [r for r in rows if r["task"] == variant and r["method"] == method]
        return "; ".join(f"{percent(r['success'])}, n = {r['success']['n']}" for r in found) or NOT_RUN

    lines = [[name, *(cell(name, method) for method in methods)] for name in names]
    table = grid(["variant", *methods.values()], lines or [[NOT_RUN] * (1 + len(methods))])
    return "\n\n".join(filter(None, [table, curves(rows), commands(rows)]))


def generalise_table(rows: Sequence[Row]) -> str:
    """What an update gained where it was fitted and elsewhere, one line a run and update."""
    lines = [[r["run"], f"{r['lam']:g}", r["update"], f"{100 * r['exploring']:.0f} %", f"{r['explained_other']:.2f}",
              f"{r['gain_fitted']:.4f}", f"{r['gain_other']:+.4f} ± {1.96 * r['error_other']:.4f}", f"{r['kl_other']:.4f}",
              str(r["episodes"])] for r in rows]
    head = ["run", "lambda", "update", "success exploring", "V explains", "gain, fitted half", "gain, other half [95 %]", "KL there",
            "episodes"]
    return "\n\n".join([grid(head, lines or [[NOT_RUN] * len(head)]), commands(rows)])


def critic_fit_table(rows: Sequence[Row]) -> str:
    """What critics explain of the returns, one line a run, input and number of steps."""
    lines = [[r["run"], r["seen"], f"{r['steps']:,}", *(f"{r[k]:.2f}" for k in ("v_fitted", "v_other", "q_other")), str(r["episodes"])]
             for r in rows]
    head = ["run", "critics see", "steps", "V explains, fitted episodes", "V, other episodes", "Q, other episodes", "episodes"]
    return "\n\n".join([grid(head, lines or [[NOT_RUN] * len(head)]), commands(rows)])


def ope_stages_table(rows: Sequence[Row]) -> str:
    """The correlations, then every policy: what was estimated and what was true."""
    totals = [r for r in rows if r["stage"] == "all"]
    names = {"amq": "AM-Q", "returns": "discounted return", "success": "success"}
    head = ["rank correlation", *(names[r["task"]] for r in totals)]
    line = ["**all runs**", *(f"{r['spearman']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}], {r['policies']} policies of {r['runs']} runs"
                              for r in totals)]
    each = [[r["task"], str(r["seed"]), r["stage"], f"{r['ope_amq']:.1f}", f"{r['ope_returns']:.3f}", f"{r['ope_success']:.2f}",
             f"{100 * r['true_success']:.1f} %, n = {r['true_n']}"] for r in rows if r["stage"] != "all"]
    columns = ["task", "seed", "after", *names.values(), "true success"]
    return "\n\n".join([grid(head, [line]) if totals else NOT_RUN, grid(columns, each or [[NOT_RUN] * len(columns)]), commands(rows)])


def ope_table(rows: Sequence[Row]) -> str:
    """Measures across; all runs first."""
    names = list(dict.fromkeys(r["run"] for r in rows))
    names.sort(key=lambda name: name != "all")
    measures = {"amq": "AM-Q", "returns": "discounted return", "success": "success"}
    by = {(r["run"], r["measure"]): r for r in rows}

    def cell(row: Row | None) -> str:
        return NOT_RUN if row is None else f"{row['spearman']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"

    lines = [[f"**all {by[n, 'amq']['runs']} runs**" if n == "all" else n, str(by[n, "amq"]["candidates"]),
              *(cell(by.get((n, m))) for m in measures)] for n in names]
    return "\n\n".join([grid(["run", "candidates", *measures.values()], lines or [[NOT_RUN] * 5]), commands(rows)])


def commands(rows: Sequence[Row]) -> str:
    """The command lines that made the rows, the machines and the commits."""
    if not rows:
        return f"Command, machine: {NOT_RUN}."
    lines = list(dict.fromkeys(r["command"] for r in rows))
    machines = dict.fromkeys(f"{m['cpu']}, {m['cores']} cores, {m['gpu'] or 'no GPU'}, Python {m['python']}, torch {m['torch']}"
                             for m in (r["machine"] for r in rows))
    commits = dict.fromkeys(r["commit"][:12] + ("-dirty" if r["commit"].endswith("-dirty") else "") for r in rows)
    return "```\n" + "\n".join(lines) + f"\n```\n\nMachine: {'; '.join(machines)}. Commit: {', '.join(commits)}."


def one_grid(part: ModuleType) -> Callable[[Sequence[Row]], str]:
    """The table of a module that has its HEAD and its `lines`, with the commands of its rows."""
    def table(rows: Sequence[Row]) -> str:
        return "\n\n".join([grid(part.HEAD, part.lines(rows) or [[NOT_RUN] * len(part.HEAD)]), commands(rows)])

    return table


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "metaworld": lambda rows: success_table(rows, METAWORLD, "metaworld"),
    "adroit": lambda rows: success_table(rows, ADROIT, "adroit", tuple(METHODS)),
    "locomotion": lambda rows: return_table(rows, LOCOMOTION, "locomotion"),
    "samplers": samplers_table, "latency": latency_table, "collection": collection_table, "recording": recording_table,
    "loading": loading_table, "scale": scale_table, "ope": ope_table, "ope_stages": ope_stages_table,
    "offline_products": lambda rows: "\n\n".join([
        grid(gates.FORETOLD, gates.foretold_lines(rows) or [[NOT_RUN] * len(gates.FORETOLD)]),
        grid(gates.PRODUCED, gates.produced_lines(rows) or [[NOT_RUN] * len(gates.PRODUCED)]), commands(rows)]),
    "gate": lambda rows: "\n\n".join([grid(gates.RULED, gates.ruled_lines(rows) or [[NOT_RUN] * len(gates.RULED)]),
                                      grid(gates.WALKED, gates.walked_lines(rows) or [[NOT_RUN] * len(gates.WALKED)]), commands(rows)]),
    "human": human_table,
    "rl100_all": lambda rows: "\n\n".join([everywhere.verdict(rows), grid(everywhere.HEAD, everywhere.lines(rows) or
                                                                           [[NOT_RUN] * len(everywhere.HEAD)]), commands(rows)]),
    "walk": lambda rows: "\n\n".join([
        grid(walking.HEAD, walking.lines(rows) or [[NOT_RUN] * len(walking.HEAD)]),
        grid(commanding.HEAD, commanding.lines(rows) or [[NOT_RUN] * len(commanding.HEAD)]), commands(rows)]),
    "pushes": one_grid(pushing),
    "admittance": lambda rows: "\n\n".join([
        grid(assembling.HEAD, assembling.lines(rows) or [[NOT_RUN] * len(assembling.HEAD)]),
        grid(assembling.TRAINING, assembling.training(rows) or [[NOT_RUN] * len(assembling.TRAINING)]),
        grid(assembling.LOOP, assembling.loop(rows) or [[NOT_RUN] * len(assembling.LOOP)]), commands(rows)]),
    "hil_serl": one_grid(helping),
    "robocat": one_grid(practising),
    "recap": one_grid(advantage),
    "daydreamer": one_grid(dreaming), "dream_speed": one_grid(dream_costs),
    "real_data": real_data_table,
    "delays": one_grid(lateness), "reference": one_grid(reference),
    "waiting": one_grid(waiting), "wide_plans": one_grid(wide_plans), "faults": one_grid(faults), "robot_timing": one_grid(robot_timing),
    "through_server": lambda rows: "\n\n".join([grid(served.HEAD, served.lines(rows) or [[NOT_RUN] * len(served.HEAD)]),
                                                served.typed(rows), commands(rows)]),
    "serving": one_grid(serving), "updates": one_grid(updates), "flow_speed": one_grid(flow_speed),
    "devices": one_grid(devices),
    "peers": lambda rows: "\n\n".join([*(grid(head, lines(rows) or [[NOT_RUN] * len(head)]) for head, lines in beside.GRIDS),
                                       commands(rows)]),
    "rendering": rendering_table, "encoders": encoders_table, "vision_latency": vision_latency_table,
    "vision_ablations": ablations_table, "cooling": ablations_table, "latent_probe": latent_probe_table,
    "generalise": generalise_table, "critic_fit": critic_fit_table,
    "vision": lambda rows: success_table(rows, VISION, "vision", ("imitation", "offline", "online", "one-step"))}


def fill(page: str, results: Path) -> str:
    """The page with every table rewritten. Raises RealrlError when a table's markers are missing."""
    for name, make in TABLES.items():
        page = put(page, PAGE, name, make(read_rows(results / f"{name}.jsonl")))
    return page


def put(page: str, file: Path, name: str, text: str) -> str:
    """The page of a file with a text between the markers of this name."""
    pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise RealrlError(f"{file.relative_to(ROOT)}: no place for the table {name!r}: it needs one line <!-- table {name} --> and after "
                          f"it one line <!-- end {name} -->")
    return pattern.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)


def main(words: list[str] | None = None) -> int:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    args = parser.parse_args(words)
    before = {file: file.read_text(encoding="utf-8") for file in (PAGE, README)}
    told = everywhere.newcomer(read_rows(RESULTS / "rl100_all.jsonl"))
    after = {PAGE: fill(before[PAGE], RESULTS), README: put(before[README], README, "newcomer", told)}
    if args.check:
        stale = " and ".join(file.name for file in before if after[file] != before[file])
        print(f"{stale} out of date: run python -m benchmarks.lib.tables" if stale else "up to date")
        return int(bool(stale))
    for file, text in after.items():
        write_text(file, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

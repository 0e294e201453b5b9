"""One trial on the other arm, a row an arm: force, gains and how far it came over time, and a film with the wrench drawn."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from realrl import envs
from realrl.cell.evaluate import held_out
from realrl.cell.rollout import rollout
from realrl.envs.assembly import TRACE, TRUTH
from realrl.files import write_bytes
from realrl.policies.folder import load_policy
from realrl.report.figures import PALETTE, Panel, small_multiples
from realrl.report.pictures import mp4
from realrl.robots.guard import box_guard
from realrl.scene import Scene
from realrl.types import Array, Policy, RealrlError

if TYPE_CHECKING:
    from realrl.envs.mujoco.assembly import AssemblyEnv

ROOM = "insertion"
"""The folder of a run that has them."""
PANELS = (("Force that was felt", "force", "N"), ("Damping in force", "damping", "N s/m"), ("Stiffness in force", "stiffness", "N/m"))

DEPTH, RAISED = ("Over the bottom", "mm", 1000.0, "Home"), ("Block raised by", "degrees", 180 / math.pi, "Upright")
"""How far a trial of a peg, and of a block, came: title, unit, in units of the trace, and what success is called."""


def trial(task: str, policy: Policy, scene: Scene, start: int = 0) -> tuple[AssemblyEnv, dict[str, Any]]:
    """(the environment as it was left; trace [T, 21 or more], whether it succeeded, its peak force, N) of a held-out trial. scene: of which
    it has the horizon, the delays and the guard."""
    env: Any = envs.make(task, horizon=scene.horizon)
    env.lag(scene.recall, scene.late)
    env.trace = []
    (episode,) = rollout([env], policy, [box_guard(env, scene.guard)], held_out(start + 1)[-1:], greedy=True, task=task)
    return env, {"trace": np.array(env.trace), "success": episode.succeeded, "peak": float(episode.obs["privileged"][-1, TRUTH["peak"]])}


def film(env: AssemblyEnv, trace: Array) -> bytes:
    """A trial as a film, 25 pictures a second."""
    from realrl.envs.mujoco.felt import pictures  # it imports the simulator
    return mp4(pictures(env, trace), 25.0)


def keep(run_dir: Path, arms: Mapping[str, str], scene: Scene, tell: Callable[[str], None]) -> None:
    """Try the run's policy once on every arm (task by control), and keep traces and films for the report; what is there already stays.
    scene: the run's."""
    for control, task in arms.items():
        at = run_dir / ROOM / f"{control}.npz"
        if at.is_file():
            continue
        env, told = trial(task, load_policy(run_dir / "policy")[0], scene)
        at.parent.mkdir(exist_ok=True)
        try:
            write_bytes(at.with_suffix(".mp4"), film(env, told["trace"]))
        except RealrlError as error:  # nothing draws here
            tell(f"{control}: no film: {error}")
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **told)
        write_bytes(at, buffer.getvalue())


def insertion_parts(run_dir: Path) -> list[dict[str, Any]]:
    """What the page shows of every arm. Raises RealrlError for a damaged file."""
    parts = []
    for path in sorted((run_dir / ROOM).glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as told:
                trace, success, peak = told["trace"], bool(told["success"]), float(told["peak"])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise RealrlError(f"{path} is damaged ({error}): delete it and make the report again, without its trial") from None
        if trace.ndim != 2 or trace.shape[1] < TRACE["joints"].stop:
            raise RealrlError(f"{path} has a trace of {trace.shape}, must be rows of {TRACE['joints'].stop} and more: delete it")
        name, drawn = path.stem, [Panel(title, unit, "s", partial(_axes, trace=trace, what=what)) for title, what, unit in PANELS]
        progress, unit, scale, done = RAISED if trace.shape[1] > TRACE["joints"].stop else DEPTH  # a block's posture follows the joints'
        drawn.append(Panel(progress, unit, "s", partial(_progress, trace=trace, scale=scale)))
        end = trace[-1, 0] if len(trace) else 0.0
        text = f"{done if success else f'Not {done.lower()}'} after {end:.1f} s; the largest force was {peak:.0f} N."
        movie = path.with_suffix(".mp4")
        parts.append({"title": name, "text": text, "film": f"{ROOM}/{movie.name}" if movie.is_file() else "",
                      "drawing": small_multiples(drawn, f"force, gains and progress of a trial, {name}", "Along x, y and z of the world.")})
    return parts


def _axes(axes: Axes, trace: Array, what: str) -> None:
    for values, name, colour in zip(trace[:, TRACE[what]].T, "xyz", PALETTE, strict=False):
        axes.plot(trace[:, 0], values, color=colour, lw=.8, label=name)
    axes.legend(loc="upper right")


def _progress(axes: Axes, trace: Array, scale: float) -> None:
    axes.plot(trace[:, 0], scale * trace[:, TRACE["above"]], color=PALETTE[0], lw=1.0)

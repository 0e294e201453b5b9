"""A clip as a recording for the Rerun viewer, an optional package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from realrl.report.pictures import cameras_of, clouds_of
from realrl.report.view.clips import Clip
from realrl.types import Array, Episode, RealrlError


def module() -> Any:
    """The package `rerun`. Raises RealrlError where it is not installed."""
    try:
        import rerun
    except ModuleNotFoundError as error:
        raise RealrlError("--rerun needs a package that is not installed: pip install 'realrl[viz]' (rerun-sdk); "
                          "without it, pages and --mp4 show the same") from error
    return rerun


def write(clip: Clip, file: Path) -> Path:
    """Write an .rrd file of the clip and return its path. Raises RealrlError where Rerun is not installed."""
    rr = module()
    file.parent.mkdir(parents=True, exist_ok=True)
    recording = rr.RecordingStream("realrl", recording_id=f"{file.stem}")
    recording.save(str(file))
    episode = clip.episode
    with recording:
        for t in range(len(episode) + 1):
            rr.set_time("step", sequence=t)
            rr.set_time("seconds", duration=t * clip.dt)
            _observed(rr, episode, t)
        _numbers(rr, clip)
    recording.flush()
    recording.disconnect()
    return file


def _observed(rr: Any, episode: Episode, t: int) -> None:
    for key, x in cameras_of(episode.obs):
        name = key.replace(".", "/")
        rr.log(name, rr.DepthImage(x[t], meter=1000.0) if x.dtype == np.uint16 else rr.Image(x[t]).compress(jpeg_quality=85))
    for key, x in clouds_of(episode.obs):
        rr.log(key, rr.Points3D(x[t, :, :3], colors=x[t, :, 3:] if x.shape[-1] == 6 else None))


def _numbers(rr: Any, clip: Clip) -> None:
    """Every column of numbers as a plot over the steps."""
    e = clip.episode
    columns: dict[str, Array] = {"action/sent": e.action, "action/proposed": e.proposed, "reward": e.reward, "success": e.success,
                                 "source": e.source, **{f"derived/{name}": x for name, x in clip.curves.items()},
                                 **{f"beside/{title}/{name or 'it'}": x for title, of in clip.beside.items() for name, x in of.items()}}
    columns |= {f"observation/{key}": x for key, x in e.obs.items() if x.ndim == 2}
    for name, x in columns.items():
        wide = x.reshape(len(x), -1).astype(np.float64)
        at = np.arange(len(wide))
        times = [rr.TimeColumn("step", sequence=at), rr.TimeColumn("seconds", duration=at * clip.dt)]
        rr.send_columns(name, indexes=times, columns=rr.Scalars.columns(scalars=wide))


def show(files: list[Path]) -> bool:
    """Open recordings in the viewer, in a process of its own, where there is a display; gives whether there is one."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("darwin", "win32")):
        return False
    subprocess.Popen([sys.executable, "-m", "rerun", *map(str, files)], start_new_session=True,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return True

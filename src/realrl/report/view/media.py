"""One episode as the page embeds it: films, thumbnails, quantised clouds and traces, everything as text inside the page.

Arrays travel as base64: traces as float32, points as int16 over the cube that holds them all (a point of a 1 m scene lies within
0.02 mm), colours and heat maps as uint8. Long films and clouds keep every k-th frame, so that a page stays a few megabytes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from realrl.report.figures import BLUE, GREY, ORANGE, PALETTE
from realrl.report.pictures import address, cameras_of, clouds_of, coloured, depth_range, even, grey, jpeg, mp4, resized, short
from realrl.report.tables import percent
from realrl.report.view.clips import LINES, Clip, ending
from realrl.types import Array, Episode, Source

PLAYER = 480  # pixels of a film's longer side, at most
FRAMES = 500  # of a film, at most
CLOUD = 60_000  # points of a cloud's frames together, about
THUMBS = 8
BARS = 8  # numbers of an action that get a panel each


def section(clip: Clip) -> dict[str, Any]:
    """What the template shows of a clip: heading, facts, films, strips and `data`, the JSON that the page's script reads."""
    episode, steps = clip.episode, len(clip.episode)
    films = [_film(key, x, clip.dt) for key, x in cameras_of(episode.obs)]
    clouds = [cloud(key, x) for key, x in clouds_of(episode.obs)]
    strips = [{"camera": short(key), "thumbs": _thumbs(x)} for key, x in cameras_of(episode.obs)]
    panels = traces(clip)
    data = {"steps": steps, "dt": clip.dt, "who": _bytes(episode.source.astype(np.uint8)), "clouds": clouds,
            "plans": np.flatnonzero(episode.starts_plan).tolist(), "success": np.flatnonzero(episode.success)[:1].tolist(),
            "films": [{k: film[k] for k in ("every", "fps")} for film in films], "traces": panels}
    return {"number": clip.number, "outcome": _outcome(episode), "facts": facts(clip), "notes": list(clip.notes), "films": films,
            "clouds": [{"name": c["name"], "text": c["text"]} for c in clouds], "strips": strips, "steps": steps,
            "traces": [p["title"] for p in panels], "people": _people(episode), "data": embedded(data)}


def embedded(data: Mapping[str, Any]) -> str:
    """JSON for a script element: no text in it can end the element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def facts(clip: Clip) -> list[str]:
    """A line about the episode."""
    episode = clip.episode
    human = float(np.mean(episode.source == Source.HUMAN)) if len(episode) else 0.0
    told = [ending(episode), f"{len(episode) * clip.dt:.2f} s", f"return {float(episode.reward.sum()):.4g}"]
    told += [f"seed {episode.seed}"] if episode.seed is not None else []
    told += [f"acted by {short(episode.policy)}"] if episode.policy else []
    told += [f"{percent(human)} of the steps by a person"] if human else []
    return [*told, short(episode.task)] if episode.task else told


def _outcome(episode: Episode) -> str:
    """ "success", "failed", or "unknown" where nobody said or it is not over."""
    if episode.succeeded:
        return "success"
    return "failed" if episode.failed and (episode.terminated or episode.truncated) else "unknown"


def _people(episode: Episode) -> list[str]:
    """Who acted at all, by the names of the legend."""
    return [s.name.lower() for s in Source if (episode.source == s).any()]


def _bytes(x: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(x).tobytes()).decode("ascii")


# ---- pictures


def _film(key: str, pictures: Array, dt: float) -> dict[str, Any]:
    """An H.264 film of a camera [T+1, H, W(, 3)]. every: it holds each k-th observation; fps: its own rate."""
    every = -(-len(pictures) // FRAMES)
    fps = max(1.0, min(1 / dt / every, 240.0))
    text = f"{pictures.shape[2]} × {pictures.shape[1]}"
    kept = pictures[::every]
    if pictures.dtype == np.uint16:
        near, far = depth_range(pictures)
        text += f", light {near:.0f} mm to dark {far:.0f} mm, black: nothing"
        kept = grey(kept, near, far)
    shown = [even(resized(x, PLAYER)) for x in kept]
    height, width = shown[0].shape[:2]
    return {"name": short(key), "text": text, "uri": address("video/mp4", mp4(shown, fps)), "poster": jpeg(shown[0], PLAYER),
            "every": every, "fps": round(fps, 6), "width": width, "height": height}


def _thumbs(pictures: Array) -> list[dict[str, Any]]:
    """A few pictures over time, each with the step it belongs to."""
    at = np.unique(np.linspace(0, len(pictures) - 1, THUMBS).round().astype(int)).tolist()
    return [{"step": i, "uri": jpeg(x)} for i, x in zip(at, coloured(pictures[at]), strict=True)]


def cloud(key: str, points: Array) -> dict[str, Any]:
    """A cloud [T+1, N, 3 or 6] quantised: x = low + scale * (q + 32767), q int16.

    centre, radius: of the ball to look at, which leaves out the farthest percent; floor: the lowest 1 % of z.
    """
    every = max(1, -(-points.shape[0] * points.shape[1] // CLOUD))
    kept = np.nan_to_num(points[::every].astype(np.float64), posinf=0.0, neginf=0.0)
    xyz = kept[..., :3]
    low, high = xyz.min((0, 1)), xyz.max((0, 1))
    scale = float(max((high - low).max(), 1e-9)) / 65534
    q = ((xyz - low) / scale - 32767).round().astype("<i2")
    inner, outer = np.quantile(xyz.reshape(-1, 3), [.01, .99], axis=0)
    colours = (255 * kept[..., 3:].clip(0, 1)).round().astype(np.uint8) if points.shape[-1] == 6 else None
    text = f"{points.shape[1]:,} points, {'their own colours' if colours is not None else 'coloured by height'}; drag to turn"
    return {"name": short(key), "text": text, "every": every, "frames": len(kept), "n": points.shape[1],
            "low": low.tolist(), "scale": scale,
            "centre": ((inner + outer) / 2).tolist(), "radius": max(float(np.linalg.norm(outer - inner)) / 2, 1e-6),
            "floor": float(inner[2]), "ceiling": float(max(outer[2], inner[2] + 1e-6)), "points": _bytes(q),
            "colours": None if colours is None else _bytes(colours)}


# ---- traces


def traces(clip: Clip) -> list[dict[str, Any]]:
    """The panels of lines and heat maps, in the order a reader wants them: reward, what is derived, actions, state."""
    e = clip.episode
    panels = [_lines("Reward and success", [("success", e.success, "#009E73"), ("reward", e.reward, BLUE)], hold=True)]
    panels += [_heat(short(name), x) if x.ndim > 1 else _lines(short(name), [("", x, "#CC79A7")]) for name, x in clip.curves.items()]
    panels += [_lines(short(title), [(name, x, PALETTE[i % len(PALETTE)]) for i, (name, x) in enumerate(lines.items())])
               for title, lines in clip.beside.items()]
    return panels + _actions(clip) + _state(clip)


def _actions(clip: Clip) -> list[dict[str, Any]]:
    """What was proposed and what was sent: a panel a number, or heat maps where there are many."""
    e, names = clip.episode, clip.names.get("action", ())
    sent = e.action.reshape(len(e), -1)
    asked = e.proposed.reshape(len(e), -1)
    if sent.shape[1] > BARS:
        heat = [_heat("Actions sent, all", sent)]
        return heat + ([_heat("Sent less proposed, all", sent - asked)] if not np.allclose(sent, asked) else [])
    panels = []
    for d in range(sent.shape[1]):
        name = short(names[d]) if names else str(d)
        lines = [("sent", sent[:, d], BLUE)]
        if not np.allclose(sent[:, d], asked[:, d]):
            lines.insert(0, ("proposed", asked[:, d], ORANGE))
        panels.append(_lines(f"Action {name}", lines, hold=True, span=(-1.0, 1.0)))
    return panels


def _state(clip: Clip) -> list[dict[str, Any]]:
    """Other numbers that were observed: those that move most as lines, all as a heat map."""
    panels = []
    for key, x in clip.episode.obs.items():
        if x.ndim != 2 or key == "privileged":
            continue
        names = clip.names.get(key, ())
        label = {"state": "State"}.get(key, short(key))
        moved = np.argsort(-np.nan_to_num(np.ptp(x.astype(np.float64), axis=0)), kind="stable")[:LINES]
        picked = sorted(int(d) for d in moved)
        title = label if x.shape[1] <= LINES else f"{label}, the {LINES} of {x.shape[1]} that move most"
        lines = [(short(names[d]) if names else str(d), x[:, d], PALETTE[i % len(PALETTE)]) for i, d in enumerate(picked)]
        panels.append(_lines(title, lines))
        if x.shape[1] > LINES:
            panels.append(_heat(f"{label}, all {x.shape[1]}", x))
    return panels


def _lines(title: str, lines: Sequence[tuple[str, Array, str]], *, hold: bool = False, span: tuple[float, float] | None = None
           ) -> dict[str, Any]:
    """A panel of lines. hold: values hold over a step and are drawn as stairs; span: what the axis shows at least."""
    values = np.concatenate([np.asarray(x, np.float32) for _, x, _ in lines])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low, high = (min(low, span[0]), max(high, span[1])) if span else (low, high)
    if high - low < 1e-9:
        low, high = low - .5, high + .5
    return {"kind": "lines", "title": title, "low": low, "high": high, "hold": hold,
            "lines": [{"name": name, "colour": colour or GREY, "data": _bytes(np.asarray(x, "<f4"))} for name, x, colour in lines]}


def _heat(title: str, x: Array) -> dict[str, Any]:
    """A heat map of [T, D], every row over its own range (bools over theirs): 1..255, 0 where a value is missing."""
    flags, x = x.dtype == bool, x.astype(np.float64)
    ok = np.isfinite(x)
    low, high = (np.zeros(x.shape[1]), np.ones(x.shape[1])) if flags else (np.where(ok, x, np.inf).min(0), np.where(ok, x, -np.inf).max(0))
    spread = np.where(high > low, high - low, 1.0)
    level = np.where(ok, x - np.where(ok, low, 0.0), 0.0) / spread
    return {"kind": "heat", "title": title, "rows": x.shape[1], "low": 0.0, "high": 1.0,
            "data": _bytes(np.where(ok, 1 + np.round(254 * level), 0).astype(np.uint8).T)}

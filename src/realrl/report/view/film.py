"""A clip as an mp4: cameras side by side, clouds turning, a bar for every number of the action, and a line that says when."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from realrl.data import video
from realrl.files import write_bytes
from realrl.report.pictures import cameras_of, clouds_of, depth_range, even, grey
from realrl.report.view.clips import Clip, ending
from realrl.types import Array, Source

SIDE = 320  # pixels of a panel's height
BARS, HEAD = 92, 30  # pixels of height
NARROWEST = 560
TURN = 0.4  # radians a second
LIFT = 56  # black points must show on the dark ground
WHO = {Source.POLICY: (0, 114, 178), Source.HUMAN: (230, 159, 0), Source.SCRIPT: (122, 130, 140)}
INK, SOFT, LINE = (28, 37, 48), (91, 102, 115), (223, 228, 234)
Panel = Callable[[int], Array]  # step -> uint8 [SIDE, width, 3]


def write(clip: Clip, file: Path) -> Path:
    """Write the film, T+1 frames in real time (at most 120 a second), and return its path. Raises RealrlError without an encoder."""
    buffer = io.BytesIO()
    video.encode(buffer, frames(clip), min(1 / clip.dt, 120.0), "h264", options={"crf": "20", "preset": "veryfast"})
    write_bytes(file, buffer.getvalue())
    return file


def frames(clip: Clip) -> Iterator[Array]:
    """T+1 pictures uint8 [H, W, 3]."""
    panels = [_camera(x) for _, x in cameras_of(clip.episode.obs)] + [_cloud(x, clip.dt) for _, x in clouds_of(clip.episode.obs)]
    for t in range(len(clip.episode) + 1):
        seen = [panel(t) for panel in panels]
        width = max(NARROWEST, sum(x.shape[1] for x in seen))
        rows = [_head(clip, t, width)]
        if seen:
            row = np.concatenate(seen, 1)
            spare = width - row.shape[1]
            rows.append(np.pad(row, ((0, 0), (spare // 2, spare - spare // 2), (0, 0)), constant_values=255))
        yield even(np.concatenate([*rows, *([_told(clip, t, width)] if clip.curves else []), _bars(clip, t, width)]))


def _camera(pictures: Array) -> Panel:
    near, far = depth_range(pictures) if pictures.dtype == np.uint16 else (0.0, 1.0)
    width = max(1, round(SIDE * pictures.shape[2] / pictures.shape[1]))
    method = Image.Resampling.NEAREST if pictures.shape[1] < SIDE else Image.Resampling.BOX

    def panel(t: int) -> Array:
        picture = grey(pictures[t], near, far) if pictures.dtype == np.uint16 else pictures[t]
        return np.asarray(Image.fromarray(picture).resize((width, SIDE), method))

    return panel


def _cloud(points: Array, dt: float) -> Panel:
    xyz = np.nan_to_num(points[..., :3].astype(np.float64), posinf=0.0, neginf=0.0)
    inner, outer = np.quantile(xyz.reshape(-1, 3), [.01, .99], axis=0)
    centre, radius = (inner + outer) / 2, max(float(np.linalg.norm(outer - inner)) / 2, 1e-6)
    high = ((xyz[..., 2] - inner[2]) / max(float(outer[2] - inner[2]), 1e-6)).clip(0, 1)
    coloured = points.shape[-1] == 6

    def panel(t: int) -> Array:
        colours = 255 * points[t, :, 3:].clip(0, 1) if coloured else by_height(high[t])
        return splat((xyz[t] - centre) / radius, colours, turn=-.9 + TURN * t * dt, size=SIDE)

    return panel


def by_height(t: Array) -> Array:
    """[N] in [0, 1] -> [N, 3] in [0, 255], dark blue over green to yellow."""
    stops = np.array([[68, 84, 168], [38, 150, 160], [122, 199, 90], [253, 231, 76]], np.float64)
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(t, at, stops[:, c]) for c in range(3)], -1)


def splat(xyz: Array, colours: Array, *, turn: float, size: int, tilt: float = .5) -> Array:
    """Points [N, 3] in a ball of radius 1 as small squares, near over far -> uint8 [size, size, 3]. colours: [N, 3] in [0, 255]."""
    c, s, ct, st = np.cos(turn), np.sin(turn), np.cos(tilt), np.sin(tilt)
    right, away = c * xyz[:, 0] + s * xyz[:, 1], -s * xyz[:, 0] + c * xyz[:, 1]
    up, depth = ct * xyz[:, 2] + st * away, ct * away - st * xyz[:, 2]
    scale = .46 * size * 3 / np.maximum(3 + depth, .2)
    out = np.full((size, size, 3), (16, 21, 27), np.uint8)
    shade = ((LIFT + colours * (1 - LIFT / 255)) * (1.05 - .22 * (depth + 1)).clip(.45, 1)[:, None]).astype(np.uint8)
    order = np.argsort(-depth, kind="stable")  # of writes to one pixel the last, nearest one counts
    x, y = (size / 2 + right * scale)[order].round().astype(int), (size / 2 - up * scale)[order].round().astype(int)
    half = max(1, round(size / 160))
    for dx in range(-half, half + 1):
        for dy in range(-half, half + 1):
            ok = (x + dx >= 0) & (x + dx < size) & (y + dy >= 0) & (y + dy < size)
            out[(y + dy)[ok], (x + dx)[ok]] = shade[order][ok]
    return out


# ---- text and bars


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)


def _head(clip: Clip, t: int, width: int) -> Array:
    """A line of text [HEAD, width, 3]."""
    image = Image.new("RGB", (width, HEAD), "white")
    draw = ImageDraw.Draw(image)
    steps = len(clip.episode)
    draw.text((10, 7), f"episode {clip.number}   step {t} of {steps}   {t * clip.dt:.2f} s", INK, _font(13))
    right = ending(clip.episode) if t == steps else f"reward {clip.episode.reward[t]:.3g}"
    draw.text((width - 10, 7), right, SOFT, _font(13), anchor="ra")
    return np.asarray(image)


def _told(clip: Clip, t: int, width: int) -> Array:
    """What is known of the step beside its observation, a line [HEAD, width, 3]: numbers, and bools as boxes that are filled where true."""
    image = Image.new("RGB", (width, HEAD), "white")
    now = {name: x[min(t, len(x) - 1)] for name, x in clip.curves.items() if len(x)}
    words = [name + " " + "".join("■" if v else "□" for v in np.atleast_1d(x)) if x.dtype == bool else f"{name} {x:.2f}"
             for name, x in now.items() if x.dtype == bool or x.ndim == 0]
    ImageDraw.Draw(image).text((10, 7), "   ".join(words), INK, _font(13))
    return np.asarray(image)


def _bars(clip: Clip, t: int, width: int) -> Array:
    """The action at step t [BARS, width, 3]: filled what was sent, in the colour of who chose it, outlined what was proposed."""
    image = Image.new("RGB", (width, BARS), "white")
    draw = ImageDraw.Draw(image)
    sent, asked = (x.reshape(len(x), -1) for x in (clip.episode.action, clip.episode.proposed))
    top, bottom, left = 6, BARS - 22, 12
    middle, tall = (top + bottom) / 2, (bottom - top) / 2
    draw.line((left, middle, width - left, middle), LINE)
    each = min((width - 2 * left) / sent.shape[1], 90.0)
    reach = max(1.0, float(np.abs(sent).max(initial=0.0)))
    for d in range(sent.shape[1] if t < len(sent) else 0):
        a, b = left + d * each + .16 * each, left + (d + 1) * each - .16 * each
        for value, fill, outline in ((sent[t, d], WHO[Source(int(clip.episode.source[t]))], None), (asked[t, d], None, INK)):
            end = middle - tall * float(np.clip(value / reach, -1, 1))
            draw.rectangle((a, min(middle, end), b, max(middle, end)), fill, outline)
    who = {Source.POLICY: "the policy acts", Source.HUMAN: "a person acts", Source.SCRIPT: "a script acts"}
    text = who[Source(int(clip.episode.source[t]))] if t < len(sent) else "end"
    draw.text((left, BARS - 18), f"{text}; filled: sent, outlined: proposed, of ±{reach:.2g}", SOFT, _font(11))
    return np.asarray(image)

"""Pictures as the pages embed them: small JPEGs, depth as grey, H.264 that every browser plays."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image  # comes with matplotlib

from realrl.data import depth, video
from realrl.data.store import Recordings
from realrl.types import Array, RealrlError

THUMB = 128  # pixels of a thumbnail's longer side, at most
LONGEST = 160  # characters of a text that others wrote


def short(text: str) -> str:
    """A text that others wrote, cut to what a page can bear."""
    return text if len(text) <= LONGEST else text[:LONGEST - 1] + "…"


def depth_range(depth: Array) -> tuple[float, float]:
    """(near, far) millimetres: the 1 % and 99 % quantiles of what was hit; (0, 1) where nothing was."""
    hit = depth[depth > 0]
    if not hit.size:
        return 0.0, 1.0
    low, high = np.quantile(hit[:: max(1, hit.size // 1_000_000)], [.01, .99])
    return float(low), float(max(high, low + 1))


def grey(depth: Array, near: float, far: float) -> Array:
    """uint16 [..., H, W] millimetres -> uint8 [..., H, W, 3]: near is light, far is dark, black where nothing is.

    Even in 1 / distance, as a stereo camera's disparity: what is near the robot gets most of the greys.
    """
    close, away = 1 / max(near, 1.0), 1 / max(far, 2.0)
    tone = 40 + 215 * ((1 / np.maximum(depth, 1).astype(np.float32) - away) / max(close - away, 1e-9)).clip(0, 1)
    return np.repeat(np.where(depth > 0, tone, 0).astype(np.uint8)[..., None], 3, -1)


def coloured(pictures: Array) -> Array:
    """Pictures as uint8 [..., H, W, 3]; depth (uint16 [..., H, W]) in grey over its own range."""
    return grey(pictures, *depth_range(pictures)) if pictures.dtype == np.uint16 else pictures


def resized(picture: Array, longest: int) -> Array:
    """uint8 [H, W, 3] with its longer side at most `longest` pixels; smaller ones stay as they are."""
    height, width = picture.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def jpeg(picture: Array, longest: int = THUMB) -> str:
    """uint8 [H, W, 3], or depth, as a small JPEG in a data address."""
    buffer = io.BytesIO()
    Image.fromarray(resized(coloured(picture), longest)).save(buffer, "JPEG", quality=82)
    return address("image/jpeg", buffer.getvalue())


def address(kind: str, data: bytes) -> str:
    """Bytes as a data address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def even(picture: Array) -> Array:
    """uint8 [H, W, 3] with even sides, the last row or column repeated: browsers play no H.264 with odd ones."""
    return np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")


def mp4(pictures: Iterable[Array], fps: float, crf: int = 22) -> bytes:
    """uint8 [H, W, 3] each -> an H.264 film with even sides. Raises RealrlError without pictures or where there is no encoder."""
    buffer = io.BytesIO()
    video.encode(buffer, (np.ascontiguousarray(even(x)) for x in pictures), fps, "h264", options={"crf": str(crf), "preset": "veryfast"})
    return buffer.getvalue()


def film_strip(store: Recordings, episode: int, camera: str, at: Sequence[float] = (0, .5, 1)) -> dict[str, Any]:
    """A recorded camera as thumbnails. at: where in the episode, 0 its start, 1 its end; a text where they cannot be read."""
    try:
        path, times = store.pictures(episode, camera)
        coding = depth.coding(camera, store.info["features"][f"observation.{camera}"])
        found = video.decode(path, times[[round(x * (len(times) - 1)) for x in at]], store.tolerance, coding)
    except (RealrlError, OSError) as error:
        return {"camera": short(camera), "pictures": [], "error": short(str(error).removeprefix(f"{store.dir}/"))}
    return {"camera": short(camera), "pictures": [jpeg(x) for x in coloured(found)], "error": ""}


def tell_once(cards: Sequence[Mapping[str, Any]]) -> None:
    """Of film strips that cannot be shown for one reason, only the first says it at length: a broken video would fill a page."""
    told: set[str] = set()
    for film in (film for card in cards for film in card["films"] if film["error"]):
        why = film["error"]
        film["error"] = "as above" if why in told else why
        told.add(why)


def cameras_of(obs: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    """(key, pictures) of an episode's cameras: uint8 [T+1, H, W, 3] or uint16 [T+1, H, W]."""
    for key, x in obs.items():
        if (x.ndim == 4 and x.dtype == np.uint8 and x.shape[-1] == 3) or (x.ndim == 3 and x.dtype == np.uint16):
            yield key, x


def clouds_of(obs: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    """(key, points) of an episode's point clouds: float [T+1, N, 3 or 6]."""
    for key, x in obs.items():
        if x.ndim == 3 and x.dtype.kind == "f" and x.shape[-1] in (3, 6) and x.shape[1] > 1:
            yield key, x

"""What a flow policy looks with: a frozen network a camera, each robot its own cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from realrl.nets.transformer import PICTURE
from realrl.types import RealrlError

Senses = Mapping[str, tuple[int, ...]]


class Eyes(nn.ModuleDict):
    """A frozen network a camera of every robot; `slots` are the places for pictures that robots share, as many as one of them has cameras:
    a robot's camera takes the slot of its own name, or the next free one."""

    def __init__(self, robots: Sequence[Senses], fetch: bool) -> None:
        """robots: key -> [H, W, 3] of each. fetch: whether weights are read from their package. Raises RealrlError for no picture."""
        super().__init__()
        self.slots = max((list(senses) for senses in robots), key=len)
        self.cameras = list(dict.fromkeys(key for senses in robots for key in senses))
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._placed = [_placed(list(senses), self.slots) for senses in robots]
        self._names = [{key: self._add(key, tuple(shape), fetch) for key, shape in senses.items()} for senses in robots]

    def _add(self, key: str, shape: tuple[int, ...], fetch: bool) -> str:
        """The name of the network for a camera's pictures: weights are the same, how borders are filled up depends on the size."""
        pictured(key)
        from realrl.nets.image import ImageTokens  # who has no cameras need not read it
        name = key.replace(".", "-")
        if self._sizes.get(name, shape) != shape:
            name = f"{name}-{shape[0]}x{shape[1]}"
        if name not in self._sizes:
            self[name], self._sizes[name] = ImageTokens(shape[0], shape[1], fetch), shape
        return name

    def look(self, frames: Mapping[str, Tensor], robot: int) -> dict[str, Tensor]:
        """Slot -> tokens [F, 16, 112] of a robot's pictures [F, H, W, 3], in half precision; zeros where it has no such camera."""
        count, device, names = len(frames["state"]), frames["state"].device, self._names[robot]
        out = {}
        for slot, key in zip(self.slots, self._placed[robot], strict=True):
            out[slot] = torch.zeros(count, *PICTURE, dtype=torch.float16, device=device) if key is None else torch.cat(
                [self[names[key]](frames[key][i:i + 256]).half() for i in range(0, len(frames[key]), 256)])
        return out


def _placed(cameras: Sequence[str], slots: Sequence[str]) -> list[str | None]:
    """The camera in every slot, None where a robot has too few."""
    others = iter([key for key in cameras if key not in slots])
    return [slot if slot in cameras else next(others, None) for slot in slots]


def pictured(key: str) -> None:
    """Raises RealrlError for an observation that is no picture."""
    if not key.startswith("images."):
        raise RealrlError(f"observation {key!r}: a flow policy looks at pictures: train it with --sight.kind rgb or state")

"""A robot that asks for help when its values stagnate (the cheap part of UniIntervene, arXiv 2606.12372)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from realrl.types import Moment, Source


class Help:
    """Says when the robot wants help: over `after` steps of its own, its critics' value of what it does rose less than half as fast as on
    the way to a reward, where it is 1 / gamma times as much a step later. worth: that value of the last so many steps, oldest first."""

    def __init__(self, after: int, gamma: float, worth: Callable[[int], Tensor]) -> None:
        self._after, self._rise, self._value = after, 1 / max(gamma ** (0.5 * after), 1e-300), worth
        self._worth: list[float] = []
        self.asks, self.asked = False, 0

    def see(self, found: Sequence[Moment]) -> None:
        """The newest steps, of which the value can be told."""
        if not (self._after and found):
            return
        for m, worth in zip(found, self._value(len(found)).tolist(), strict=True):
            if m.first or m.step.source == Source.HUMAN:
                self._worth.clear()
            self._worth.append(worth)
        before, asks = self._worth[-self._after - 1:][0], self.asks
        self.asks = len(self._worth) > self._after and self._worth[-1] < max(before, 0.0) * self._rise
        self.asked += self.asks and not asks

    def state_dict(self) -> dict[str, Any]:
        """How often it asked; checkpoints are made between episodes."""
        return {"asked": self.asked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.asked = int(state["asked"])

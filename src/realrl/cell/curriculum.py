"""Which starts to practise: those that failed come back until they are solved once.

At 98 % success a fresh start teaches almost nothing, and a person at the robot would set the failed start up again, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from realrl.files import derive
from realrl.types import Episode


class Practice:
    """Remembers failed starts. share: of a round's episodes that repeats them; seed: draws which."""

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.seed = share, seed
        self.failed: list[int] = []

    def again(self, episodes: int, iteration: int) -> list[int]:
        """The starts to repeat in a round of so many episodes, at most `share` of them, oldest first."""
        count = min(int(self.share * episodes), len(self.failed))
        chosen = np.random.default_rng(derive(self.seed, "practice", iteration)).choice(len(self.failed), count, replace=False)
        return [self.failed[i] for i in sorted(chosen)]

    def remember(self, episodes: Sequence[Episode]) -> None:
        """Add what failed, forget what was solved."""
        solved = {e.seed for e in episodes if e.succeeded}
        lost = [e.seed for e in episodes if e.failed and e.seed is not None]
        self.failed = [s for s in dict.fromkeys(self.failed + lost) if s not in solved]

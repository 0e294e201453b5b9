"""Does a policy look, does it read? The same held-out starts with black pictures, under another task's text, under words it never saw.

People found policies that succeed with black pictures, and policies that do the same whatever they are told; either shows nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from realrl.cell.latency import Around
from realrl.nets.text import words
from realrl.types import Obs, Plan, Policy, RealrlError, State, TaskSpec

if TYPE_CHECKING:
    from realrl.policies.folder import Saved


class Blind(Around):
    """A policy whose eyes see nothing: pictures and depths are black, a cloud lies at the origin. Its state stays."""

    def __init__(self, policy: Policy, senses: Sequence[str]) -> None:
        super().__init__(policy)
        self.name, self._senses = f"{policy.name}, blind", tuple(senses)

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """What the policy does in the dark."""
        dark = {key: np.zeros_like(x) if key in self._senses else x for key, x in obs.items()}
        return self._inner.act(dark, state, greedy=greedy, rng=rng)


def variants(policy: Saved, spec: TaskSpec, *, blind: bool, swap: bool, paraphrase: bool) -> Iterator[tuple[str, Policy]]:
    """(what is changed, who acts so). Raises RealrlError for a policy that has no eyes, does not read, or knows one task only."""
    if blind:
        if not policy.senses:
            raise RealrlError(f"--blind: {policy.name} sees the state alone, there is nothing to darken: leave it out")
        yield "blind", Blind(policy, list(policy.senses))
    if not (swap or paraphrase):
        return
    if policy.KIND != "flow":
        raise RealrlError(f"--swap-text and --paraphrase: a {policy.KIND} policy is told nothing: leave them out")
    if swap:
        own = words(policy.text)  # a robot's task has another name than the policy's
        others = [task for task, told in policy.tasks.items() if task != spec.id and told.body == policy.body
                  and own not in map(words, told.texts)]
        if not others:
            raise RealrlError(f"--swap-text: {policy.name} knows no other task than {spec.id} for this robot: leave it out")
        yield f"told: {policy.tasks[others[0]].texts[0]}", policy.told(spec.id, policy.tasks[others[0]].texts[0])
    if paraphrase:
        if not spec.paraphrases:
            raise RealrlError(f"--paraphrase: nobody wrote down other words for {spec.id}: say some with --text")
        yield f"told: {spec.paraphrases[-1]}", policy.told(spec.id, spec.paraphrases[-1])

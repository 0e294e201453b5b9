"""What a policy that is told what to do foresees of recordings, under the text of every episode, and under another that it knows.

If both foresee as well, what it is told does not matter to it: it looks at the scene alone, or there is nothing that the text has to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from realrl.cell.foresight import Examiner
from realrl.policies.flow import FlowPolicy
from realrl.types import Array

OTHER = "told another"
"""How the errors under another text are called."""


def heard(examiner: Examiner, texts: Sequence[str], policy: FlowPolicy) -> tuple[dict[str, Array], dict[str, Any]]:
    """(the policy's chunks [N, K, A] by name, what its texts change as "reading"; nothing of a robot that knows one alone, and of the
    one-step head). texts: of each held-out episode; the policy drives the robot that they are of."""
    listening = Listening(examiner, texts, policy)
    if policy.head == "one-step":
        return {"one-step": listening.ask()}, {}
    right = listening.ask()
    if len(listening.task_of) < 2:
        return {"flow": right}, {}
    swapped = listening.ask(swapped=True)
    return {"flow": right, OTHER: swapped}, {"reading": listening.compare(right, swapped)}


class Listening:
    """Asks a policy under texts, see `Examiner`. texts: of each held-out episode."""

    def __init__(self, examiner: Examiner, texts: Sequence[str], policy: FlowPolicy) -> None:
        self.examiner, self.policy = examiner, policy
        self.task_of = {told.texts[0]: task for task, told in policy.tasks.items() if told.body == policy.body}
        self.episode = examiner.unseen.episode[examiner.rows.to(examiner.unseen.episode.device)].cpu().numpy()
        self.texts = np.array(texts)[self.episode]
        known = list(self.task_of)
        self.other = {text: known[(i + 1) % len(known)] for i, text in enumerate(known)}

    def ask(self, *, swapped: bool = False) -> Array:
        """Its chunks [N, K, A] in the robot's units, each told its episode's text; swapped: another of the robot's texts."""
        out = np.zeros_like(self.examiner.truth)
        for text in dict.fromkeys(self.texts.tolist()):
            among = np.flatnonzero(self.texts == text)
            told = self.policy.told(self.task_of[self.other[text] if swapped else text])
            chunks = self.examiner.ask(told, True, among)
            out[among, :chunks.shape[1]] = chunks
        return out

    def compare(self, right: Array, swapped: Array) -> dict[str, Any]:
        """Errors as a share of the joints' range: of every text, told right and told another, and the mean difference over the episodes
        with its 95 % interval (Student's t), None of one episode."""
        share = [self._shares(chunks) for chunks in (right, swapped)]  # [episodes] each
        names, first = np.unique(self.episode, return_index=True)
        of = {text: [float(s[[self.texts[i] == text for i in first]].mean()) for s in share] for text in dict.fromkeys(self.texts.tolist())}
        span = 2 * self.examiner.robot.half
        whole = [float((self.examiner.error(chunks) / span).mean()) for chunks in (right, swapped)]
        more = share[1] - share[0]
        low = high = None
        if len(names) > 1:
            from scipy.special import stdtrit
            far = float(stdtrit(len(names) - 1, 0.975)) * float(more.std(ddof=1)) / len(names) ** 0.5
            low, high = float(more.mean()) - far, float(more.mean()) + far
        return {"texts": {text: {"told": a, "told another": b, "the other": self.other[text]} for text, (a, b) in of.items()},
                "told": whole[0], "told_another": whole[1], "more": float(more.mean()), "low": low,
                "high": high, "episodes": len(names)}

    def _shares(self, chunks: Array) -> Array:
        """The mean error of each held-out episode, [E]."""
        mask = self.examiner.valid[..., None]
        wrong = np.abs(chunks - self.examiner.truth) * mask / (2 * self.examiner.robot.half)
        mean = wrong.sum((1, 2)) / (mask.sum((1, 2)) * wrong.shape[-1])
        weight = mask.sum((1, 2))
        found: Array = np.array([np.average(mean[self.episode == e], weights=weight[self.episode == e]) for e in np.unique(self.episode)])
        return found

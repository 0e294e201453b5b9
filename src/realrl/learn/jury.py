"""Who says which of the episodes that a policy practised by itself succeeded: several success classifiers, and what they were asked before.

RoboCat (arXiv 2306.11706) has one classifier a task, from labels of people, and does not say how its threshold is found. Here a share of
false positives is promised of the practising policy's own failures, from few of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from realrl.files import derive
from realrl.learn import classifier
from realrl.learn.classifier import NO, YES, Classifier, ClassifierConfig, Labelled
from realrl.types import Array, Episode

PARTS = 5
NEAR = 0.95
"""Share of the known successes that look like another one: what looks less like any than these is no success."""


class Jury:
    """Success classifiers of a task: each is fitted to all of the labelled episodes but a part, and heard on that; what they say on the
    average counts, where the frame looks like a success that is known.

    The threshold is the score that a share `false` of the failures reaches by which they are heard, never below even odds. Whatever the
    scores are like, the next failure passes it with a chance of that share, or of one in one more than are `heard`, if that is more: of 40
    failures none may pass, and one in 41 will (conformal prediction; Vovk, Gammerman and Shafer 2005, section 2.2). Of no failure nothing
    is known.

    A network says anything of what is unlike all that it was fitted to, a mug beside the table, say: hence the likeness.
    """

    def __init__(self, cfg: ClassifierConfig, demos: Sequence[Episode], shown: Sequence[Episode], *, false: float, seed: int) -> None:
        """demos: in them success is the last frame; shown: the practising policy's own, labelled frame by frame. Where all frames that
        one of them is fitted to are of one kind there is nothing to tell apart, and it sees no success in anything."""
        self.cfg = cfg
        self.sketch = classifier.blank(demos, cfg)
        frames = [self.frames(e) for e in (*demos, *shown)]  # frozen eyes: seen once
        labels = [_last(len(e)) for e in demos] + [np.where(e.success, YES, NO) for e in shown]
        self.members: list[Classifier] = []
        failed = [len(demos) + i for i, e in enumerate(shown) if not e.succeeded]
        self.heard, self.threshold = len(failed), float("inf")
        fitted = [[i for i in range(len(frames)) if i < len(demos) or (i - len(demos)) % PARTS != part] for part in range(PARTS)]
        if any(len(np.unique(np.concatenate([labels[i] for i in rows]))) < 2 for rows in fitted):
            return
        self.members = [self._fit(frames, labels, rows, derive(seed, "jury", part) % 2**31, demos) for part, rows in enumerate(fitted)]
        self.known, self.centre, self.spread, self.far = _likeness(frames, labels)
        scores = [self._score(_odds(self.members[(i - len(demos)) % PARTS], frames[i]), frames[i]) for i in failed]
        most = max(1, int(false * (len(scores) + 1)))  # the rank of a score that so many of the failures and the next one reach
        self.threshold = max([0.0, *sorted(scores, reverse=True)[most - 1:most]])

    def _fit(self, frames: Sequence[Tensor], labels: Sequence[Array], rows: Sequence[int], seed: int,
             demos: Sequence[Episode]) -> Classifier:
        """A member, fitted to the episodes of these numbers. frames: [T, F] each; labels: [T] each."""
        model = classifier.blank(demos, replace(self.cfg, seed=seed))
        which = np.repeat(np.arange(len(rows)), [len(frames[i]) for i in rows])
        classifier.learn(model, Labelled(torch.cat([frames[i] for i in rows]), np.concatenate([labels[i] for i in rows]), which))
        return model.eval()

    def frames(self, episode: Episode) -> Tensor:
        """What they see after every step of an episode, [T, F]."""
        return self.sketch.features({key: episode.obs[key][1:] for key in self.sketch.shapes})

    def score(self, episode: Episode) -> float:
        """The highest log-odds of success that so many frames in a row as it takes reach; minus infinity where none looks like one."""
        if not self.members:
            return -float("inf")
        frames = self.frames(episode)
        return self._score(np.mean([_odds(model, frames) for model in self.members], 0), frames)

    def _score(self, odds: Array, frames: Tensor) -> float:
        """The highest log-odds [T] that so many frames [T, F] in a row reach, where they look like a success."""
        like = torch.cdist((frames - self.centre) / self.spread, self.known).amin(1).numpy() <= self.far
        seen = np.where(like, odds, -np.inf)
        return float(np.lib.stride_tricks.sliding_window_view(seen, min(self.cfg.frames, len(seen))).min(1).max())

    def sees(self, episode: Episode) -> bool:
        """Whether they see success in it."""
        return self.score(episode) > self.threshold

    def audit(self, episodes: Sequence[Episode], verdicts: Sequence[bool]) -> dict[str, Any]:
        """What they say against what the simulator says, on the practising policy's episodes that they have never seen."""
        truth, said = np.array([e.succeeded for e in episodes]), np.array(verdicts)
        both, taken, true = int((truth & said).sum()), int(said.sum()), int(truth.sum())
        return {"threshold": self.threshold if self.members else None, "heard": self.heard, "episodes": len(episodes), "taken": taken,
                "true": true, "failures": len(episodes) - true, "false": taken - both, "missed": true - both,
                "precision": both / taken if taken else None, "recall": both / true if true else None,
                "false_share": (taken - both) / max(1, len(episodes) - true)}


def _likeness(frames: Sequence[Tensor], labels: Sequence[Array]) -> tuple[Tensor, Tensor, Tensor, float]:
    """(known successes [N, F] in their own spread, its centre [F] and width [F], how far from the nearest a success may be)."""
    every, label = torch.cat(list(frames)), torch.from_numpy(np.concatenate(labels))
    good = every[label == YES]
    centre = good.mean(0)
    least = 0.1 * every.std(0, unbiased=False)  # what hardly differs between successes may differ a little in the next one
    spread = torch.maximum(good.std(0, unbiased=False), least).clamp(min=1e-3)
    known = (good - centre) / spread
    if len(known) < 2:
        return known, centre, spread, float("inf")
    apart = torch.cdist(known, known).fill_diagonal_(float("inf")).amin(1)
    rank = min(len(apart), math.ceil(NEAR * (len(apart) + 1)))  # that the next one lies no farther than, of few the farthest
    return known, centre, spread, float(apart.sort().values[rank - 1])


def _odds(model: Classifier, frames: Tensor) -> Array:
    """Log-odds of success [T] of frames [T, F]."""
    out: Array = model.logits(frames).numpy()
    return out


def _last(steps: int) -> Array:
    """Labels [T] of an episode whose last frame alone shows success."""
    out: Array = np.full(steps, NO)
    out[-1] = YES
    return out

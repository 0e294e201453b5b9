"""Is it done? A classifier of what a robot sees, as HIL-SERL (arXiv 2410.21845, section IV) rewards itself; and its audit.

It is fitted to labelled frames of recordings, with as many solved ones as others in every batch. Episodes are split, never their frames:
half of them are fitted, a quarter chooses the threshold, a quarter is only counted. A run believes it after so many frames in a row.
Pictures go through a frozen network with ImageNet weights, once a frame; what it reads is found by name, never by place.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from realrl import config
from realrl.files import derive, read_json, read_plain, write_bytes, write_json
from realrl.losses import wilson
from realrl.types import Array, Episode, Obs, RealrlError

UNLABELLED, NO, YES = -1, 0, 1
GRID = 4
"""Cells of a picture's map on a side, after pooling."""
SHARES = (0.5, 0.25, 0.25)
"""Of the episodes: fitted, for the threshold, for the audit."""


@dataclass(frozen=True)
class ClassifierConfig:
    """A success classifier and its fit."""

    keys: tuple[str, ...] = ()
    """Observations that it looks at, e.g. images.wrist state; all pictures by default, the state where there are none."""
    hidden: tuple[int, ...] = (256,)
    """Widths of its ReLU layers."""
    dropout: float = 0.1
    """Share of features that is left out while it is fitted, a state's numbers excepted."""
    steps: int = 1000
    """Gradient steps."""
    batch: int = 256
    """Frames a step, half of them solved."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    decay: float = 1e-3
    """Weight decay."""
    false: float = 0.002
    """Share of unsolved frames that may be taken for solved: the threshold is the lowest that keeps it on the episodes for that."""
    frames: int = 2
    """Frames in a row that have to show success."""
    seed: int = 0
    """Seeds the split, the weights and the batches."""

    def __post_init__(self) -> None:
        config.check(self, hidden="[1, 16384]", dropout="[0, 0.9]", steps="[1, 1e7]", batch="[2, 1e6]", lr="(0, 1]", decay="[0, 1]",
                     false="[0, 0.5]", frames="[1, 1000]", seed="[0, 2e18]")


# ---- what it looks at


class Pictures(nn.Module):
    """A frozen EfficientNet-Lite0 up to the map of a 16th of the picture, pooled to `GRID` x `GRID`: uint8 [B, H, W, 3] -> [B, F]."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        from realrl.nets.image import COLOURS, EfficientNetLite0
        net = EfficientNetLite0(height, width).net
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        self.blocks = nn.ModuleList(net._blocks[:11])
        self.mean: Tensor
        self.std: Tensor
        for name, values in zip(("mean", "std"), COLOURS, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        from realrl.nets.image import pixels
        h = self.stem((pixels(images) - self.mean) / self.std)
        for block in self.blocks:
            h = block(h, drop_connect_rate=0.0)
        return nn.functional.adaptive_avg_pool2d(h, GRID).flatten(1)


class Unsure(nn.Dropout):
    """Dropout of a picture's features [..., F], which say much more than once. Of a state's numbers none says what another does: without
    one of them it may be no success at all, so that they stay. said: of every feature whether it is of a picture."""

    def __init__(self, share: float, said: Sequence[bool]) -> None:
        super().__init__(share)
        self.said: Tensor
        self.register_buffer("said", torch.tensor(said), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.said, super().forward(x), x)


class Classifier(nn.Module):
    """Observations -> probability of success. shapes: of every observation that it looks at, in this order. fitted: the identities of
    episodes that had a part in its fit, its threshold included."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], cfg: ClassifierConfig) -> None:
        super().__init__()
        self.shapes, self.cfg, self.threshold = {key: tuple(shape) for key, shape in shapes.items()}, cfg, 0.5
        self.fitted: frozenset[str] = frozenset()
        trunks = {key: Pictures(*shape[:2]) for key, shape in self.shapes.items() if key.startswith("images.")}
        self._trunks = [trunks]  # in a list they are no part of the weights: they come with their package
        sizes = [GRID * GRID * 112 if key in trunks else math.prod(shape) for key, shape in self.shapes.items()]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(sum(sizes)))
        self.register_buffer("std", torch.ones(sum(sizes)))
        seen = [key in trunks for key, size in zip(self.shapes, sizes, strict=True) for _ in range(size)]
        layers: list[nn.Module] = []
        for a, b in pairwise((sum(sizes), *cfg.hidden)):
            layers += [nn.Dropout(cfg.dropout) if layers else Unsure(cfg.dropout, seen), nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear((sum(sizes), *cfg.hidden)[-1], 1))

    def features(self, obs: Obs, chunk: int = 64) -> Tensor:
        """What the network sees of N observations, each [N, ...]: [N, F] float32; of pictures made once, they are all that is kept of them.

        Raises RealrlError where one is missing or has another shape.
        """
        self.suit({key: values.shape[1:] for key, values in obs.items()})
        parts = []
        for key in self.shapes:
            rows = torch.from_numpy(np.ascontiguousarray(obs[key]))
            trunk = self._trunks[0].get(key)
            parts.append(torch.cat([trunk(part) for part in torch.split(rows, chunk)]) if trunk else rows.flatten(1).float())
        return torch.cat(parts, 1).clone()

    def suit(self, seen: Mapping[str, Sequence[int]]) -> None:
        """Raises RealrlError where a robot does not observe what it looks at. seen: key -> shape."""
        for key, shape in self.shapes.items():
            if tuple(seen.get(key, (-1,))) != shape:
                told = f"has shape {list(seen[key])}" if key in seen else f"is not among {', '.join(sorted(seen))}"
                raise RealrlError(f"the success classifier looks at {key!r} of shape {list(shape)}, which {told}: fit one to what this "
                                  "robot observes (realrl reward fit --keys ...)")

    def identity(self, episode: Episode) -> str:
        """Tells an episode from others by its start and what it shows, wherever it lies."""
        told = hashlib.sha256(f"{episode.seed} ".encode() + np.ascontiguousarray(episode.action).tobytes())
        for key in self.shapes:
            told.update(np.ascontiguousarray(episode.obs[key]).tobytes() if key in episode.obs else b"")
        return told.hexdigest()[:16]

    def logits(self, features: Tensor) -> Tensor:
        """Log-odds of success [N] of features [N, F]."""
        out: Tensor = self.net((features - self.mean) / self.std)[..., 0]
        return out

    @torch.no_grad()
    def probability(self, features: Tensor) -> Array:
        """Of success [N], of features [N, F]."""
        self.eval()
        out: Array = self.logits(features.to(self.mean.device)).sigmoid().cpu().numpy()
        return out


# ---- labels and what is fitted


@dataclass(frozen=True)
class Labelled:
    """The frames of episodes, one after the other. features: [N, F]; label: [N] of `YES`, `NO`, `UNLABELLED`; episode: [N]."""

    features: Tensor
    label: Array
    episode: Array

    def of(self, episodes: Array) -> Labelled:
        """Those of some episodes."""
        rows = np.isin(self.episode, episodes)
        return Labelled(self.features[torch.from_numpy(rows)], self.label[rows], self.episode[rows])


def keys_of(episodes: Sequence[Episode], cfg: ClassifierConfig) -> dict[str, tuple[int, ...]]:
    """What to look at, with its shape. Raises RealrlError for a key that the recording does not have."""
    there = {key: tuple(values.shape[1:]) for key, values in episodes[0].obs.items()}
    keys = cfg.keys or tuple(key for key in there if key.startswith("images.")) or ("state",)
    for key in keys:
        if key not in there or key == "privileged":
            raise RealrlError(f"keys {key}: the recording has no such observation that a robot has, it has "
                              f"{', '.join(k for k in there if k != 'privileged')}")
    return {key: there[key] for key in keys}


def labelled(model: Classifier, episodes: Sequence[Episode], labels: Sequence[Array]) -> Labelled:
    """What followed every step of the episodes, with its label [T] each."""
    features = [model.features({key: e.obs[key][1:] for key in model.shapes}) for e in episodes]
    return Labelled(torch.cat(features), np.concatenate(labels), np.repeat(np.arange(len(episodes)), [len(e) for e in episodes]))


def split(label: Array, episode: Array, seed: int) -> list[Array]:
    """Episodes in three parts by `SHARES`, those with success and those without each by themselves. Raises RealrlError for too few."""
    rng = np.random.default_rng(derive(seed, "split"))
    solved = np.unique(episode[label == YES])
    parts: list[list[Array]] = [[], [], []]
    for some in (solved, np.setdiff1d(np.unique(episode), solved)):
        cuts = np.round(np.cumsum(SHARES)[:2] * len(some)).astype(int)
        for part, found in zip(parts, np.split(rng.permutation(some), cuts), strict=True):
            part.append(found)
    out: list[Array] = [np.sort(np.concatenate(part)) for part in parts]
    for name, chosen in zip(("to fit", "for the threshold", "for the audit"), out, strict=True):
        here = label[np.isin(episode, chosen)]
        if not (here == YES).any() or not (here == NO).any():
            raise RealrlError(f"the episodes {name} hold {int((here == YES).sum())} solved and {int((here == NO).sum())} unsolved frames: "
                              "record or label more episodes of both kinds (8 solved ones at least)")
    return out


def fit(episodes: Sequence[Episode], labels: Sequence[Array], cfg: ClassifierConfig) -> tuple[Classifier, Audit]:
    """A classifier, and what it is worth on episodes that had no part in it."""
    model = blank(episodes, cfg)
    data = labelled(model, episodes, labels)
    parts = split(data.label, data.episode, cfg.seed)
    fitted, chosen, kept = (data.of(part) for part in parts)
    model.fitted = frozenset(model.identity(episodes[int(i)]) for part in parts[:2] for i in part)
    learn(model, fitted)
    model.threshold = threshold(model.probability(chosen.features), chosen.label, cfg.false)
    return model, audit(model, kept)


def blank(episodes: Sequence[Episode], cfg: ClassifierConfig) -> Classifier:
    """A classifier of what such episodes show that has learned nothing."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    return Classifier(keys_of(episodes, cfg), cfg)


def learn(model: Classifier, fitted: Labelled) -> None:
    """Fit a classifier to labelled frames of both kinds, whose features lie where it does; then it stays as it is."""
    cfg = model.cfg
    model.mean.copy_(fitted.features.mean(0))
    model.std.copy_(fitted.features.std(0).clamp(min=1e-3))
    optimiser = torch.optim.AdamW(model.net.parameters(), lr=cfg.lr, weight_decay=cfg.decay, fused=True)
    sides = [torch.from_numpy(np.flatnonzero(fitted.label == which)) for which in (NO, YES)]
    target = torch.tensor([0.0, 1.0], device=fitted.features.device).repeat_interleave(cfg.batch // 2)
    model.train()
    for step in range(cfg.steps):
        random = torch.Generator().manual_seed(derive(cfg.seed, "batch", step))
        rows = torch.cat([side[torch.randint(len(side), (cfg.batch // 2,), generator=random)] for side in sides])
        torch.manual_seed(derive(cfg.seed, "dropout", step))
        loss = nn.functional.binary_cross_entropy_with_logits(model.logits(fitted.features[rows]), target)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    model.requires_grad_(False)


def threshold(probability: Array, label: Array, false: float) -> float:
    """The lowest, but at least a half, that takes no larger share than `false` of the unsolved frames for solved."""
    unsolved = np.sort(probability[label == NO])[::-1]
    allowed = int(false * len(unsolved))
    return max(0.5, float(np.nextafter(unsolved[allowed], np.float32(2))) if allowed < len(unsolved) else 0.5)


# ---- its audit


@dataclass(frozen=True)
class Share:
    """So many of so many, with the share's 95 % interval (Wilson 1927)."""

    count: int
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high); (0, 1) of nothing."""
        return wilson(self.count, self.of)


@dataclass(frozen=True)
class Audit:
    """What a classifier is worth on some episodes. false, missed: frames, unsolved ones taken for solved and solved ones that were not;
    alarms: episodes in which it would have ended the task too soon; unseen: solved ones in which it never would have; auc: area under
    the ROC; roc: (share of unsolved, share of solved frames taken for solved) over all thresholds."""

    threshold: float
    frames: int
    false: Share
    missed: Share
    alarms: Share
    unseen: Share
    auc: float
    roc: list[tuple[float, float]]


def audit(model: Classifier, data: Labelled) -> Audit:
    """Judge a classifier by labelled frames. Only solved episodes that show success for long enough can be missed."""
    p, label, most = model.probability(data.features), data.label, model.threshold
    no, yes = p[label == NO], p[label == YES]
    alarms = unseen = shown = 0
    episodes = np.unique(data.episode)
    for e in episodes:
        rows = data.episode == e
        fires, truth = run_of(p[rows] >= most, model.cfg.frames), run_of(label[rows] == YES, model.cfg.frames)
        first = int(np.argmax(label[rows] == YES)) if (label[rows] == YES).any() else len(truth)
        alarms += bool(fires[:first].any())
        shown += bool(truth.any())
        unseen += bool(truth.any() and not fires.any())
    levels = np.unique(np.concatenate([p[label != UNLABELLED], [0.0, np.inf]]))[::-1]
    levels = levels[np.unique(np.linspace(0, len(levels) - 1, 200).astype(int))]
    roc = [(float((no >= t).mean()) if len(no) else 0.0, float((yes >= t).mean()) if len(yes) else 0.0) for t in levels]
    order = np.searchsorted(np.sort(no), yes, "left") + np.searchsorted(np.sort(no), yes, "right")
    auc = float(order.sum() / (2 * len(no) * len(yes))) if len(no) and len(yes) else math.nan
    return Audit(most, model.cfg.frames, Share(int((no >= most).sum()), len(no)), Share(int((yes < most).sum()), len(yes)),
                 Share(alarms, len(episodes)), Share(unseen, shown), auc, roc)


def run_of(hits: Array, frames: int) -> Array:
    """Where so many in a row have been true: [T] bool."""
    sums = np.cumsum(np.concatenate([np.zeros(frames, int), hits]))
    runs: Array = sums[frames:] - sums[:-frames] == frames
    return runs


# ---- in a run


class Referee:
    """A classifier as a `types.RewardModel`: 1 and done once success was seen in so many frames in a row. Call `begin` at every reset.
    seen: how surely, in the newest frame; mark: of what it learned, another where it learned otherwise."""

    def __init__(self, model: Classifier, source: str) -> None:
        self.model, self._source = model, source
        about = repr((model.threshold, model.cfg.frames, list(model.shapes.items()))).encode()
        self.mark = hashlib.sha256(safetensors.torch.save(dict(model.state_dict())) + about).hexdigest()[:16]
        self.begin(0)

    def begin(self, seed: int) -> None:
        """An episode begins."""
        self._row = self._steps = 0
        self.seen = 0.0

    def __call__(self, obs: Obs, action: Array, next_obs: Obs) -> tuple[float, float]:
        """(reward, 1.0 where the task is done, else 0.0). Raises RealrlError where it fires as soon as it can."""
        model = self.model
        p = float(model.probability(model.features({key: next_obs[key][None] for key in model.shapes if key in next_obs}))[0])
        self._steps += 1
        self.seen, self._row = p, self._row + 1 if p >= model.threshold else 0
        done = self._row >= model.cfg.frames
        if done and self._steps == model.cfg.frames:
            raise RealrlError(f"{self._source}: the classifier saw success from the first step on ({p:.3f}): the robot stops. Reset the "
                              "scene if it is solved; else record some that begin so, label them unsolved (realrl reward label), fit again "
                              "and go on with --resume --reward NEW")
        return float(done), float(done)


# ---- on disk


def save(model: Classifier, found: Audit, folder: Path) -> None:
    """Into a folder: classifier.json, weights.safetensors."""
    write_bytes(folder / "weights.safetensors", safetensors.torch.save(dict(model.state_dict())))
    write_json(folder / "classifier.json", {"shapes": {k: list(v) for k, v in model.shapes.items()}, "config": config.to_dict(model.cfg),
                                            "threshold": model.threshold, "audit": told(found), "fitted": sorted(model.fitted)})


def told(found: Audit) -> dict[str, Any]:
    """An audit as plain values."""
    shares = {name: getattr(found, name) for name in ("false", "missed", "alarms", "unseen")}
    return {"threshold": found.threshold, "frames": found.frames, "auc": None if math.isnan(found.auc) else found.auc, "roc": found.roc,
            **{name: {"count": s.count, "of": s.of, "interval": s.interval} for name, s in shares.items()}}


def load(folder: str | Path) -> Classifier:
    """The classifier of a folder. Raises RealrlError where there is none, or it is damaged."""
    file = Path(folder, "classifier.json")
    try:
        about = read_json(file)
        model = Classifier(about["shapes"], config.from_dict(ClassifierConfig, about["config"], source=str(file)))
        model.load_state_dict(safetensors.torch.load(read_plain(Path(folder, "weights.safetensors"))))
        model.threshold, model.fitted = float(about["threshold"]), frozenset(map(str, about.get("fitted", ())))  # those of old had none
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, safetensors.SafetensorError) as error:
        raise RealrlError(f"{folder}: no success classifier that can be read ({' '.join(str(error).split())[:200]}): fit one with "
                          "`realrl reward fit`") from error
    model.requires_grad_(False)
    return model

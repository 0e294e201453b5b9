"""The book of a run: what its robots did, recorded before anyone learns from it, and read back in an order that leaves nothing to chance.

Episodes of a simulator are appended in groups, because they can be made again. A robot's (or any environment's that asks for it) are
taken down step by step by the crash-proof recorder: a kill costs at most the step under way. What plans carried (denoising chains) lies
in side files, `derived/chains/<label>/<number>.safetensors`, written before the episodes that they belong to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.compute as pc
import safetensors.numpy

from realrl.cell.mailbox import Mailbox, name
from realrl.data import side
from realrl.data.record.recorder import Recorder
from realrl.data.store import Store
from realrl.files import disk, read_plain, write_bytes
from realrl.terminal import console
from realrl.types import Array, Episode, Obs, RealrlError, Step, TaskSpec

GROUP = 20  # a simulator's episodes per append: a kill costs at most these, which are made again, identically
CODEC: Final = "ffv1"  # pictures to the bit: a resumed run sees again what it saw


class Book:
    """The data set of a run. group: episodes per append; live: whether robots are recorded step by step, as `is_live` says."""

    def __init__(self, folder: Path, task: str, spec: TaskSpec, *, group: int = GROUP, live: bool = False) -> None:
        self.dir, self.task, self.spec, self.group = folder, task, spec, group
        self._store = Store.open_or_create(folder, task=task, fps=round(1 / spec.dt), codec=CODEC)
        self.is_live, self._elsewhere = live, False
        self._recorder: Recorder | None = None

    @property
    def store(self) -> Store:
        """The data set. With the first look at it, what a killed recorder left is there, too."""
        self._open()
        return self._store

    def _open(self) -> None:
        """Only now: until somebody looks, another process may be recording. An actor that outlived its learner goes on doing so."""
        if self.is_live and not self._recorder and not self._elsewhere and not self._outlived():
            self._recorder = self._open_recorder()

    def _outlived(self) -> bool:
        """Whether an actor in another process still has the robot."""
        return any(box.alive and box.head["pid"] != os.getpid() for box in Mailbox.find(name(self.dir)))

    def close(self) -> None:
        """Finish what is being recorded; an episode under way is kept as far as it got."""
        if self._recorder:
            self._recorder.close()
        self._elsewhere = True  # a last look at it opens nothing

    @contextmanager
    def lent(self) -> Iterator[None]:
        """While the body runs, another process records."""
        self.close()
        self._recorder = None
        try:
            yield
        finally:
            self._store, self._elsewhere = Store.open(self.dir), False

    # -- writing --------------------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, label: str, chains: bool) -> Iterator[Callable[[Episode], None]]:
        """Records the episodes that the body hands over under a label, also those before an interruption. chains: with their `extra`."""
        self._open()
        waiting: list[Episode] = []

        def put(episode: Episode) -> None:
            episode.policy = label
            if self._recorder is None:
                waiting.append(episode)
            if len(waiting) >= self.group:
                self._append(label, waiting, chains)

        try:
            yield put
        finally:
            if self._recorder:
                self._recorder.flush()
                self._store = Store.open(self.dir)
            known = self.recorded(label) if waiting else {}
            self._append(label, [e for e in waiting if e.seed not in known], chains)  # an interruption may come just after an append

    def live(self, label: str, chains: bool) -> LiveRecording | None:
        """What takes episodes down step by step under a label; None where they are appended whole."""
        self._open()
        keep = partial(self._write_chains, label) if chains else None
        return LiveRecording(self._recorder, label, self.task, keep) if self._recorder else None

    def _append(self, label: str, episodes: list[Episode], chains: bool) -> None:
        """Record and forget. One that the data set refuses is set aside, the others are kept; then RealrlError."""
        if not episodes:
            return
        if chains:
            self._write_chains(label, episodes)
        refused = ""
        try:
            self.store.append(episodes)
        except RealrlError as first:
            if disk(first):  # nothing is wrong with the episodes
                raise
            for episode in episodes:
                try:
                    self.store.append([episode])
                except RealrlError as error:
                    refused = f"{error}; the episode is set aside as {self._set_aside(label, episode)}, the others are recorded"
        episodes.clear()  # only now: an interruption above hands them over again
        if refused:
            raise RealrlError(refused)

    def _set_aside(self, label: str, episode: Episode) -> Path:
        """An episode that is no part of the data set, as bare arrays: nothing that a robot did is lost."""
        path = self.dir.parent / "set-aside" / f"{label}-{episode.seed}-{time.time_ns()}.safetensors"
        arrays = {**{f"observation.{k}": v for k, v in episode.obs.items()}, "action": episode.action, "proposed": episode.proposed,
                  "source": episode.source, "reward": episode.reward, "success": episode.success, "time": episode.time}
        write_bytes(path, safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
        return path

    def _open_recorder(self) -> Recorder:
        """The recorder of one robot; opening it brings what a killed process left into the data set."""
        size = sum(int(np.prod(s)) for k, s in self.spec.senses.items() if not k.startswith(("images.", "depth.")))
        room = (size + self.spec.obs_dim + self.spec.privileged + 2 * self.spec.action_dim) * 8 // 1024 + 4
        recorder = Recorder(self.dir, task=self.task, fps=round(1 / self.spec.dt), cameras=self._films("images."),
                            depth=self._films("depth."), codec=CODEC, min_frames=1, record_kb=max(64, room))
        for note in recorder.notes:
            console(stderr=True).print(note)
        self._store = Store.open(self.dir)
        return recorder

    def _films(self, kind: str) -> dict[str, tuple[int, int]]:
        """Camera -> (height, width) of one kind of picture."""
        return {k.removeprefix(kind): (s[0], s[1]) for k, s in self.spec.senses.items() if k.startswith(kind)}

    # -- reading --------------------------------------------------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """Control steps recorded."""
        return self.store.frames

    def recorded(self, label: str) -> dict[int, int]:
        """seed -> index of the episodes recorded under a label."""
        if not len(self.store):
            return {}
        rows = self.store.rows.select(["policy", "seed", "episode_index"]).filter(pc.field("policy") == label)
        return {r["seed"]: r["episode_index"] for r in rows.to_pylist() if r["seed"] is not None}

    def read(self, label: str, seeds: Sequence[int], chains: bool) -> dict[int, Episode]:
        """seed -> episode recorded under a label. Raises RealrlError where chains are asked for and were not kept."""
        rows = self.recorded(label)
        found = dict(zip(seeds, self.store.read([rows[s] for s in seeds]), strict=True)) if seeds else {}
        kept = self._read_chains(label) if chains and seeds else {}
        for seed, episode in found.items():
            if chains and seed not in kept:
                raise RealrlError(f"{self._chains(label)}: what the plans of start {seed} carried is not there; restore the folder, or "
                                  "begin the run anew in another folder")
            episode.extra = kept.get(seed, {})
        return found

    def labelled(self, *labels: str, anew: bool = False) -> list[Episode]:
        """All that was recorded under these labels, in the order in which it was. anew: also by other processes since."""
        if anew:
            self._store = Store.open(self.dir)
        if not len(self.store):
            return []
        rows = self.store.rows.select(["policy", "episode_index"]).to_pylist()
        return self.store.read([r["episode_index"] for r in rows if r["policy"] in labels])

    def recent(self, count: int) -> list[Episode]:
        """The newest recorded episodes, oldest first, [] where there are none; within a label by seed: arrival is left to chance."""
        if not len(self.store):
            return []
        rows = self.store.rows.select(["policy", "seed", "episode_index"]).to_pylist()
        age = {label: i for i, label in enumerate(dict.fromkeys(r["policy"] for r in rows))}
        rows.sort(key=lambda r: (age[r["policy"]], r["seed"]))
        return self.store.read([r["episode_index"] for r in rows[-count:]])

    def steps_until(self, label: str, seeds: Sequence[int]) -> int:
        """Control steps in the recorded episodes up to the last of these: what a resumed run repeats is not counted twice."""
        rows = self.recorded(label)
        index = max((rows[s] for s in seeds if s in rows), default=-1)
        return int(pc.sum(self.store.rows.column("length")[: index + 1]).as_py()) if index >= 0 else 0

    def annotate(self, name: str, labels: Sequence[str], values: Callable[[list[Episode]], list[Array]]) -> None:
        """A derived column of the data set, once: [T] for each episode recorded under these labels, NaN elsewhere; for `realrl view`."""
        rows = sorted(row for label in labels for row in self.recorded(label).values())
        if not rows or name in side.names(self.store.dir):
            return
        ends = np.cumsum(self.store.rows.column("length").to_numpy())
        column = np.full(int(ends[-1]), np.nan, np.float32)
        for index, value in zip(rows, values(self.store.read(rows)), strict=True):
            column[ends[index] - len(value):ends[index]] = value
        side.write(self.store.dir, name, {name: column})

    # -- chains ---------------------------------------------------------------------------------------------------------------

    def _chains(self, label: str) -> Path:
        return self.dir / side.FOLDER / "chains" / label

    def _write_chains(self, label: str, episodes: Sequence[Episode]) -> None:
        """One file more, for these episodes; a start that was run again has its newest last."""
        folder = self._chains(label)
        number = max((int(p.stem) for p in folder.glob("*.safetensors") if p.stem.isdecimal()), default=0) + 1
        tensors = {f"{e.seed}/{name}": np.ascontiguousarray(values) for e in episodes for name, values in e.extra.items()}
        tensors["starts"] = np.array([e.seed for e in episodes], np.int64)  # also those whose plans carried nothing
        write_bytes(folder / f"{number:06d}.safetensors", safetensors.numpy.save(tensors))

    def _read_chains(self, label: str) -> dict[int, dict[str, Array]]:
        """seed -> extra of the episodes under a label. Raises RealrlError on a damaged file."""
        found: dict[int, dict[str, Array]] = {}
        for path in sorted(self._chains(label).glob("*.safetensors")):
            try:
                tensors: dict[str, Array] = safetensors.numpy.load(read_plain(path))
                found |= {int(seed): {} for seed in tensors.pop("starts")}
                for key, values in tensors.items():
                    seed, _, name = key.partition("/")
                    found[int(seed)][name] = values
            except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
                raise RealrlError(f"{path} is damaged ({error}); restore it from a copy, or begin the run anew elsewhere") from error
        return found


class LiveRecording:
    """One robot's episodes, step by step under a label, see `realrl.cell.rollout.Recording`."""

    def __init__(self, recorder: Recorder, label: str, task: str, keep: Callable[[list[Episode]], None] | None) -> None:
        self._recorder, self._label, self._task, self._keep = recorder, label, task, keep

    def begin(self, seed: int) -> None:
        """An episode begins."""
        self._recorder.start_episode(seed=seed, task=self._task, policy=self._label)

    def step(self, step: Step) -> None:
        """One step."""
        self._recorder.add(step)

    def cut(self, after: Obs) -> None:
        """The episode under way ends here, as if by a clock. after: what followed its last step."""
        self._recorder.finish(after, terminated=False, truncated=True)

    def end(self, episode: Episode) -> None:
        """The chains first: whoever finds the episode finds them, too."""
        if self._keep:
            self._keep([episode])
        last = {key: values[-1] for key, values in episode.obs.items()}
        self._recorder.finish(last, terminated=episode.terminated, truncated=episode.truncated)

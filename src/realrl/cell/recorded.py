"""A cell without a robot: somebody's recordings are the task (`realrl.types.Cell`).

Episodes that were imitated are the demonstrations, the others, failures above all, are handed out as what a first round of rollouts found,
so that offline reinforcement learning works in hindsight. Nothing can be tried: a stage's product is compared with what was really done on
episodes that were kept back (`foresight`), and what that cannot say is said.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from realrl.cell.account import Account
from realrl.cell.curriculum import Practice
from realrl.cell.foresight import Examiner
from realrl.cell.hindsight import hindsight
from realrl.cell.judge import latency
from realrl.cell.listening import heard
from realrl.cell.products import large_products
from realrl.cell.recordings import Material
from realrl.data.views import ChunkView
from realrl.files import write_bytes
from realrl.memory import keep_freed_memory
from realrl.policies.diffusion import DiffusionPolicy
from realrl.policies.flow import FlowPolicy
from realrl.policies.folder import Storable, save_policy
from realrl.robots.embodiment import Embodiment
from realrl.run import Run
from realrl.scene import Scene, device
from realrl.types import Array, Episode, Policy, RealrlError, Stream

FILMED = 3  # held-out episodes whose predictions are kept for the report
BASELINES = ("keep still", "mean action", "ridge")
READS = "more_error_told_another_pct_of_range"


class RecordedCell:
    """Reads, compares and reports for one run. Use it as a context manager."""

    simulated = False

    def __init__(self, run: Run, scene: Scene, material: Material, others: Mapping[str, Material] | None = None) -> None:
        """material: of the scene's task; others: task -> what other robots recorded, see `at`."""
        if "online" in getattr(scene, "stages", ()):  # before anything long
            raise _no_robot(scene)
        if scene.recall or scene.late:
            raise RealrlError(f"{scene.data}: recordings stand as they were made: leave --recall and --late out, or name a --task, an "
                              "--env or a --robot that they are demonstrations for")
        self.run, self.scene, self.material, self.spec = run, scene, material, material.spec
        self._inside = ExitStack()
        every = {self.spec.id: material, **(others or {})}
        steps = sum(_steps(m) for m in every.values())
        self.account = Account(run, self.spec.id, scene.seed, lambda: steps)
        self.account.summary |= {"recorded": _about(material)}
        self._at = {task: self._of(task, m) for task, m in (others or {}).items()}
        if self._at:
            self.account.summary["recorded"]["beside"] = {task: _about(cell.material) for task, cell in self._at.items()}

    def __enter__(self) -> RecordedCell:
        keep_freed_memory()
        self._inside.enter_context(large_products(device(self.scene.device)))
        return self

    def __exit__(self, *_: object) -> None:
        self._inside.close()
        self.account.save()

    @property
    def robot(self) -> Embodiment:
        """Whose numbers a policy speaks."""
        return self.material.robot

    @property
    def summary(self) -> dict[str, Any]:
        """What will stand in summary.json."""
        return self.account.summary

    def _of(self, task: str, material: Material) -> RecordedCell:
        """Another robot's cell, of the same run and account."""
        other = copy.copy(self)
        other.scene, other.material, other.spec, other._at = replace(self.scene, task=task), material, material.spec, {}
        return other

    def at(self, task: str) -> RecordedCell:
        """Recordings are one task, and one of every other robot that recorded. Raises RealrlError for another."""
        if task in self._at:
            return self._at[task]
        if task != self.scene.task:
            raise RealrlError(f"{self.scene.data}: recordings are one task here, {task} is none of them: name simulated tasks with --tasks")
        return self

    def seeds(self, stage: int, count: int, first: int = 0) -> list[int]:
        """Nobody starts anything here; numbers all the same."""
        return list(range(first, first + count))

    def demonstrations(self, failures: bool = False, count: int | None = None) -> list[Episode]:
        """What to imitate, without what is kept to compare with."""
        return [*self.material.demos, *(e for e in self.material.rest if failures and e.failed)][:count]

    def practise(self, label: str, policy: Policy, seeds: Sequence[int], **_: Any) -> list[Episode]:
        """What was recorded beside the demonstrations counts as the first rollouts; more there will not be.

        Raises RealrlError for practice that reinforcement learning cannot do without.
        """
        if not label.startswith("rollout"):
            raise _no_robot(self.scene)
        return self.material.rest if label == "rollout-1" else []

    def take_turns(self, label: str, policies: Mapping[str, Policy], seeds: Sequence[int], **_: Any) -> dict[str, list[Episode]]:
        """Nobody acts here. Raises RealrlError."""
        raise _no_robot(self.scene)

    def stream(self, label: str, policy: Policy, **_: Any) -> AbstractContextManager[Stream]:
        """Nobody acts here. Raises RealrlError."""
        raise RealrlError(f"{self.scene.data}: recordings have no robot that could act while it learns: name a --task or an --env")

    def recent(self, count: int) -> list[Episode]:
        """The newest episodes of all."""
        return [*self.material.demos, *self.material.rest][-count:]

    def curriculum(self, share: float) -> Practice:
        """Nothing comes back here."""
        return Practice(share, self.scene.seed)

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Adds the seconds its body takes to a stage's account."""
        return self.account.timed(name)

    def finish_stage(self, name: str, policy: Policy, n: int, *, version: int = 0, **_: Any) -> None:
        """Compare a stage's product with what was really done, unless this version of it was."""
        if self.account.finished(name, version):
            return
        decisions = partial(ChunkView, chunk=policy.chunk, n_obs=policy.n_obs, gamma=1.0)
        seen = [replace(e, obs={"state": e.obs["state"]}) for e in self.material.demos]  # nobody but the policy looks at pictures
        examiner = Examiner(self.material.robot, decisions(seen), decisions(self.material.held_out))
        one_step = getattr(policy, "head", "") == "one-step"
        reading: dict[str, Any] = {}
        if isinstance(policy, FlowPolicy):
            said, reading = heard(examiner, [e.task for e in self.material.held_out], policy)
        elif one_step:
            said = {"one-step": examiner.ask(policy, True)}
        else:
            said = {"greedy": examiner.ask(policy, True), "exploring": examiner.ask(policy, False)}
        found = examiner.judge(said)
        self._keep(name, examiner, said)
        told = found.to_dict() | reading
        if isinstance(policy, DiffusionPolicy):
            told["denoising_loss"] = examiner.denoising_loss(policy)
        if isinstance(policy, DiffusionPolicy | FlowPolicy):
            told["followed"] = [] if policy.reference is None else [float(gain) for gain in policy.reference.gain]
        best = next(iter(said))
        told["loses_to"] = [who for who in BASELINES if found.share(best) > found.share(who)]
        looked_back = hindsight(self.run, name, [*self.material.demos, *self.material.rest], getattr(self.scene, "gamma", 1.0))
        self.account.enter(name, version, {"name": name, "foresight": told, "latency_ms": latency(policy, self.spec),
                                           **({} if looked_back is None else {"hindsight": looked_back})})
        if self.spec.id != self.summary["task"]:
            return  # the headline is of the first robot
        base = min(BASELINES, key=found.share)
        heading = self.summary.get("headline", {}) if one_step else {}
        self.summary["headline"] = {
            "held_out_error_pct_of_range": 100 * found.share(best), "best_baseline_error_pct_of_range": 100 * found.share(base),
            "held_out_decisions": found.decisions, **{key: x for key, x in heading.items() if key == READS},
            **({READS: 100 * reading["reading"]["more"]} if reading else {})}
        self.summary["loses_to"] = told["loses_to"]

    def _keep(self, name: str, examiner: Examiner, said: dict[str, Array]) -> None:
        """What the report draws: predicted and true chunks of the first held-out episodes, and where they begin."""
        episode, start = (getattr(examiner.unseen, what)[examiner.rows].cpu().numpy() for what in ("episode", "start"))
        rows = episode < FILMED
        path = self.run.dir / "foresight" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        arrays = {"true": examiner.truth, "valid": examiner.valid, "episode": episode, "start": start, **said}
        held = self.material.held_out[0]
        if camera := next((key for key in held.obs if key.startswith("images.")), None):  # a film strip to read the curves by
            arrays["film"] = held.obs[camera][np.linspace(0, len(held), 8).astype(int)]
        out = io.BytesIO()
        np.savez_compressed(out, **{key: x if key == "film" else x[rows] for key, x in arrays.items()})
        write_bytes(path, out.getvalue())

    def judge_demonstrator(self, n: int) -> None:
        """Nobody is there to be judged."""

    def keep(self, policy: Storable, name: str = "policy") -> None:
        """Write the run's product into its folder `policy`."""
        save_policy(policy, self.run.dir / name, task=self.scene.task, sight=self.scene.sight, robot=self.robot)

    def tell(self, stage: str, line: str) -> None:
        """Say what was decided in a stage; it stays in the summary."""
        self.account.tell(stage, line)

    def audit(self, policy: DiffusionPolicy, rounds: int, n: int) -> None:
        """No trial is possible, so what estimates are worth stays unknown."""

    def annotate(self, name: str, label: str | Sequence[str], values: Callable[[list[Episode]], list[Array]]) -> None:
        """The recordings are somebody else's and stay as they are."""


def _steps(material: Material) -> int:
    return sum(len(e) for e in (*material.demos, *material.held_out, *material.rest))


def _about(material: Material) -> dict[str, Any]:
    """What the summary says of recordings."""
    robot = material.robot
    return {"demonstrations": len(material.demos), "held_out": len(material.held_out), "others": len(material.rest),
            "steps": _steps(material), "fps": robot.fps, "cameras": sorted(robot.cameras), "control": robot.control,
            "notes": material.notes}


def _no_robot(scene: Scene) -> RealrlError:
    return RealrlError(f"{scene.data}: recordings have no robot to practise on: leave online out of --stages, or name a --task or an --env")

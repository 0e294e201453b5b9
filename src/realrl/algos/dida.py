"""DIDA (arXiv 2205.05569): a policy that acts on what is so now teaches one that sees it late.

The teacher, of a lock-step simulation, is frozen. On the robot a reading that was taken at step t comes `recall` steps later, so that then,
in hindsight, the teacher can say what it would have done at t. The student is taught that answer for what there was to see at t: a reading
`recall` steps old, and the actions since. First the teacher itself acts, as blindly as it must; then the student does, so that it learns
where it gets to itself (DAgger, arXiv 1011.0686). Nobody is asked, nothing is rewarded, and no simulator is needed.

docs/methods/dida.md tells departures, and what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from realrl.config import OutOfBounds, check
from realrl.files import derive
from realrl.generative.diffusion import DiffusionConfig
from realrl.learn.imitation import Imitation, ImitationConfig, imitate
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import load_policy, refuse_recorded
from realrl.policies.gaussian import GaussianPolicy
from realrl.scene import Scene, device
from realrl.types import Array, Batch, Cell, Episode, Obs, Plan, RealrlError, State, TaskSpec

Teacher: TypeAlias = DiffusionPolicy | GaussianPolicy
AT_ONCE = 2048
"""Decisions that the teacher is asked for in one call."""


@dataclass(frozen=True)
class DIDAConfig(Scene):
    """Imitation of an undelayed policy where readings are late."""

    task: str = "arm/panda-reach"
    """Environment, see `realrl tasks`."""
    init: str = ""
    """Folder of the teacher: a diffusion or Gaussian policy of the same task without lateness, which sees the state alone."""
    recall: int = 5
    """Control steps after which a reading shows what was so, and so many of the last actions stand beside the state."""
    rounds: int = 3
    """Rounds of episodes and imitation; in the first the teacher acts."""
    episodes: int = 40
    """Episodes a round."""
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(diffusion=DiffusionConfig(sigma_max=0.8)))
    """The student; its plans are as long as the teacher's."""
    imitation: ImitationConfig = field(default_factory=lambda: ImitationConfig(steps=1000))
    """The fit to all that was collected, every round anew from the weights that there are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, rounds="[1, 1000]", episodes="[1, 1e5]")
        if not self.recall:
            raise OutOfBounds(DIDAConfig, "recall", "is 0: where nothing is late there is nothing to teach, evaluate the teacher itself")


class Blind:
    """The teacher on the robot, which takes a late reading for what is so now; see `types.Policy`."""

    def __init__(self, teacher: Teacher) -> None:
        self._inner, self.name, self.chunk, self.n_obs = teacher, f"{teacher.name}, blind", teacher.chunk, teacher.n_obs

    def start(self, batch: int) -> State:
        """As the teacher."""
        return self._inner.start(batch)

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """Plans from the readings alone: obs["state"] [B, H, D + recall * A]."""
        return self._inner.act({"state": obs["state"][..., :self._inner.obs_dim]}, state, greedy=greedy, rng=rng)


class Lessons:
    """What was seen late, and what the teacher says of it in hindsight, see `learn.imitation.Decisions`.

    states: [N, H, D + recall * A]; plans: [N, K, A]; episode: [N]. A decision whose reading never came, because the episode ended first,
    is none. Raises RealrlError where that leaves nothing.
    """

    def __init__(self, teacher: Teacher, episodes: Sequence[Episode], recall: int, n_obs: int, *, seed: int) -> None:
        states, fresh, which = [], [], []
        for number, episode in enumerate(episodes):
            seen = episode.obs["state"]
            steps = np.arange(len(seen) - recall) if len(seen) > recall else np.zeros(0, int)
            states.append(seen[_history(steps, n_obs)])
            fresh.append(seen[_history(steps, teacher.n_obs) + recall, :teacher.obs_dim])
            which.append(np.full(len(steps), number))
        place = teacher.device
        if not len(late := np.concatenate(states)):
            raise RealrlError(f"all {len(episodes)} episodes are shorter than the {recall} steps that readings are late: nothing of "
                              "them was ever seen as it was; lower --recall, or give longer episodes")
        self.states, self.plans = torch.as_tensor(late, device=place), _asked(teacher, np.concatenate(fresh), seed)
        self.episode = torch.as_tensor(np.concatenate(which), device=place)

    def __len__(self) -> int:
        return len(self.plans)

    def batch(self, index: Tensor) -> Batch:
        """The lessons at `index` [B]: nothing is rewarded, and what follows is not asked for."""
        plans, seen = self.plans[index], {"state": self.states[index]}
        nothing, valid = plans.new_zeros(len(plans)), plans.new_ones(plans.shape[:2], dtype=torch.bool)
        return Batch(obs=seen, action=plans, reward=nothing, discount=nothing, next_obs=seen, valid=valid, source=valid.byte())


def _history(steps: Array, length: int) -> Array:
    """[N, H] the last `length` steps up to each, an episode's first one repeated."""
    rows: Array = np.maximum(steps[:, None] + np.arange(1 - length, 1), 0)
    return rows


def _asked(teacher: Teacher, fresh: Array, seed: int) -> Tensor:
    """What the teacher would have done [N, K, A] where it had seen fresh [N, H, D] at once."""
    rng = np.random.default_rng(seed)
    found = [teacher.act({"state": part}, teacher.start(len(part)), greedy=True, rng=[rng] * len(part))[0].action[:, :teacher.chunk]
             for part in np.split(fresh, range(AT_ONCE, len(fresh), AT_ONCE))]
    return torch.as_tensor(np.concatenate(found), device=teacher.device)


def train(cfg: DIDAConfig, cell: Cell) -> dict[str, Any]:
    """Rounds of episodes and lessons; leaves the student in the run's folder `policy`, judges it, and returns the summary. Continues an
    interrupted run to the same numbers. Raises RealrlError where the teacher does not fit."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    spec = cell.spec
    teacher = teacher_of(cfg, spec)
    shaped = replace(cfg.policy, chunk=teacher.chunk)
    student = DiffusionPolicy(shaped, spec.obs_dim, spec.action_dim, name="dida").to(teacher.device).eval()
    acting: Any = Blind(teacher)
    episodes: list[Episode] = []
    for m in range(cfg.rounds):
        name, noise = f"dida-{m + 1}", derive(cfg.seed, "dida", m)
        with cell.timed("dida"):
            episodes += cell.practise(name, acting, cell.seeds(5, cfg.episodes, m * cfg.episodes), noise_seed=noise % 2**31)
            if cell.run.load(name, student=student) is None:
                teach(cfg, cell, student, Lessons(teacher, episodes, cfg.recall, student.n_obs, seed=noise), m, name)
                cell.run.rewind("dida", m)
                cell.run.log(m + 1, told(episodes[-cfg.episodes:]), "dida")
                cell.run.save(name, 1, student=student)
        acting = student.with_head("ddim")
    cell.keep(student)
    cell.finish_stage("dida", student.with_head("ddim"), cfg.eval_episodes)
    return cell.summary


def teach(cfg: DIDAConfig, cell: Cell, student: DiffusionPolicy, lessons: Lessons, m: int, name: str) -> None:
    """One round's fit. What its inputs are measured by is what the first round saw."""
    if m == 0:
        student.fit_senses({"state": lessons.states[:, -1]})
    imitate(cell.run, Imitation(student, lessons, cfg.imitation, seed=derive(cfg.seed, "imitation", m)), name, "imitating the teacher")


def told(episodes: Sequence[Episode]) -> Mapping[str, float]:
    """A line of the curves: how a round's episodes went."""
    return {"success_rate": float(np.mean([e.succeeded for e in episodes])), "episode_steps": float(np.mean([len(e) for e in episodes]))}


def teacher_of(cfg: DIDAConfig, spec: TaskSpec) -> Teacher:
    """The policy that knows the task without lateness. Raises RealrlError where there is none, or it is another task's."""
    if not cfg.init:
        raise RealrlError("nobody to learn from: name the policy of a lock-step simulation with --init FOLDER")
    teacher, task = load_policy(cfg.init, device(cfg.device))
    if not isinstance(teacher, DiffusionPolicy | GaussianPolicy) or teacher.KIND == "residual" or teacher.senses or spec.senses:
        raise RealrlError(f"{cfg.init}: a {teacher.KIND} policy that sees {', '.join(teacher.senses) or 'the state alone'}; a teacher is a "
                          "diffusion or Gaussian policy from the state, on a task without eyes: name another")
    refuse_recorded(cfg.init, spec)
    mine, its = (teacher.obs_dim, teacher.action_dim), (spec.obs_dim - cfg.recall * spec.action_dim, spec.action_dim)
    if mine != its:
        raise RealrlError(f"{cfg.init} was trained on {task}, with {mine[0]} observation and {mine[1]} action numbers, but {spec.id} has "
                          f"{its[0]} and {its[1]}, its last actions aside: give one that was trained without --recall, on this task")
    return teacher

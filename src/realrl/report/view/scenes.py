"""Episodes of a simulated task with what its cameras see: rolled now, or recorded before and played again.

Episodes are exactly reproducible from their seed and their actions. So a policy acts in the environment it was made for, and what it
does not see itself, a second run of the same actions looks at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from realrl import config, envs
from realrl.cell.collect import Continuing
from realrl.cell.playback import LONG, TOLERANCE, Restores
from realrl.cell.rollout import rollout
from realrl.envs.base import RobotEnv
from realrl.policies.folder import acting, check_fit, for_task, load_policy, read_policy_json, read_recall
from realrl.report.view.clips import Clip, Each, EpisodeSet
from realrl.robots.guard import box_guard
from realrl.scene import SightConfig, SightKind
from realrl.types import Array, Episode, Obs, Plan, Policy, RealrlError, Source, State

SIDE = 240  # pixels of a picture's side
POINTS = 1024


class _Random:
    """Actions drawn evenly from [-1, 1], for a task that nobody has shown how to do. See `types.Policy`."""

    name, chunk, n_obs = "random", 1, 1

    def __init__(self, action_dim: int) -> None:
        self._dim = action_dim

    def start(self, batch: int) -> State:
        return {}

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        return Plan(np.stack([g.uniform(-1, 1, (1, self._dim)) for g in rng]).astype(np.float32)), state


def rolled(task: str, *, policy: Path | None = None, seeds: Sequence[int] = (0,), sights: Sequence[str] = ("rgb",)) -> EpisodeSet:
    """Episodes of a task from the given starts. policy: folder of one; without it the scripted expert acts, or chance.

    sights: what to look with beside what the policy sees. Raises RealrlError on an unknown task or sight, and when the policy was
    trained on another shape.
    """
    for sight in sights:
        if sight not in get_args(SightKind):
            raise RealrlError(f"no sight {sight!r}: it is one of {', '.join(get_args(SightKind))}")
    actor, own, who = _actor(task, policy)
    kicker = f"{task} · {actor.name if policy is None else policy}"

    def clips() -> Iterator[Clip]:
        env = envs.make(task, sight=own)
        env.lag(0 if policy is None else read_recall(policy))
        try:
            for episode in rollout([env], actor, [box_guard(env)], seeds, greedy=True, task=task, source=who):
                (seen,), (told,), notes = pictured([episode], task, sights)
                yield Clip(episode.seed or 0, seen, env.task.dt, told, notes=notes)
        finally:
            env.close()

    return EpisodeSet("episodes", task, kicker, list(seeds), clips)


def _actor(task: str, folder: Path | None) -> tuple[Policy, SightConfig | None, Source]:
    """(who acts, what it sees, what its actions count as)."""
    if folder is None:
        env = envs.make(task)
        env.close()
        try:
            return envs.expert(task), None, Source.SCRIPT
        except RealrlError:  # no expert, or one whose weights are not here
            return _Random(env.task.action_dim), None, Source.SCRIPT
    about: dict[str, Any] = read_policy_json(folder)
    sight = config.from_dict(SightConfig, about["sight"], source=str(folder / "policy.json")) if about.get("sight") else None
    policy, trained_on = load_policy(folder)
    env = envs.make(task, sight=sight)
    env.lag(read_recall(folder))
    env.close()
    policy = for_task(policy, task)
    check_fit(policy, env.task, folder, trained_on)
    return acting(policy, folder, env.task)[0], sight, Source.POLICY


# ---- the same again, with eyes


def pictured(episodes: Sequence[Episode], task: str, sights: Sequence[str] = ("rgb",), each: Each[Any] = lambda items, what, total: items
             ) -> tuple[list[Episode], list[dict[str, Array]], list[str]]:
    """(the episodes with what the task's cameras see added to their observations; the numbers of every step's `info` in each, [T] or
    [T, k]; what a reader must know).

    All get the same observations, so that they fit one dataset: where a sight cannot be had (no OpenGL, no eyes in this suite, a
    start that cannot be repeated), it is left out of all, and a note says why. each: wraps what takes long in a progress bar.
    """
    out, notes = list(episodes), []
    told: list[dict[str, Array]] = [{} for _ in out]
    for kind in sights:
        if kind == "state" or not out or any(_shows(key, kind) for key in out[0].obs):
            continue
        try:
            out, told, drift = _looked_at(out, task, kind, each)
        except RealrlError as error:
            notes.append(f"No {kind} of these episodes: {error}")
            continue
        if drift > TOLERANCE:
            notes.append(f"The {kind} was made by playing the actions again; its state drifts up to {drift:.3g} from the recorded one.")
    return out, told, notes


def _shows(key: str, kind: str) -> bool:
    return key.startswith({"rgb": "images.", "depth": "depth.", "pointcloud": "pointcloud"}[kind])


def _looked_at(episodes: Sequence[Episode], task: str, kind: str, each: Each[Any]) -> tuple[list[Episode], list[dict[str, Array]], float]:
    """(episodes with one more kind of observation, what `info` told, the largest difference between recorded and replayed state)."""
    sight = SightConfig(kind=kind, height=SIDE, width=SIDE, points=POINTS, colour=kind == "pointcloud")  # type: ignore[arg-type]
    env = _rendering(task, sight)
    out, told, drift = [], [], 0.0
    try:
        for episode in each(episodes, f"looking again: {kind}", len(episodes)):
            seen, numbers = again(env, episode)
            told.append(numbers)
            recorded, replayed = (obs.get("privileged", obs["state"]) for obs in (episode.obs, seen))
            if recorded.shape == replayed.shape:
                drift = max(drift, float(np.abs(recorded.astype(np.float64) - replayed).max()))
            out.append(replace(episode, obs={**episode.obs, **{k: v for k, v in seen.items() if _shows(k, kind)}}))
    finally:
        env.close()
    return out, told, drift


def _rendering(task: str, sight: SightConfig) -> RobotEnv:
    """The task's environment with eyes; it ends neither at success nor by a clock, so that any recording fits."""
    try:
        return envs.make(task, reward="dense", horizon=LONG, sight=sight)
    except RealrlError:
        if not sight.colour:
            raise
        return envs.make(task, reward="dense", horizon=LONG, sight=replace(sight, colour=False))  # some clouds have none


def again(env: RobotEnv, episode: Episode) -> tuple[dict[str, Array], dict[str, Array]]:
    """The observations of an episode's actions played again, each [T+1, ...], and the numbers in `info` beside success, [T] or [T, k]."""
    told: list[dict[str, Array]] = []
    if episode.seed is not None and not isinstance(env, Continuing):
        frames = [env.reset(seed=episode.seed)[0]]
    elif isinstance(env, Restores):
        frames = [env.restore(episode)]
    else:
        raise RealrlError(f"{env.task.id}: the episode names no seed, so it cannot be played again")
    for t, action in enumerate(episode.action):
        obs, _, terminated, truncated, info = env.step(action)
        frames.append(obs)
        told.append({k: x for k, v in info.items() if k != "success" and (x := np.asarray(v)).ndim < 2 and x.dtype.kind in "fiub"})
        if (terminated or truncated) and t + 1 < len(episode):
            raise RealrlError(f"{env.task.id}: played again, it ends at step {t + 1} of {len(episode)}; it was recorded on another task")
    numbers = {k: np.stack([f[k] for f in told]) for k in (told[0] if told else ()) if all(k in f for f in told)}
    return {k: np.stack([f[k] for f in frames]) for k in frames[0]}, numbers

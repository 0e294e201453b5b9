"""DPPO's own fine-tuning agent for benchmarks/peers.py: `PYTHON benchmarks/lib/dppo_peer.py CODE SETTINGS TASK STEPS THREADS`.

CODE: a checkout of the public repository; SETTINGS: one of its files below cfg/. Its agent, model, vector environment and multi-step
wrapper run as they are. What is replaced: the simulator in a vector environment is one of this project's tasks, the initial policy is
untrained instead of downloaded, an iteration has STEPS environment steps and begins with fresh episodes, evaluations every tenth
iteration and checkpoints are left out. A unit of work is one iteration.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gym
import numpy as np
import torch
from turns import Stopwatch, pin, serve

from realrl import envs


class Bare(gym.Env):
    """One of our tasks as their wrappers expect an environment."""

    def __init__(self, task: str) -> None:
        self.inner, self.next = envs.make(task), 0
        spec = self.inner.task
        self.observation_space = gym.spaces.Dict({"state": gym.spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)})
        self.action_space = gym.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        self.metadata = {}

    def seed(self, seed: int | None = None) -> None:
        """Where its episodes' seeds begin."""
        self.next = 10_000 * (seed or 0)

    def reset(self, **_: Any) -> Any:
        """The next episode."""
        self.next += 1
        return self.inner.reset(seed=self.next)[0]

    def step(self, action: Any) -> Any:
        """One control step; that its clock ran out is the wrapper's to say."""
        obs, reward, terminated, _, info = self.inner.step(action)
        return obs, reward, terminated, info


def settings(code: Path, name: str, task: str, steps: int, logs: str) -> Any:
    """Their settings, with what this task and this machine ask for."""
    from omegaconf import OmegaConf
    OmegaConf.register_new_resolver("eval", eval)
    cfg, spec = OmegaConf.load(code / "cfg" / name), envs.make(task).task
    absent = dict.fromkeys(("wandb", "base_policy_path", "normalization_path", "robomimic_env_cfg_path"))
    own = {"obs_dim": spec.obs_dim, "action_dim": spec.action_dim, "device": "cpu", "logdir": logs, "env_name": task,
           "env": {"max_episode_steps": spec.horizon, "reset_at_iteration": True},
           "train": {"n_steps": max(round(steps / (cfg.env.n_envs * cfg.act_steps)), 1), "force_train": True}}
    return OmegaConf.merge(cfg, absent, own)


def make_agent(cfg: Any, task: str) -> Any:
    """Their agent around our task."""
    sys.modules.setdefault("wandb", types.ModuleType("wandb"))  # imported by it, and not used
    from agent.finetune import train_agent
    from agent.finetune.train_ppo_diffusion_agent import TrainPPODiffusionAgent
    from env.gym_utils.async_vector_env import AsyncVectorEnv
    from env.gym_utils.wrapper.multi_step import MultiStep

    def make_async(_: str, **told: Any) -> Any:
        return AsyncVectorEnv([lambda: MultiStep(Bare(task), **told["wrappers"]["multi_step"])] * told["num_envs"])

    train_agent.make_async = make_async
    agent = TrainPPODiffusionAgent(cfg)
    agent.save_model = lambda: None
    return agent


def served(agent: Any) -> Callable[[int], dict[str, Any]]:
    """Iterations of the agent. It has collected when it asks its critic for the first time."""
    collected: list[dict[str, float]] = []
    watch = Stopwatch()

    def asked(*_: Any) -> None:
        if not collected:
            collected.append(watch.read())

    agent.model.critic.register_forward_pre_hook(asked)

    def iterate(count: int) -> dict[str, Any]:
        nonlocal watch
        for _ in range(count):
            collected.clear()
            watch = Stopwatch()
            agent.n_train_itr = agent.itr + 1
            agent.run()
        return {"collect": collected[0], "steps": agent.n_steps * agent.n_envs * agent.act_steps}

    return iterate


def main() -> None:
    """Serve."""
    code, name, task, steps, threads = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    pin(threads)
    torch.set_num_threads(threads)
    logging.disable()
    sys.path.insert(0, str(code))
    with tempfile.TemporaryDirectory() as logs:
        cfg = settings(code, name, task, steps, logs)
        agent = make_agent(cfg, task)
        iterate, whole = served(agent), agent.n_steps
        agent.n_steps = 2  # so that nothing is done for the first time in what is measured
        iterate(1)
        agent.n_steps = whole
        serve(iterate, {"parameters": sum(p.numel() for p in agent.model.actor_ft.parameters()), "envs": cfg.env.n_envs,
                        "denoising": cfg.denoising_steps, "learned": cfg.ft_denoising_steps, "epochs": cfg.train.update_epochs,
                        "minibatch": cfg.train.batch_size})
        agent.venv.close()


if __name__ == "__main__":
    main()

"""What a value function says along recorded episodes, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from realrl.data.views import ChunkView
from realrl.policies.diffusion import DiffusionPolicy
from realrl.types import Array, Episode


@torch.no_grad()
def value_traces(episodes: Sequence[Episode], value: nn.Module, policy: DiffusionPolicy, gamma: float) -> list[Array]:
    """What V [N, C] -> [N, 1] says along every episode, [T] each, held from plan to plan: eyes may be closed in between."""
    view = ChunkView(episodes, chunk=policy.chunk, n_obs=policy.n_obs, gamma=gamma, every="plan", device=policy.device)
    cond = view.encoded(policy.features).cond
    traces = np.split(value(cond)[:, 0].cpu().numpy(), np.flatnonzero(view.first.cpu().numpy())[1:])
    return [trace[np.cumsum(e.starts_plan) - 1] for trace, e in zip(traces, episodes, strict=True)]

"""An export behind LeRobot's interface of policies: its observations in, actions in the robot's units out."""

from __future__ import annotations

import hashlib
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_realrl.configuration_realrl import RealrlConfig, camera, described


class RealrlPolicy(PreTrainedPolicy):
    """Plans when its queue of actions is empty, from the last observations; `reset` begins an episode."""

    config_class = RealrlConfig
    name = "realrl"

    def __init__(self, config: RealrlConfig, folder: str | Path | None = None, **_: Any) -> None:
        """Raises ValueError without a folder: what is not trained here begins as an export."""
        super().__init__(config)
        if folder is None:
            raise ValueError("a realrl policy is trained with realrl: name the folder of an export with --policy.path")
        self.folder = Path(folder)
        self.about = described(self.folder)
        graph = (self.folder / "policy.onnx").read_bytes()
        if hashlib.sha256(graph).hexdigest() != self.about["sha256"]:
            raise ValueError(f"{folder}: policy.onnx is not the graph that policy.json describes: export the policy again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        told = self.about["interface"]["outputs"]["action"]
        self._low, self._high = (np.asarray(told[key], np.float32) for key in ("low", "high"))
        self._rng = np.random.default_rng()
        self.reset()

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **_: Any) -> RealrlPolicy:
        """The export in a folder on this machine."""
        found = config or PreTrainedConfig.from_pretrained(pretrained_name_or_path)
        assert isinstance(found, RealrlConfig)
        return cls(found, pretrained_name_or_path).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        self.config._save_pretrained(save_directory)
        for name in ("policy.onnx", "policy.json"):
            shutil.copyfile(self.folder / name, save_directory / name)

    def reset(self) -> None:
        """An episode begins."""
        self._frames: deque[dict[str, np.ndarray]] = deque(maxlen=self.about["n_obs"])
        self._actions: deque[Tensor] = deque()

    def select_action(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """The next action [B, A]. batch: observation.state [B, D], pictures [B, 3, H, W] in [0, 1]."""
        self._see(batch)
        if not self._actions:
            self._actions.extend(self._plan().unbind(1))
        return self._actions.popleft()

    def predict_action_chunk(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """A whole plan [B, K, A]."""
        self._see(batch)
        return self._plan()

    def _see(self, batch: dict[str, Tensor]) -> None:
        """Remember a frame [B, ...] as the policy was trained on it; an episode's first one is repeated."""
        frame = {"state": batch["observation.state"].float().cpu().numpy()}
        for key, (height, width, _) in self.about["senses"].items():
            pictures = (batch[camera(self.about, key)].cpu() * 255).round().to(torch.uint8)
            if pictures.shape[-2:] != (height, width):  # as the pictures that it learned from were made smaller
                pictures = torch.nn.functional.interpolate(pictures, (height, width), mode="bilinear", antialias=True, align_corners=False)
            frame[key] = np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy())
        self._frames.extend([frame] * (1 if self._frames else self.about["n_obs"]))

    def _plan(self) -> Tensor:
        """Actions [B, K, A] in the robot's units."""
        seen = {key: np.stack([frame[key] for frame in self._frames], 1) for key in self._frames[-1]}
        rows = []
        for i in range(len(seen["state"])):
            feed = {key: x[i:i + 1] for key, x in seen.items()}
            if self.about["noise"]:
                feed["noise"] = self._rng.standard_normal((1, self.about["chunk"], self.about["action_dim"]), dtype=np.float32)
            rows.append(self._session.run(None, feed)[0])
        chunk = np.clip(np.concatenate(rows), -1.0, 1.0)
        return torch.from_numpy(self._low + (self._high - self._low) * (chunk + 1) / 2)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """Not here."""
        raise NotImplementedError("a realrl policy is trained with realrl and exported")

    def get_optim_params(self) -> dict[str, Any]:
        """Nothing is trained."""
        return {}

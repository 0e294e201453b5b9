"""The policy type `realrl`: what LeRobot has to know of an export before it is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature


@PreTrainedConfig.register_subclass("realrl")
@dataclass
class RealrlConfig(PreTrainedConfig):
    """An export's. chunk: actions that are executed before the next plan; action_feature_names: of its actions, in the robot's units."""

    chunk: int = 1
    action_feature_names: list[str] = field(default_factory=list)

    @property
    def observation_delta_indices(self) -> list[int]:
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> Any:
        raise NotImplementedError("a realrl policy is trained with realrl and exported")

    def get_scheduler_preset(self) -> None:
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        """As all configurations are, but always with the type, which some versions of draccus leave out and no version reads without."""
        super()._save_pretrained(save_directory)
        file = save_directory / "config.json"
        file.write_text(json.dumps({"type": self.type, **json.loads(file.read_text())}, indent=4))

    def validate_features(self) -> None:
        """Its features come from its own description."""


def described(folder: Path) -> dict[str, Any]:
    """The policy.json of an export. Raises ValueError where there is none."""
    try:
        about: dict[str, Any] = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        if about["kind"] == "onnx" and about["interface"]["inputs"]["state"]:
            return about
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{folder}: no policy that 'realrl export' wrote: give the folder that holds policy.onnx and policy.json")


def camera(about: dict[str, Any], key: str) -> str:
    """What LeRobot calls a camera of the policy's: as the recording that it learned from did."""
    return "observation." + (about.get("robot") or {}).get("cameras", {}).get(key, key)


def configuration(folder: Path) -> RealrlConfig:
    """The configuration of an export. Raises ValueError for senses that LeRobot's robots do not have."""
    about = described(folder)
    if strange := [key for key in about["senses"] if not key.startswith("images.")]:
        raise ValueError(f"{folder}: the policy looks at {', '.join(strange)}, LeRobot's robots show colours and numbers alone")
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (about["obs_dim"],))}
    for key, (height, width, _) in about["senses"].items():
        inputs[camera(about, key)] = PolicyFeature(FeatureType.VISUAL, (3, height, width))
    return RealrlConfig(n_obs_steps=about["n_obs"], input_features=inputs, device="cpu", push_to_hub=False, chunk=about["chunk"],
                        output_features={"action": PolicyFeature(FeatureType.ACTION, (about["action_dim"],))},
                        action_feature_names=list(about["interface"]["outputs"]["action"]["actions"]))

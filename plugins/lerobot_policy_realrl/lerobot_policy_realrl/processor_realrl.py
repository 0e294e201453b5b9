"""What stands before and behind the policy in LeRobot's pipelines: nothing but a batch dimension and names; the graph normalises itself."""

from __future__ import annotations

from typing import Any

from lerobot.processor import AddBatchDimensionProcessorStep, DeviceProcessorStep, PolicyProcessorPipeline, RenameObservationsProcessorStep
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from lerobot_policy_realrl.configuration_realrl import RealrlConfig


def make_realrl_pre_post_processors(config: RealrlConfig, dataset_stats: Any = None) -> tuple[Any, Any]:
    """(before, behind). dataset_stats: not looked at."""
    before = [RenameObservationsProcessorStep(rename_map={}), AddBatchDimensionProcessorStep(), DeviceProcessorStep(device="cpu")]
    return (PolicyProcessorPipeline(steps=before, name="policy_preprocessor"),
            PolicyProcessorPipeline(steps=[DeviceProcessorStep(device="cpu")], name="policy_postprocessor",
                                    to_transition=policy_action_to_transition, to_output=transition_to_policy_action))

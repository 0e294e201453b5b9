"""Policies exported by realrl (`realrl export`) as a policy type of LeRobot's: `--policy.path=FOLDER` runs them on its robots.

It needs neither realrl nor what realrl needs: the graph runs in ONNX Runtime. `python -m lerobot_policy_realrl FOLDER` writes into the
folder of an export what LeRobot looks for there.
"""

from lerobot_policy_realrl.configuration_realrl import RealrlConfig

__all__ = ["RealrlConfig"]

"""`plugins/lerobot_policy_realrl` with LeRobot's own classes, where there is a Python that has them and ONNX Runtime."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_export import diffusion

from realrl.data.cache import resize
from realrl.policies.exported import GRAPH, ExportedPolicy
from realrl.policies.folder import FORMAT
from realrl.robots.embodiment import Embodiment
from realrl.serve.export import to_onnx

PLUGIN = Path(__file__).resolve().parents[2] / "plugins" / "lerobot_policy_realrl"
STEPS, SEED = 5, 7
ROBOT = Embodiment("arm", ("a", "b"), ("deg", "mm"), (-90, 0), (90, 50), ("x", "y"), 20.0, cameras={"images.front": "images.cam_high"})
CHILD = f"""
import importlib, json, sys, torch
from pathlib import Path
import numpy as np
register, torch.library.register_fake = torch.library.register_fake, lambda *_, **__: lambda function: function
try:
    import torchvision  # a build for CUDA beside a torch without it lacks operators that its import describes
except ModuleNotFoundError:
    pass
torch.library.register_fake = register
importlib.import_module("lerobot_policy_realrl")
from lerobot.configs.policies import PreTrainedConfig
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import (batch_to_transition, policy_action_to_transition, transition_to_batch,
                                          transition_to_policy_action)
from lerobot_policy_realrl.__main__ import prepare
from lerobot_policy_realrl.modeling_realrl import RealrlPolicy

folder = Path(sys.argv[1])
prepare(folder)
config = PreTrainedConfig.from_pretrained(folder)
assert config.type == "realrl" and config.action_feature_names == ["a", "b"]
assert list(config.image_features) == ["observation.images.cam_high"]
policy = RealrlPolicy.from_pretrained(folder, config=config)
as_they_do = {{"rename_observations_processor": {{"rename_map": {{}}}}, "device_processor": {{"device": "cpu"}}}}
before = PolicyProcessorPipeline.from_pretrained(folder, config_filename="policy_preprocessor.json", overrides=as_they_do,
    to_transition=batch_to_transition, to_output=transition_to_batch)
behind = PolicyProcessorPipeline.from_pretrained(folder, config_filename="policy_postprocessor.json",
    to_transition=policy_action_to_transition, to_output=transition_to_policy_action)
seen, said = np.load(folder / "seen.npz"), []
for episode in range(2):
    policy.reset()
    policy._rng = np.random.default_rng({SEED})
    for state, picture in zip(seen["state"], seen["picture"]):
        batch = {{"observation.state": torch.from_numpy(state),
                 "observation.images.cam_high": torch.from_numpy(picture).permute(2, 0, 1).float() / 255}}
        said.append(behind(policy.select_action(before(batch)))[0].tolist())
policy.save_pretrained(folder / "copy")
assert RealrlPolicy.from_pretrained(folder / "copy").about == policy.about
print(json.dumps(said))
"""


def test_lerobot_runs_an_export_as_it_is(tmp_path: Path) -> None:
    """LEROBOT_PYTHON: a Python with lerobot and onnxruntime. What its pipelines and our plug-in make of frames is what the export says of
    them, in the robot's units: pictures made smaller as in training, a history, a plan that is carried out, an episode that begins anew."""
    python = os.environ.get("LEROBOT_PYTHON")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGIN), os.environ.get("LEROBOT_PYTHONPATH", "")])}
    if not python or subprocess.run([python, "-c", "import lerobot, onnxruntime"], capture_output=True, env=env).returncode:
        pytest.skip("LEROBOT_PYTHON names no Python with lerobot and onnxruntime")
    policy = diffusion({"images.front": (16, 20, 3)}, n_obs=2, chunk=2)
    about, graph = to_onnx(policy)
    (tmp_path / GRAPH).write_bytes(graph)
    told = {"actions": ROBOT.actions, "units": ROBOT.units, "low": ROBOT.low, "high": ROBOT.high}
    (tmp_path / "policy.json").write_text(json.dumps({
        "kind": "onnx", "format": FORMAT, "robot": {"cameras": dict(ROBOT.cameras)}, **about.__dict__,
        "interface": {"inputs": {"state": {"shape": [1, 2, 2]}}, "outputs": {"action": told}}}))
    rng = np.random.default_rng(0)
    state = rng.normal(size=(STEPS, 2)).astype(np.float32)
    picture = rng.integers(0, 256, (STEPS, 32, 40, 3), np.uint8)
    np.savez(tmp_path / "seen.npz", state=state, picture=picture)
    found = subprocess.run([python, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=300, env=env)
    assert found.returncode == 0, found.stderr
    exported, noise, expected = ExportedPolicy(about, graph, "here"), [np.random.default_rng(SEED)], []
    small = resize(picture, (16, 20))
    for t in range(0, STEPS, 2):
        rows = [max(t - 1, 0), t]
        plan, _ = exported.act({"state": state[rows][None], "images.front": small[rows][None]}, {}, greedy=True, rng=noise)
        expected += ROBOT.to_robot(plan.action[0]).tolist()
    said = json.loads(found.stdout.splitlines()[-1])
    assert np.allclose(said, [*expected[:STEPS], *expected[:STEPS]], atol=1e-3)

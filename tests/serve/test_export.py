"""Exports: the graph says what the policy says, for every kind of policy, or it is refused in one line."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import record

from realrl import config
from realrl.algos.bc import BCConfig
from realrl.cli.main import main
from realrl.generative.diffusion import DiffusionConfig
from realrl.nets.encoder import EncoderConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.exported import GRAPH, ExportedPolicy, sense_type
from realrl.policies.folder import load_policy, read_robot, save_policy
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.robots.embodiment import Embodiment
from realrl.scene import RecordedConfig
from realrl.serve import export as exporting
from realrl.serve.export import TOLERANCE, Trained, compare, export, to_onnx
from realrl.serve.observations import recorded
from realrl.types import Obs, RealrlError

pytest.importorskip("onnxruntime", reason="needs the group serve (pip install 'realrl[serve]')")
SENSES = {"pointcloud": (40, 3), "images.front": (32, 24, 3), "depth.wrist": (24, 32)}


def diffusion(senses: dict[str, tuple[int, ...]] | None = None, **options: Any) -> DiffusionPolicy:
    """A policy of random weights, as if it were distilled."""
    torch.manual_seed(0)
    cfg = PolicyConfig(**{"chunk": 1, "hidden": 16, "diffusion": DiffusionConfig(steps=5),
                          "encoder": EncoderConfig(size=8, latent=8, hidden=(16,)), **options})
    policy = DiffusionPolicy(cfg, 2, 2, senses=senses, name="mine").eval()
    policy.normaliser.fit(3 * torch.randn(50, 2) + 1)
    if policy.reference is not None:
        policy.reference.weight.normal_(0, 0.1)
        policy.reference.scale.uniform_(0.1, 0.5)
    policy.distilled = True
    return policy.with_head("one-step")


def gaussian() -> GaussianPolicy:
    torch.manual_seed(0)
    policy = GaussianPolicy(GaussianConfig(chunk=2, n_obs=2, hidden=(16, 8), norm="renorm"), 2, 2, name="mine")
    policy.net.learn([torch.rand(2, 1, 1, size) for size in policy.net.features])
    return policy.eval().requires_grad_(False)


def gripping() -> GaussianPolicy:
    torch.manual_seed(0)
    return GaussianPolicy(GaussianConfig(n_obs=2, hidden=(16, 8), norm="layer"), 2, 2, gripper=True).eval().requires_grad_(False)


def observe(policy: Trained, seed: int) -> Obs:
    rng = np.random.default_rng(seed)
    made = {"state": rng.normal(1, 3, (1, policy.n_obs, policy.obs_dim)).astype(np.float32)}
    for key, shape in policy.senses.items():
        whole = sense_type(key).kind == "u"
        size, most = (1, policy.n_obs, *shape), 256 if "images" in key else 3000
        made[key] = (rng.integers(0, most, size) if whole else rng.normal(size=size)).astype(sense_type(key))
    return made


@pytest.mark.parametrize("make", [
    lambda: diffusion(SENSES, n_obs=2, chunk=2), lambda: diffusion(net="unet", chunk=6, reference="linear", n_obs=2), diffusion, gaussian,
    gripping], ids=["cloud, colours and depth", "chunks of a U-Net with a reference", "one action", "gaussian", "with a gripper's critic"])
def test_a_graph_says_what_its_policy_says(make: Any) -> None:
    policy = make()
    about, graph = to_onnx(policy)
    exported = pickle.loads(pickle.dumps(ExportedPolicy(about, graph, "here")))  # as worker processes get it
    seen = [observe(policy, i) for i in range(20)]
    assert compare(policy, exported, seen) <= TOLERANCE
    several = {key: np.concatenate([obs[key] for obs in seen[:5]]) for key in seen[0]}
    plans = [who.act(several, who.start(5), greedy=True, rng=[np.random.default_rng(i) for i in range(5)])[0].action for who in
             (policy, exported)]
    assert plans[0].shape == (5, policy.chunk, 2) and np.abs(plans[0] - plans[1]).max() <= TOLERANCE
    assert np.abs(plans[1][0] - plans[1][1]).max() > 1e-3, "it looks at what it is shown"
    rng = [np.random.default_rng(0)]
    with pytest.raises(RealrlError, match=r"'state' has shape \[\d, 5\] but the policy was trained on"):
        exported.act({**seen[0], "state": np.zeros((1, policy.n_obs, 5), np.float32)}, {}, greedy=True, rng=rng)
    with pytest.raises(RealrlError, match="'state' is missing"):
        exported.act({}, {}, greedy=True, rng=rng)
    if not about.noise:
        with pytest.raises(RealrlError, match="explore with the one"):
            exported.act(seen[0], {}, greedy=False, rng=rng)


def test_a_run_is_exported_and_evaluated_like_any_policy(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "graph"
    assert main(["export", "--policy", str(tiny_run / "policy"), "--to", "onnx", "--out", str(out)]) == 0
    assert "recorded observations" in capsys.readouterr().out
    found = {}
    for folder, head in ((out, []), (tiny_run / "policy", ["--head", "one-step"])):
        assert main(["evaluate", "--policy", str(folder), "--episodes", "12", "--workers", "1", "--json", *head]) == 0
        found[folder] = json.loads(capsys.readouterr().out)
    one, other = found.values()
    assert one["success"] == other["success"] and one["failures"] == other["failures"] and one["head"] == "one-step"
    told = json.loads((out / "policy.json").read_text())
    assert told["parity"]["observations"] > 100 and told["parity"]["largest_difference"] <= TOLERANCE
    assert told["interface"]["inputs"]["state"]["shape"] == [1, 1, 2] and told["interface"]["actions_per_second"] == 10.0
    assert {f.name for f in out.iterdir()} == {GRAPH, "policy.json"}


def test_a_graph_that_says_something_else_is_refused(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def another(policy: Trained) -> Any:
        other = copy.deepcopy(policy)
        other.student.head.bias += 2e-5
        return to_onnx(other)

    monkeypatch.setattr(exporting, "to_onnx", another)
    with pytest.raises(RealrlError, match=r"differs by 2e-05 from the policy on \d+ recorded observations .*nothing was written"):
        export(tiny_run / "policy", tmp_path / "graph")
    assert not (tmp_path / "graph").exists()


def saved(folder: Path, policy: Trained, **more: Any) -> Path:
    save_policy(policy, folder / "policy", task="toy/obstacle", **more)
    return folder / "policy"


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path, tiny_run: Path) -> None:
    untaught = diffusion()
    untaught.distilled = False
    cases = [(saved(tmp_path / "a", untaught), tmp_path / "out", None, "one-step head was never trained"),
             (saved(tmp_path / "b", diffusion()), tmp_path / "out", None, "no recorded observations lie near it.*--data"),
             (tmp_path / "b/policy", tmp_path / "b/policy", None, "the policy itself lies there"),
             (tmp_path / "b/policy", tmp_path / "a/policy", None, "another policy lies there"),
             (tmp_path / "b/policy", tmp_path / "out", tmp_path, "not a LeRobot|no dataset|meta/info.json"),
             (tmp_path / "b/policy", tmp_path / "out", record(tmp_path / "empty", []), "an empty data set"),
             (saved(tmp_path / "c", diffusion(SENSES)), tmp_path / "out", tiny_run / "dataset", "holds no observation.pointcloud")]
    for source, out, data, line in cases:
        with pytest.raises(RealrlError, match=line) as caught:
            export(source, out, data)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_export_is_refused_in_one_line(tmp_path: Path, tiny_run: Path) -> None:
    export(tiny_run / "policy", tmp_path / "graph")
    with pytest.raises(RealrlError, match="ONNX graph already"):
        export(tmp_path / "graph", tmp_path / "again")

    def error(damage: Any) -> str:
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "graph", folder)
        damage(folder)
        with pytest.raises(RealrlError) as caught:
            load_policy(folder)
        return str(caught.value)

    def say(folder: Path, **changes: Any) -> None:
        file = folder / "policy.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    assert "cannot be read" in error(lambda f: (f / GRAPH).unlink())
    assert "not the graph that policy.json" in error(lambda f: (f / GRAPH).write_bytes(b"x" * 100))
    assert "not what policy.json beside it describes" in error(lambda f: say(f, chunk=3))
    assert "not what policy.json beside it describes" in error(lambda f: say(f, obs_dim=3))
    assert "head" in error(lambda f: say(f, head="ddim"))
    other = exporting.digest(b"no graph")
    assert "ONNX Runtime does not take it" in error(lambda f: ((f / GRAPH).write_bytes(b"no graph"), say(f, sha256=other)))


def test_observations_of_a_policy_from_recordings_are_its_own(tmp_path: Path) -> None:
    """By the names and in the size that its run saw them in, from the data set that it learned from."""
    data = record(tmp_path / "data", [0, 1, 2, 3], cameras=["images.cam_high"])
    policy = diffusion({"images.high": (16, 20, 3)}, n_obs=2)
    robot = Embodiment("arm", ("a", "b"), ("rad", "rad"), (-1, -2), (1, 2), ("x", "t"), 20.0, cameras={"images.high": "images.cam_high"})
    folder = tmp_path / "run"
    save_policy(policy, folder / "policy", task="recorded/data", robot=robot)
    cfg = BCConfig(task="recorded/data", data=str(data), recorded=RecordedConfig(state=("observation.state",)))
    config.save(cfg, folder / "config.yaml")
    record(folder / "dataset", [])  # where nothing was recorded, as in a run that only imitates
    found = recorded(folder / "policy", {"task": "recorded/data"}, policy, None, 20)
    assert found.data == data and 15 <= len(found.observations) <= 20 and found.fps == 20.0
    first = found.observations[0]
    assert first["images.high"].shape == (1, 2, 16, 20, 3) and first["images.high"].dtype == np.uint8
    assert np.array_equal(first["state"], [[[0, 0], [0, 0]]]), "an episode's first frame is repeated"
    assert {float(obs["state"][0, -1, 0]) for obs in found.observations} == {0.0, 1.0, 2.0, 3.0}
    export(folder / "policy", tmp_path / "graph")
    assert read_robot(tmp_path / "graph") == robot
    told = json.loads((tmp_path / "graph/policy.json").read_text())["interface"]["outputs"]["action"]
    assert (told["actions"], told["units"], told["low"], told["high"]) == (["a", "b"], ["rad", "rad"], [-1, -2], [1, 2])

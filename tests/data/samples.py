"""A small valid file or folder of every kind that is read, to be spoilt: a function a kind, which makes it below a folder."""

from __future__ import annotations

import json
import pickle
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent


def episodes(n: int = 2, steps: int = 4, camera: str | None = "images.top") -> list[Any]:
    """Tiny episodes with a state and, where wanted, a camera."""
    from realrl.types import Episode

    rng, out = np.random.default_rng(0), []
    for number in range(n):
        obs = {"state": rng.normal(size=(steps + 1, 3)).astype(np.float32)}
        if camera:
            obs[camera] = np.full((steps + 1, 32, 32, 3), 40 * (number + 1), np.uint8)
        action = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
        out.append(Episode(obs=obs, action=action, proposed=action.copy(), source=np.ones(steps, np.uint8), success=np.zeros(steps, bool),
                           reward=np.zeros(steps, np.float32), time=np.arange(steps) / 10, starts_plan=np.ones(steps, bool),
                           terminated=False, truncated=True, task="pick", policy="human", seed=number))
    return out


def dataset(root: Path) -> Path:
    from realrl.data.store import Store

    store = Store.create(root, task="pick", fps=10, codec="h264")
    store.append(episodes())
    return root


def robomimic(root: Path) -> Path:
    from realrl.data import formats

    formats.write("robomimic", episodes(), root / "a.hdf5", fps=10)
    return root / "a.hdf5"


def zarr_folder(root: Path) -> Path:
    from realrl.data import formats

    formats.write("diffusion_policy", episodes(), root / "a.zarr", fps=10)
    return root / "a.zarr"


def zarr_zip(root: Path) -> Path:
    from realrl.data import formats

    formats.write("diffusion_policy", episodes(), root / "a.zarr.zip", fps=10)
    return root / "a.zarr.zip"


def minari(root: Path) -> Path:
    from realrl.data import formats

    formats.write("minari", episodes(camera=None), root / "a-v0", fps=10)
    return root / "a-v0"


def dapg(root: Path) -> Path:
    one = {"observations": np.ones((4, 3)), "actions": np.ones((4, 2)), "rewards": np.zeros(4), "init_state_dict": {"qpos": np.ones(3)}}
    (root / "a.pickle").write_bytes(pickle.dumps([one, dict(one)], protocol=3))
    return root / "a.pickle"


def hil_serl(root: Path) -> Path:
    obs = [{"state": np.full((1, 3), i, np.float32), "wrist": np.full((1, 8, 8, 3), i, np.uint8)} for i in range(5)]
    steps = [{"observations": obs[i], "actions": np.zeros(2), "next_observations": obs[i + 1], "rewards": np.float64(i == 3), "masks": 1.0,
              "dones": i == 3, "infos": {"succeed": i == 3, "intervene_action": np.zeros(2), "grasp_penalty": 0.0}} for i in range(4)]
    (root / "a.pkl").write_bytes(pickle.dumps(steps, protocol=4))
    return root / "a.pkl"


def rlds(root: Path) -> Path:
    sys.path.insert(0, str(FOLDER / "formats"))
    import test_rlds

    return test_rlds.folder(root / "cups", test_rlds.columns(), test_rlds.columns())


def aloha(root: Path) -> Path:
    sys.path.insert(0, str(FOLDER / "formats"))
    import test_aloha

    return test_aloha.folder(root / "cups", 2, compress=True)


def maniskill(root: Path) -> Path:
    sys.path.insert(0, str(FOLDER / "formats"))
    import test_maniskill

    return test_maniskill.recorded(root / "cube").parent


def arrow(root: Path) -> Path:
    sys.path.insert(0, str(FOLDER / "formats"))
    import test_arrow

    return test_arrow.folder(root / "push")


def legacy(root: Path) -> Path:
    """LeRobot's version 2.1, with a camera as video and one as pictures in the table's cells."""
    import av
    import pyarrow as pa
    import pyarrow.parquet as pq
    sys.path.insert(0, str(FOLDER / "formats"))
    import test_lerobot_v2

    test_lerobot_v2.old(root)
    encoder: Any = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 8, 8, "rgb24", Fraction(1, 10)
    cell = {"bytes": bytes(encoder.encode(av.VideoFrame.from_ndarray(np.full((8, 8, 3), 90, np.uint8), format="rgb24"))[0]), "path": ""}
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path, partitioning=None)
        pq.write_table(table.append_column("observation.images.wrist", pa.array([cell] * len(table))), path)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.wrist"] = {"dtype": "image", "shape": [8, 8, 3], "names": ["height", "width", "channel"]}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def side(root: Path) -> Path:
    """A dataset with derived columns of every kind, one version of which knows an episode less than there are."""
    from realrl.data import side
    from realrl.data.store import Store

    store = Store.create(root, task="pick", fps=10)
    store.append(episodes(camera=None))
    n = store.frames
    side.write(root, "value", {"v": np.arange(n, dtype=np.float32), "quantiles": np.ones((n, 2, 2)), "good": np.arange(n) > 3,
                               "word": np.array(["a", None] * (n // 2), object)}, {"gamma": 0.9})
    side.write(root, "label", {"text": np.array(["good", "bad"]), "count": np.arange(2)})
    store.append(episodes(1, camera=None))
    side.write(root, "value", {"v": np.zeros(store.frames)}, {"gamma": 1.0})
    return root


def recording(root: Path) -> Path:
    """A dataset whose recorder died: an episode that was finished but not committed, and one that was under way."""
    from realrl.data.record.journal import folder_name

    dataset(root)
    for number, episode in enumerate(episodes(steps=6)):
        log_episode(root / "recording" / folder_name(1, number), episode, number + 10, finished=number == 0)
    (root / "recording/.lock").write_text("0" * 32)
    return root


def log_episode(folder: Path, e: Any, seed: int, *, finished: bool) -> None:
    """The logs of an episode as the encoder process writes them. seed: by which the episode is known afterwards."""
    from realrl.data.record import journal, recovery
    from realrl.data.video import PacketEncoder

    folder.mkdir(parents=True)
    layout = journal.Layout.of({"state": e.obs["state"][0]}, e.action[0])
    encoder = PacketEncoder(32, 32, 10, "h264")
    about = recovery.about_record(task=e.task, policy="human", seed=seed, fps=10, codec="h264", options={}, layout=layout,
                                  cameras=[{"key": "images.top", "shape": [32, 32], "depth": False}])
    columns = {name: getattr(e, name) for name in ("action", "proposed", "source", "reward", "success", "time", "starts_plan")}
    frames, film = journal.Log(folder / recovery.FRAMES), journal.Log(recovery.camera_log(folder, "images.top"))
    frames.append(journal.START, about)
    film.append(journal.HEADER, recovery.header_record(encoder.header))
    for t in range(len(e)):
        frames.append(journal.FRAME, layout.pack({"obs/state": e.obs["state"][t], **{name: x[t] for name, x in columns.items()}}))
    if finished:
        frames.append(journal.END, bytes([False, True]) + layout.pack({"obs/state": e.obs["state"][-1]}, obs_only=True))
    pictures = e.obs["images.top"][:None if finished else -1]
    for packet in [*(p for picture in pictures for p in encoder.encode(picture)), *encoder.finish()]:
        film.append(journal.PACKET, recovery.packet_record(packet))
    for log in (frames, film):
        log.close()

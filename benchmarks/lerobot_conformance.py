"""What we record opens in the public lerobot with equal numbers, and what it records opens here.

    python -m benchmarks.lerobot_conformance --lerobot ~/lerobot-venv/bin/python

lerobot pins its own torch, so it lives in an environment of its own (pip install lerobot) and this file is run in both: numbers and
pictures cross over as .npz. Prints the largest difference of every feature and exits with 1 when one is not as expected: numbers
must be equal, pictures equal up to the conversion from YUV that each decoder makes in its own way.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

FPS, SIZE, LENGTHS = 20, 96, (11, 8, 15, 6)
LEVELS = 6.0  # of 255: the largest mean difference that two decoders of one video may show


def picture(episode: int, frame: int) -> np.ndarray:
    """[96, 96, 3] uint8: a shade for the episode on the left, one for the frame on the right, so that a wrong frame shows."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[:, : SIZE // 2] = (40 + 50 * episode, 90, 60)
    image[:, SIZE // 2:] = 20 + 12 * frame
    return image


# ---- in lerobot's environment


def lerobot_read(root: Path, out: Path) -> None:
    """Every frame of a dataset as lerobot gives it."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("local/ours", root=root, video_backend="pyav")
    frames = [data[i] for i in range(len(data))]
    arrays = {k: np.stack([np.asarray(f[k]) for f in frames]) for k in frames[0] if k != "task"}
    window = LeRobotDataset("local/ours", root=root, video_backend="pyav", delta_timestamps={"action": [0.0, 1 / FPS]})[0]["action"]
    np.savez(out, task=np.array([f["task"] for f in frames]), episodes=data.num_episodes, window=np.asarray(window),
             mean=np.asarray(data.meta.stats["observation.images.top"]["mean"]), **arrays)


def lerobot_write(root: Path) -> None:
    """A dataset recorded by lerobot itself."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {"observation.state": {"dtype": "float32", "shape": (3,), "names": None},
                "action": {"dtype": "float32", "shape": (2,), "names": None},
                "observation.images.top": {"dtype": "video", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}}
    data = LeRobotDataset.create("local/theirs", fps=FPS, features=features, root=root, robot_type="test arm")
    for e, n in enumerate(LENGTHS):
        for t in range(n):
            data.add_frame({"observation.state": np.float32([e, t, e * t]), "action": np.float32([t / 20, -e / 10]),
                            "observation.images.top": picture(e, t), "task": f"task {e % 2}"})
        data.save_episode()
    data.finalize()


# ---- in ours


def record(root: Path) -> None:
    """Two appends of two episodes, compacted, and one more."""
    from realrl.data.store import Store
    from realrl.types import Episode

    def made(e: int, n: int) -> Episode:
        rng = np.random.default_rng(e)
        number = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32)
        return Episode(
            obs={"state": number(n + 1, 3), "images.top": np.stack([picture(e, t) for t in range(n + 1)])}, action=number(n, 2),
            proposed=number(n, 2), source=rng.integers(0, 3, n).astype(np.uint8), reward=number(n), success=np.zeros(n, bool),
            time=np.arange(n) / FPS, starts_plan=np.ones(n, bool), terminated=bool(e % 2), truncated=not e % 2, task=f"task {e % 2}",
            policy="test", seed=e)
    store = Store.create(root, task="task 0", fps=FPS)
    episodes = [made(e, n) for e, n in enumerate(LENGTHS)]
    store.append(episodes[:2])
    store.append(episodes[2:3])
    store.compact()
    store.append(episodes[3:])


def difference(name: str, ours: np.ndarray, theirs: np.ndarray, limit: float = 0.0) -> bool:
    """Print how far two arrays are apart; whether that is within the limit."""
    if ours.shape != theirs.shape:
        print(f"  {name:28s} shapes {ours.shape} and {theirs.shape}")
        return False
    worst = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).reshape(len(ours), -1).mean(1).max())
    print(f"  {name:28s} {'equal' if worst == 0 else f'mean difference of a frame up to {worst:.3g}'}")
    return worst <= limit


def compare(lerobot: str, folder: Path) -> bool:
    """Both directions; whether all is as it should be."""
    from realrl.data.store import Store
    from realrl.data.tools.check import check

    record(folder / "ours")
    subprocess.run([lerobot, __file__, "--read", folder / "ours", folder / "read.npz"], check=True)
    subprocess.run([lerobot, __file__, "--write", folder / "theirs"], check=True)
    theirs, store = np.load(folder / "read.npz"), Store.open(folder / "ours")
    episodes = store.read()
    print(f"recorded here, read by lerobot: {theirs['episodes']} episodes, {len(theirs['action'])} frames")
    together = {"action": [e.action for e in episodes], "action.proposed": [e.proposed for e in episodes],
                "observation.state": [e.obs["state"][:-1] for e in episodes], "next.reward": [e.reward for e in episodes],
                "time": [e.time.astype(np.float32) for e in episodes]}  # which is all that lerobot's tensors keep of it
    good = [difference(name, np.concatenate(x), theirs[name]) for name, x in together.items()]
    films = np.concatenate([e.obs["images.top"][:-1] for e in episodes])
    good.append(difference("observation.images.top", films, theirs["observation.images.top"].transpose(0, 2, 3, 1) * 255, LEVELS))
    good.append(bool((theirs["task"] == np.concatenate([[e.task] * len(e) for e in episodes])).all()))
    good.append(difference("a window of actions", episodes[0].action[:2], theirs["window"]))

    store = Store.open(folder / "theirs")
    episodes = store.read()
    print(f"recorded by lerobot, read here: {len(episodes)} episodes, {store.frames} frames; check finds "
          f"{[str(p) for p in check(store.dir, decode=True) if p.severity == 'error'] or 'nothing wrong'}")
    for e, (n, episode) in enumerate(zip(LENGTHS, episodes, strict=True)):
        true = np.stack([picture(e, t) for t in range(n)])
        good.append(difference(f"episode {e}, pictures", true, episode.obs["images.top"][:-1], LEVELS))
        good.append(difference(f"episode {e}, state", np.float32([[e, t, e * t] for t in range(n)]), episode.obs["state"][:-1]))
        good.append(episode.task == f"task {e % 2}")
    return all(good) and not [p for p in check(store.dir) if p.severity == "error"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lerobot", default=sys.executable, help="the python of an environment that has lerobot")
    parser.add_argument("--read", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        lerobot_read(*args.read)
    elif args.write:
        lerobot_write(args.write)
    else:
        with tempfile.TemporaryDirectory() as folder:
            good = compare(args.lerobot, Path(folder))
        print("as it should be" if good else "NOT as it should be")
        return 0 if good else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The other side of benchmarks/loading.py: LeRobot's own loader on the same folder, run by the interpreter that has it.

    python lerobot_loader.py DATASET '{"batch": 64, "n_obs": 2, "chunk": 8, "workers": 2, "backend": "torchcodec", "seconds": 10}'

Prints one JSON line. Imports nothing of realrl.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any

import lerobot
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def main(folder: str, ask: dict[str, Any]) -> None:
    """Count the samples of shuffled batches for some seconds, after three batches to warm up."""
    torch.set_num_threads(1)
    plain = LeRobotDataset("local/loading", root=folder, video_backend=ask["backend"])
    cameras = [name for name, f in plain.features.items() if f["dtype"] == "video"]
    history = [(i - ask["n_obs"] + 1) / plain.fps for i in range(ask["n_obs"])]
    windows = {**dict.fromkeys([*cameras, "observation.state"], history), "action": [i / plain.fps for i in range(ask["chunk"])]}
    data = LeRobotDataset("local/loading", root=folder, delta_timestamps=windows, video_backend=ask["backend"])
    loader = torch.utils.data.DataLoader(data, ask["batch"], shuffle=True, num_workers=ask["workers"], drop_last=True,
                                         persistent_workers=ask["workers"] > 0)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for first in itertools.islice(batches, 3):
        shape = list(first[cameras[0]].shape)
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + ask["seconds"]:
        next(batches)
        count += 1
    print(json.dumps({"batches": count, "wall_s": time.perf_counter() - began, "version": lerobot.__version__,
                      "torch": torch.__version__, "shape": shape}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

"""What git-lfs did not fetch is named as such, wherever in a foreign set it lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from format_samples import sample

from realrl.data import formats
from realrl.types import RealrlError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 123456\n"


def written(format: str, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        formats.write(format, [sample(0), sample(1)], folder / name, fps=10)
        return folder / name
    return make


@pytest.mark.parametrize(("make", "lost"), [
    (written("robomimic", "lift.hdf5"), ""), (written("diffusion_policy", "x.zarr"), "data/state/0.0"),
    (written("diffusion_policy", "x.zarr"), "meta/episode_ends/.zarray"), (written("diffusion_policy", "x.zarr.zip"), ""),
    (written("minari", "door-v0"), "data/main_data.hdf5"), (written("minari", "door-v0"), "data/metadata.json"),
    (lambda folder: folder / "demos.pkl", ""), (lambda folder: folder, "cups-train.tfrecord-00000-of-00001"),
    (lambda folder: folder, "train/data.arrow")],
    ids=["hdf5", "chunk", "header", "zip", "minari", "json", "pickle", "record", "table"])
def test_a_pointer_is_no_damage(tmp_path: Path, make: Callable[[Path], Path], lost: str) -> None:
    path = make(tmp_path)
    file = path / lost if lost else path
    file.parent.mkdir(exist_ok=True)
    file.write_text(POINTER)
    with pytest.raises(RealrlError, match=rf"{file.name} is a git-lfs pointer, not the file: run 'git lfs pull'"):
        list(formats.read(path).episodes)


def test_a_fault_of_ones_own_is_told_as_such(tmp_path: Path) -> None:
    path = written("robomimic", "lift.hdf5")(tmp_path)
    with pytest.raises(RealrlError, match="there is"):
        formats.read(path, keys=["nothing"])

"""The episodes of a Minari dataset as columns, from its HDF5, arrow and parquet forms; `formats.minari` makes episodes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.data.formats import common, hdf5
from realrl.data.formats.pictures import JPEG, decoded
from realrl.files import read_plain, within
from realrl.types import Array, RealrlError

MAIN = "main_data.hdf5"


def read_json(root: Path, path: Path) -> dict[str, Any]:
    """A JSON object. Raises RealrlError when it is damaged or lies outside of `root`."""
    within(root, path)
    with common.damage(path):
        value = json.loads(read_plain(path, 2**28))
    if not isinstance(value, dict):
        raise RealrlError(f"{path} is no JSON object; {common.AGAIN}")
    return value


class Hdf5Episodes:
    """Episodes of main_data.hdf5."""

    def __init__(self, root: Path) -> None:
        within(root, root / MAIN)
        self.file = hdf5.open_file(root / MAIN)

    def numbers(self) -> list[int]:
        """Which episodes there are."""
        return sorted(int(m[1]) for n in hdf5.names(self.file) if (m := re.fullmatch(r"episode_(\d{1,9})", n)))

    def reach(self, numbers: list[int]) -> tuple[float, float]:
        """The least and the greatest action."""
        low, high = np.inf, -np.inf
        for number in numbers:
            for action in _arrays(self._group(number), "actions", [])[0].values():
                low, high = common.wider(low, high, action)
        return low, high

    def columns(self, number: int) -> dict[str, Any]:
        """observations [T+1, ...] and actions [T, ...] by path, rewards, terminations, truncations, success; None for what lacks."""
        group = self._group(number)
        observations, left_out = _arrays(group, "observations", [])
        actions, _ = _arrays(group, "actions", [])
        infos = hdf5.subgroup(group, "infos")
        own = hdf5.subgroup(infos, "realrl") if infos is not None else None
        won = [x for n in ("success", "is_success") if infos is not None and (x := _numbers(infos, n)) is not None]
        ours = {n: x[1:] for n in common.COLUMNS if own is not None and (x := hdf5.array(own, n)) is not None}
        seed = hdf5.attribute(group, "seed")
        return {"observations": observations, "actions": actions, "left_out": left_out, "success": won[0] if won else None,
                **{n: hdf5.array(group, n) for n in ("rewards", "terminations", "truncations")},
                "ours": ours, "facts": ({} if seed is None else {"seed": seed}) | hdf5.json_attribute(group, "realrl")}

    def _group(self, number: int) -> Any:
        found = hdf5.subgroup(self.file, f"episode_{number}")
        if found is None:
            raise RealrlError(f"{self.file.filename} has no episode_{number} any more; was the file rewritten meanwhile? open it again")
        return found


def _numbers(group: Any, name: str) -> Array | None:
    """An array, None when there is none or it holds something else."""
    found = hdf5.member(group, name)
    numeric = isinstance(found, hdf5.library().Dataset) and found.dtype.kind in "biuf"
    return hdf5.array(group, name) if numeric else None


def _arrays(group: Any, name: str, path: list[str]) -> tuple[dict[str, Array], list[str]]:
    """(arrays by path, paths of what holds no numbers) of a dataset or a tree of them; "" is the path of a single array."""
    found = hdf5.member(group, name)
    label = ".".join(path)
    if found is None or len(path) > 8:
        raise RealrlError(f"{hdf5.where(group)} has no {hdf5.shown(name)}, which Minari writes for every episode; {common.AGAIN}")
    if isinstance(found, hdf5.library().Group):
        arrays: dict[str, Array] = {}
        left_out: list[str] = []
        for inner in hdf5.names(found):
            more, less = _arrays(found, inner, [*path, inner.removeprefix("_index_")])
            arrays, left_out = arrays | more, left_out + less
        return arrays, left_out
    pictures = hdf5.blobs(found)
    if pictures is None:
        values = _numbers(group, name)
        if values is None:
            return {}, [label]
        if not (values.dtype == np.uint8 and values.ndim == 2 and values[:1].tobytes().startswith(JPEG)):
            return {label: values}, []
        pictures = [row.tobytes() for row in values]
    return {label: decoded(pictures, f"{hdf5.where(group)}/{hdf5.shown(name)}")}, []


class TableEpisodes:
    """Episodes of the arrow and parquet forms: a folder each."""

    def __init__(self, root: Path, form: str, spaces: dict[str, Any]) -> None:
        self.root, self.form, self.spaces = root, form, spaces

    def numbers(self) -> list[int]:
        """Which episodes there are."""
        with common.damage(self.root):
            return sorted(int(p.name) for p in self.root.iterdir() if re.fullmatch(r"\d{1,9}", p.name))

    def reach(self, numbers: list[int]) -> tuple[float, float]:
        """The least and the greatest action."""
        low, high = np.inf, -np.inf
        for number in numbers:
            table, where = self._table(number, ["actions"])
            for action in self._leaves(table, "actions", "action_space", where)[0].values():
                low, high = common.wider(low, high, action[:-1])
        return low, high

    def columns(self, number: int) -> dict[str, Any]:
        """As those of `Hdf5Episodes`."""
        table, where = self._table(number, None)
        observations, left_out = self._leaves(table, "observations", "observation_space", where)
        actions, _ = self._leaves(table, "actions", "action_space", where)
        infos = self._leaves(table, "infos", "", where)[0] if "infos" in table.column_names else {}
        told = read_json(self.root, self.root / str(number) / "metadata.json")
        with common.damage(where):
            flat: dict[str, Array] = {n: table[n].to_numpy() for n in ("rewards", "terminations", "truncations")}
        won = [infos[n] for n in ("success", "is_success") if n in infos]
        return {"observations": observations, "actions": {k: x[:-1] for k, x in actions.items()}, "left_out": left_out,
                "success": won[0] if won else None, **{n: x[:-1] for n, x in flat.items()}, "ours": {},
                "facts": {"seed": told["seed"]} if isinstance(told.get("seed"), int) else {}}

    def _table(self, number: int, columns: list[str] | None) -> tuple[pa.Table, str]:
        folder = self.root / str(number)
        paths = sorted(folder.glob(f"*.{self.form}"))
        if len(paths) != 1:
            raise RealrlError(f"{folder} holds {len(paths)} .{self.form} files, must be one; remove what does not belong there")
        within(self.root, paths[0])
        with common.damage(paths[0]):
            if self.form == "parquet":
                with pq.ParquetFile(paths[0]) as file:
                    rows = file.metadata.num_rows
                    table = file.read(columns=columns) if rows <= hdf5.MAX_ROWS else None
            else:
                with pa.OSFile(str(paths[0])) as file:
                    fields = [ipc.schema.get_field_index(c) for c in columns] if columns and (ipc := pa.ipc.open_file(file)) else None
                    table = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields)).read_all()
                    rows = len(table)
            if rows > hdf5.MAX_ROWS or table is None or table.nbytes > common.MAX_BYTES:
                raise RealrlError(f"{paths[0]} declares {rows} rows, at most {hdf5.MAX_ROWS} are read; {common.AGAIN}")
            table.validate(full=True)
            return table, str(paths[0])

    def _leaves(self, table: pa.Table, name: str, space: str, where: str) -> tuple[dict[str, Array], list[str]]:
        with common.damage(f"{where}: {name}"):
            column = table[name].combine_chunks()
            column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            return _unpacked(column, self.spaces.get(space, {}), [], where)


def _unpacked(column: Any, space: Any, path: list[str], where: str) -> tuple[dict[str, Array], list[str]]:
    """(arrays by path, paths of what holds no numbers) of an arrow column."""
    label, space = ".".join(path), space if isinstance(space, dict) else {}
    if pa.types.is_struct(column.type):
        arrays: dict[str, Array] = {}
        left_out: list[str] = []
        inner = space.get("subspaces")
        for i, entry in enumerate(column.type):
            below = inner.get(entry.name) if isinstance(inner, dict) else inner[i] if isinstance(inner, list) and i < len(inner) else {}
            more, less = _unpacked(column.field(i), below, [*path, entry.name], where)
            arrays, left_out = arrays | more, left_out + less
        return arrays, left_out
    if pa.types.is_binary(column.type):
        return {label: decoded(column.to_pylist(), where)}, []
    shape: list[int] = []
    while pa.types.is_fixed_size_list(column.type):
        shape.append(column.type.list_size)
        column = column.flatten()
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        return {}, [label]
    values: Array = column.to_numpy(zero_copy_only=False)
    told = space.get("shape")
    if isinstance(told, list) and len(shape) == 1 and all(isinstance(n, int) for n in told) and np.prod(told) == shape[0]:
        shape = told
    return {label: values.reshape(-1, *shape)}, []

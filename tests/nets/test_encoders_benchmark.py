"""benchmarks/encoders.py: the forms it compares agree, take turns, and leave rows."""

import pytest
import torch
from torch import nn

from benchmarks import encoders
from benchmarks.lib.common import read_rows


def test_rows_of_every_form(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        words = ["--parts", "clouds", "chamfer", "augment", "--batches", "2", "--seconds", "0", "--out", str(tmp_path)]
        assert encoders.main(words) == 0
    finally:
        torch.set_num_threads(threads)
    rows = read_rows(tmp_path / "encoders.jsonl")
    assert {(r["part"], r["form"]) for r in rows} >= {(p, form) for p in ("clouds", "chamfer", "augment") for form in ("plain", "ours")}
    assert "ours bf16" in {r["form"] for r in rows}
    assert len({tuple(r[k] for k in encoders.KEY) for r in rows}) == len(rows) and all(r["forward_ms"] > 0 for r in rows)
    assert "x)" in capsys.readouterr().out


def test_forms_that_do_not_agree_are_not_compared():
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    with pytest.raises(SystemExit, match="other: differs"):
        encoders.encode({"one": (one, one), "other": (other, other)}, torch.ones(2, 3), 0.0)

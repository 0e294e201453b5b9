"""Large products go to the quicker library only where that is exact, and only while asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from realrl import envs
from realrl.cell import products
from realrl.cell.cell import WorkCell
from realrl.run import Run
from realrl.scene import CollectConfig, Scene


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What is known of the machine, before and after."""
    products.by_onednn.cache_clear()
    yield
    products.by_onednn.cache_clear()


@pytest.mark.parametrize(("vendor", "error", "chosen"), [("AuthenticAMD", 6e-7, True), ("AuthenticAMD", 2e-3, False),
                                                         ("GenuineIntel", 6e-7, False), ("", 6e-7, False)])
def test_it_is_chosen_where_it_is_quicker_and_exact(monkeypatch: pytest.MonkeyPatch, vendor: str, error: float, chosen: bool) -> None:
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(products, "medium_error", lambda: error)
    with products.large_products():
        assert torch.get_float32_matmul_precision() == ("medium" if chosen else "highest")
        with products.small_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == ("medium" if chosen else "highest")
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_cell_learns_with_large_and_acts_with_small_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    seen: list[str] = []
    act = type(envs.expert("toy/line", noise=0.0)).act
    monkeypatch.setattr(type(envs.expert("toy/line", noise=0.0)), "act",
                        lambda *args, **named: seen.append(torch.get_float32_matmul_precision()) or act(*args, **named))
    scene = Scene(task="toy/line", demos=1, collect=CollectConfig(workers=1))
    with Run.start(tmp_path, scene) as run, WorkCell(run, scene) as cell:
        assert torch.get_float32_matmul_precision() == "medium"
        cell.demonstrations()
    assert set(seen) == {"highest"} and torch.get_float32_matmul_precision() == "highest"


def test_it_ends_with_an_error_too_and_leaves_what_somebody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    with pytest.raises(ZeroDivisionError), products.large_products():
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("high")
    with products.large_products():
        assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")


def test_the_measure_tells_float32_from_bfloat16() -> None:
    error = products.medium_error()
    assert error < 1e-6 or error > 1e-3
    assert torch.get_float32_matmul_precision() == "highest"
    if products.by_onednn():
        assert error < products.EXACT

"""The doctor reports what is there and says how to get what is not."""

from __future__ import annotations

import os

import pytest
import torch

from realrl.cli import doctor


def test_report_covers_the_machine() -> None:
    findings = {(f.group, f.name): f for f in doctor.report()}
    assert findings["versions", "torch"].value.startswith(torch.__version__.split("+")[0])
    assert f"{os.cpu_count()} cores" in findings["devices", "cpu"].value
    assert {"Meta-World", "Adroit", "Gymnasium MuJoCo"} <= {name for group, name in findings if group == "suites"}
    assert {"EGL", "OSMesa", "MUJOCO_GL"} <= {name for group, name in findings if group == "rendering"}
    assert any(name.startswith("cuda") for group, name in findings if group == "devices")
    assert all(f.mend for f in findings.values() if not f.ok)


def test_missing_things_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(doctor, "SUITES", {"Mars": "no_such_suite"})
    monkeypatch.setattr(doctor, "DISPLAY", {"EGL": ("no_such_library", "libegl1")})
    findings = doctor.report()
    mends = {f.name: f.mend for f in findings if not f.ok}
    assert mends["no-such-package"] == "pip install no-such-package"
    assert mends["Mars"] == "pip install no-such-suite"
    assert "apt-get install libegl1" in mends["EGL"]
    assert not doctor.healthy(findings)


def test_show_prints_mends_for_what_is_missing_only(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [doctor.Finding("a", "here", True, "1.0", "never shown"), doctor.Finding("b", "gone", False, "missing", "pip install gone"),
                doctor.Finding("b", "nice", False, "missing", 'pip install "realrl[nice]"', required=False)]
    doctor.show(findings)
    text = capsys.readouterr().out
    assert "pip install gone" in text and 'pip install "realrl[nice]"' in text and "never shown" not in text
    assert "Something realrl needs is missing" in text
    assert doctor.healthy(findings[::2])


def test_what_a_person_can_steer_with_is_listed_and_never_required():
    found = {f.name: f for f in doctor.report() if f.group == "people"}
    assert set(found) == {"keyboard", "gamepad"} and not any(f.required for f in found.values())
    assert found["gamepad"].ok or found["gamepad"].mend

"""How torch's threads wait is said before torch is imported, unless somebody has said it."""

import os
import subprocess
import sys

import pytest

from benchmarks.studies import waiting


@pytest.mark.parametrize(("said", "count"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")])
def test_threads_that_wait_do_not_burn_a_core_that_somebody_wants(said, count):
    plain = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import sys, realrl, os; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], env={**plain, **said}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == count


def test_what_it_costs_is_measured_in_a_process_of_its_own():
    with waiting.company(1):
        found = waiting.measure("realrl", 0.01)
    assert found["steps"] >= 3 and found["wall_ms"] > 0 and found["used_ms"] > 0
    assert waiting.lines([{"busy": 2, "way": "one thread", **found}, {"busy": 0, "way": "realrl", **found}])[0][:2] == \
        ["nothing", "two, as realrl asks"]

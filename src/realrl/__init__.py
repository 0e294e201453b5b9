"""From demonstrations to deployment-grade robot policies by reinforcement learning on the real robot."""

import os

__version__ = "0.1.0"

if "OMP_WAIT_POLICY" not in os.environ:
    # A thread of torch's that waits for another burns its core for milliseconds first, which is the other's where something else runs
    # (a robot's server, an actor, another learner): a step then takes twenty times as long. OpenMP reads this when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

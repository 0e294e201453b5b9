"""From demonstrations to deployment-grade robot policies by reinforcement learning on the real robot."""

__version__ = "0.1.0"

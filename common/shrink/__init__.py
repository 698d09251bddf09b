"""From a dense network to a small one in one call, ``shrink``, or in one command, ``python -m common.shrink``."""

from common.shrink.shrinking import ShrinkSteps, Shrunk, Step, shrink

__all__ = ["ShrinkSteps", "Shrunk", "Step", "shrink"]

"""From a dense network to a small one in one call, ``shrink``, or in one command, ``python -m common.shrink``.

``shrink_each`` makes small networks of several sizes, and measures the dense one only once.
"""

from common.shrink.result import Shrunk, Step
from common.shrink.shrinking import ShrinkSteps, shrink, shrink_each

__all__ = ["ShrinkSteps", "Shrunk", "Step", "shrink", "shrink_each"]

"""Values between the points of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.decomposition import Floats


def bilinear(grid: Floats, ladders: Sequence[Sequence[int]], rows: Floats, columns: Floats) -> Floats:
    """Values of ``grid`` at points between its own, ``(K,)``; a point outside takes the value at the border.

    Args:
        grid: ``(R, C)``.
        ladders: positions of its R rows and of its C columns, each ascending.
        rows: positions of the points, ``(K,)``.
        columns: positions of the points, ``(K,)``.
    """
    (low, high, share), (left, right, part) = (
        _neighbours(*pair) for pair in zip(ladders, (rows, columns), strict=True)
    )
    below = grid[low, left] * (1 - part) + grid[low, right] * part
    above = grid[high, left] * (1 - part) + grid[high, right] * part
    return below * (1 - share) + above * share


def _neighbours(ladder: Sequence[int], values: Floats) -> tuple[Any, Any, Floats]:
    """Indices of the rungs below and above each value, and how far it lies from the first to the second."""
    rungs = np.asarray(ladder, dtype=np.float64)
    high = np.searchsorted(rungs, values).clip(0, len(rungs) - 1)
    low = np.maximum(high - 1, 0)
    gap = np.where(rungs[high] > rungs[low], rungs[high] - rungs[low], 1.0)
    return low, high, ((values - rungs[low]) / gap).clip(0.0, 1.0)

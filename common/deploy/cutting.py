"""Cut a chain of linear layers so that its pieces, each merged into one layer, need the fewest MACs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common.decomposition import Floats


def last_pieces(length: int, macs: Callable[[int, int], Floats]) -> list[NDArray[np.int64]]:
    """Find the start of the last piece in the cheapest cut of a chain, and in the cheapest cut of its first layers.

    Of cuts with equal MACs, one with the fewest pieces is used. K chains that differ only in their widths are cut at
    once.

    Args:
        length: number of layers of the chain.
        macs: ``(start, end)`` -> MACs of the layers ``start`` to ``end - 1`` merged into one layer, ``(K,)``; infinite
            if they cannot be merged.

    Returns:
        For the first 1, 2, ... ``length`` layers of the chain, the index of the first layer of the last piece,
        ``(K,)``.
    """
    least, fewest = [np.zeros(1)], [np.zeros(1, dtype=np.int64)]
    starts = []
    for end in range(1, length + 1):
        costs = np.stack([least[start] + macs(start, end) for start in range(end)])
        counts = np.stack([np.broadcast_to(fewest[start] + 1, costs.shape[1:]) for start in range(end)])
        chosen = np.where(costs == costs.min(axis=0), counts, np.inf).argmin(axis=0)
        least.append(np.take_along_axis(costs, chosen[None], axis=0)[0])
        fewest.append(np.take_along_axis(counts, chosen[None], axis=0)[0])
        starts.append(chosen)
    return starts

"""Where to cut a chain of linear layers so that its pieces, each merged into one layer, need the fewest MACs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common.decomposition import Floats


def last_pieces(length: int, macs: Callable[[int, int], Floats]) -> list[NDArray[np.int64]]:
    """Where the last piece begins when a chain is cut at the least MACs, and its first layers alone too.

    Of cuts with equal MACs, one with the fewest pieces is taken. K chains that differ in their widths alone are cut at
    once.

    Args:
        length: layers of the chain.
        macs: for ``(start, end)``, MACs of the layers ``start`` to ``end - 1`` as one layer, ``(K,)``; infinite where
            they cannot be one.

    Returns:
        For the first 1, 2, ... ``length`` layers of the chain: the first layer of the last piece, ``(K,)``.
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

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from common.deploy.cutting import last_pieces


def cuts(length: int) -> list[list[tuple[int, int]]]:
    """Return all ways to cut a chain into pieces, those with the fewest pieces first."""
    inner = range(1, length)
    return [list(pairwise((0, *places, length))) for count in range(length) for places in combinations(inner, count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 999), st.integers(2, 9))
def test_no_cut_is_cheaper_or_has_fewer_pieces_at_equal_macs(length: int, seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    macs = {piece: rng.integers(1, most, 4).astype(float) for piece in combinations(range(length + 1), 2)}
    for (start, end), values in macs.items():
        if end - start > 1:
            values[rng.random(4) < 0.3] = np.inf  # these cannot be merged
    starts = last_pieces(length, lambda start, end: macs[start, end])
    assert len(starts) == length
    for variant in range(4):
        found: list[tuple[int, int]] = []
        end = length
        while end:
            found.insert(0, (int(starts[end - 1][variant]), end))
            end = found[0][0]
        costs = [(sum(macs[piece][variant] for piece in cut), len(cut)) for cut in cuts(length)]
        assert (sum(macs[piece][variant] for piece in found), len(found)) == min(costs)

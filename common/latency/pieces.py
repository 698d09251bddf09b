"""The operations that have to be timed for a layer: its factors, and pieces of factors that may be merged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from common.decomposition import DECOMPOSITIONS, Floats, Ranks
from common.latency.operations import Operation, layer_operations, merged, with_widths
from common.network.shapes import LayerShape, dense_reason
from common.planning.decompositions import layer_method

RANKS_AN_OCTAVE = 4
"""Ranks at which a method is timed between 32 and 64, 64 and 128, and so on."""
Ladders = tuple[tuple[int, ...], tuple[int, ...]]
"""Ranks before and behind a piece of factors, ascending."""


def rank_steps(most: int = 1 << 16) -> tuple[int, ...]:
    """The ranks at which methods are timed, ascending, up to ``most``: multiples of 8 to 64, of 16 to 128, and so on.

    The times show which of them a runtime likes: a rank that is as slow as a greater one is worth nothing.
    """
    found = [8, 16, 24, 32]
    while found[-1] < most:
        octave = found[-1]
        found += [octave + octave * step // RANKS_AN_OCTAVE for step in range(1, RANKS_AN_OCTAVE + 1)]
    return tuple(rank for rank in found if rank <= most)


def greatest_ranks(shape: LayerShape, method: str) -> Ranks:
    """The greatest ranks of a method for a layer, from its shape alone."""
    inputs, outputs = (channels // shape.groups for channels in shape.channels)
    return DECOMPOSITIONS[method].greatest_ranks(inputs, outputs, shape.kernel)


def needed_operations(shapes: Iterable[LayerShape], methods: Sequence[str]) -> list[Operation]:
    """Every operation whose time is needed for these layers, dense and by these methods, merged or not, each once."""
    found: dict[Operation, None] = {}
    for shape in shapes:
        kinds = () if dense_reason(shape) else dict.fromkeys(layer_method(method, shape) for method in methods)
        for method in (None, *kinds):
            factors = layer_operations(shape, method)
            for start, end in combinations(range(len(factors) + 1), 2):
                inputs, outputs = piece_ladders(shape, method, start, end)
                calls = merged_calls(factors[start:end])
                found.update((with_widths(call, i, o), None) for call in calls for i in inputs for o in outputs)
    return list(found)


def merged_calls(factors: Sequence[Sequence[Operation]]) -> list[Operation]:
    """Factors that follow each other, merged into one: its operation in each call of the layer."""
    return [merged(*calls) for calls in zip(*factors, strict=True)]


def piece_ladders(shape: LayerShape, method: str | None, start: int, end: int) -> Ladders:
    """The ranks before factor ``start`` and before factor ``end`` at which the factors between are timed.

    The layer's own channels stand as ``(0,)``.
    """
    most = () if method is None else greatest_ranks(shape, method)
    ladders = [(0,), *(tuple(dict.fromkeys((*rank_steps(rank), rank))) for rank in most), (0,)]
    return ladders[start], ladders[end]


def weights_between(operation: Operation, inputs: Floats, outputs: Floats) -> Floats:
    """Weights of one group of an operation, ``(K,)``, with these channels where its own are open."""
    (own_in, own_out), groups = operation.channels, operation.groups
    rows = np.full_like(inputs, own_in / groups) if own_in else inputs
    columns = np.full_like(outputs, own_out / groups) if own_out else outputs
    return rows * columns * math.prod(operation.kernel)

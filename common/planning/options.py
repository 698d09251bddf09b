"""Every rank a layer could have, with its cost and its divergence, without building any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from common.decomposition import Floats, RankSteps
from common.network.shapes import LayerShape, dense_reason
from common.planning.allocation import Options
from common.planning.decompositions import Decompositions, layer_method
from common.planning.latencies import Latencies
from common.planning.plan import LayerPlan

Divergences = Mapping[str, Sequence[tuple[float, float]]]
"""Layer -> measured points (squared relative error, divergence); linear between them, and 0 at no error."""


def layer_options(
    name: str,
    shape: LayerShape,
    decompositions: Decompositions,
    methods: Sequence[str],
    *,
    divergences: Divergences | None = None,
    round_to: int = 1,
    latencies: Latencies | None = None,
) -> Options:
    """The dense layer, and all ranks by any of ``methods`` that make it smaller and that no other option beats.

    Args:
        name: of the layer.
        shape: its shape.
        decompositions: of the network.
        methods: candidates; what does not fit the layer is replaced, see ``layer_method``.
        divergences: measured divergence of errors; without it the divergence is the squared relative error itself.
        round_to: ranks are multiples of it, or the mode's maximum.
        latencies: makes seconds a cost too. The ranks are then those that were timed: of them the options keep those
            that nothing else beats, so that ranks that the runtime does not like fall away.
    """
    plans = [LayerPlan(reason=dense_reason(shape) or "the budget leaves room for it")]
    dense: list[float] = [*shape.dense_cost]
    if latencies is not None:
        dense.append(dense_layer_seconds(shape, latencies))
    table = [np.array([[*dense, 0.0]])]
    if not dense_reason(shape):
        for method in dict.fromkeys(layer_method(method, shape) for method in methods):
            ranks, rows = decompositions.keep(
                (name, method, shape, round_to, latencies),
                partial(_frontier, name, shape, decompositions, method, round_to, latencies),
            )
            plans += [decompositions.plan(name, method, tuple(map(int, row))) for row in ranks]
            table.append(rows)
    rows = np.concatenate(table)
    loss = divergence_of_errors(rows[:, -1] ** 2, (divergences or {}).get(name))
    best = _unbeaten(np.column_stack([rows[:, :-1], loss]))
    seconds = None if latencies is None else rows[best, 2]
    return Options([plans[index] for index in best], rows[best, 0], rows[best, 1], loss[best], seconds)


def dense_layer_seconds(shape: LayerShape, latencies: Latencies) -> float:
    """Seconds that a layer takes in the dense network."""
    return float(latencies.layer_seconds(shape, None, np.zeros((1, 0)), np.array([shape.dense_cost[0]]))[0])


def _frontier(
    name: str,
    shape: LayerShape,
    decompositions: Decompositions,
    method: str,
    round_to: int,
    latencies: Latencies | None,
) -> tuple[Floats, Floats]:
    """The ranks ``(K, modes)`` worth having, and for each its costs and relative error, ``(K, 3)`` or ``(K, 4)``."""
    steps: RankSteps = round_to
    if latencies is not None:
        steps = latencies.timed_ranks(round_to)
        if not steps:
            raise ValueError(
                f"round_to={round_to}: a budget of latency takes ranks that were timed; allowed: 1, 8, 16"
            )
    ranks, errors = decompositions.get(name, method).error_table(steps)
    costs = list(shape.costs(method, ranks, shift=name in decompositions.moments))
    if latencies is not None:
        costs.append(latencies.layer_seconds(shape, method, ranks, costs[0]))
    rows = np.column_stack([*costs, errors])
    dense_params, dense_macs = shape.dense_cost
    smaller = np.flatnonzero((rows[:, 0] < dense_params) & (rows[:, 1] <= dense_macs))
    kept = smaller[_unbeaten(rows[smaller])]
    return ranks[kept], rows[kept]


def divergence_of_errors(squared_errors: Floats, points: Sequence[tuple[float, float]] | None) -> Floats:
    """Divergences at squared relative errors of a layer, any shape: by its measured points, or the errors as such."""
    if points is None:
        return squared_errors
    known = np.array([(0.0, 0.0), *sorted(points)])
    if not np.isfinite(known).all():
        raise ValueError(
            f"divergences={list(points)!r} of a layer: each must be a finite error and a finite divergence"
        )
    known[:, 1] = np.maximum.accumulate(known[:, 1])  # a greater error that did less was luck
    inside = np.interp(squared_errors, known[:, 0], known[:, 1])
    (x0, y0), (x1, y1) = known[-2:] if len(known) > 1 else (known[0], known[0])
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
    # Ties between ranks whose divergence was measured as nothing go to the smaller error.
    return inside + slope * np.maximum(squared_errors - x1, 0.0) + 1e-9 * squared_errors


def _unbeaten(rows: Floats) -> np.ndarray:
    """Indices of the rows on a Pareto front of (a cost, loss), for each cost and for the mean of all; loss is last."""
    if not len(rows):
        return np.zeros(0, dtype=int)
    shares = rows[:, :-1] / rows[:, :-1].max(axis=0).clip(min=1e-12)
    kept: set[int] = set()
    for cost in (*shares.T, shares.mean(axis=1)):
        order = np.lexsort((rows[:, -1], cost))
        loss = rows[order, -1]
        before = np.concatenate([[np.inf], np.minimum.accumulate(loss)[:-1]])
        kept.update(order[loss < before].tolist())
    return np.array(sorted(kept))

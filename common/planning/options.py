"""Every rank a layer could have, with its cost and its harm, without building any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from common.decomposition import Floats, RankSteps
from common.planning.budget import Options
from common.planning.latency_table import LatencyTable, WholeNetwork, rank_steps
from common.planning.layers import Decompositions, LayerShape, dense_reason, layer_method
from common.planning.plan import LayerPlan

Harms = Mapping[str, Sequence[tuple[float, float]]]
"""Layer -> measured points (squared relative error, harm); between them harm is linear, at no error it is 0."""


def layer_options(
    name: str,
    shape: LayerShape,
    decompositions: Decompositions,
    methods: Sequence[str],
    *,
    harms: Harms | None = None,
    round_to: int = 1,
    latencies: LatencyTable | None = None,
    whole: WholeNetwork | None = None,
) -> Options:
    """The dense layer, and all ranks by any of ``methods`` that make it smaller and that no other option beats.

    Args:
        name: of the layer.
        shape: its shape.
        decompositions: of the network.
        methods: candidates; what does not fit the layer is replaced, see ``layer_method``.
        harms: measured harm of errors; without it the harm is the squared relative error itself.
        round_to: ranks are multiples of it, or the mode's maximum.
        latencies: makes seconds a cost too. The ranks are then those that were timed: of them the options keep those
            that nothing else beats, so that ranks that the runtime does not like fall away.
        whole: what the dense network's time as a whole tells beyond ``latencies``; both or neither.
    """
    plans = [LayerPlan(reason=dense_reason(shape) or "the budget leaves room for it")]
    dense: list[float] = [*shape.dense_cost]
    if latencies is not None and whole is not None:
        dense.append(whole.factor * latencies.plan_seconds(shape, plans[0]) + whole.per_weight * dense[0])
    table = [np.array([[*dense, 0.0]])]
    if not dense_reason(shape):
        for method in dict.fromkeys(layer_method(method, shape) for method in methods):
            ranks, rows = decompositions.keep(
                (name, method, shape, round_to, latencies, whole),
                partial(_frontier, name, shape, decompositions, method, round_to, latencies, whole),
            )
            plans += [decompositions.plan(name, method, tuple(map(int, row))) for row in ranks]
            table.append(rows)
    rows = np.concatenate(table)
    harm = harm_of_errors(rows[:, -1] ** 2, (harms or {}).get(name))
    best = _unbeaten(np.column_stack([rows[:, :-1], harm]))
    seconds = None if latencies is None else rows[best, 2]
    return Options([plans[index] for index in best], rows[best, 0], rows[best, 1], harm[best], seconds)


def _frontier(
    name: str,
    shape: LayerShape,
    decompositions: Decompositions,
    method: str,
    round_to: int,
    latencies: LatencyTable | None,
    whole: WholeNetwork | None,
) -> tuple[Floats, Floats]:
    """The ranks ``(K, modes)`` worth having, and for each its costs and relative error, ``(K, 3)`` or ``(K, 4)``."""
    steps: RankSteps = round_to
    if latencies is not None:
        steps = tuple(rank for rank in rank_steps() if rank % round_to == 0)
        if not steps:
            raise ValueError(
                f"round_to={round_to}: a budget of latency takes ranks that were timed; allowed: 1, 8, 16"
            )
    ranks, errors = decompositions.get(name, method).error_table(steps)
    costs = list(shape.costs(method, ranks, shift=name in decompositions.moments))
    if latencies is not None and whole is not None:
        costs.append(whole.factor * latencies.layer_seconds(shape, method, ranks) + whole.per_weight * costs[0])
    rows = np.column_stack([*costs, errors])
    dense_params, dense_macs = shape.dense_cost
    smaller = np.flatnonzero((rows[:, 0] < dense_params) & (rows[:, 1] <= dense_macs))
    kept = smaller[_unbeaten(rows[smaller])]
    return ranks[kept], rows[kept]


def harm_of_errors(squared_errors: Floats, points: Sequence[tuple[float, float]] | None) -> Floats:
    """The harm of a layer's squared relative errors, any shape: between its measured points, or the errors as such."""
    if points is None:
        return squared_errors
    known = np.array([(0.0, 0.0), *sorted(points)])
    if not np.isfinite(known).all():
        raise ValueError(f"harms={list(points)!r} of a layer: each must be a finite error and a finite harm")
    known[:, 1] = np.maximum.accumulate(known[:, 1])  # a greater error that harmed less was luck
    inside = np.interp(squared_errors, known[:, 0], known[:, 1])
    (x0, y0), (x1, y1) = known[-2:] if len(known) > 1 else (known[0], known[0])
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
    # Ties between ranks whose harm was measured as nothing go to the smaller error.
    return inside + slope * np.maximum(squared_errors - x1, 0.0) + 1e-9 * squared_errors


def _unbeaten(rows: Floats) -> np.ndarray:
    """Indices of the rows on a Pareto front of (a cost, harm), for each cost and for the mean of all; harm is last."""
    if not len(rows):
        return np.zeros(0, dtype=int)
    shares = rows[:, :-1] / rows[:, :-1].max(axis=0).clip(min=1e-12)
    kept: set[int] = set()
    for cost in (*shares.T, shares.mean(axis=1)):
        order = np.lexsort((rows[:, -1], cost))
        harm = rows[order, -1]
        before = np.concatenate([[np.inf], np.minimum.accumulate(harm)[:-1]])
        kept.update(order[harm < before].tolist())
    return np.array(sorted(kept))

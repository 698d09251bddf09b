"""List the ranks that a layer could have, with their costs and predicted losses, without building any factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from common.decomposition import DECOMPOSITIONS, Floats, RankSteps
from common.network.shapes import LayerShape, dense_reason
from common.planning.allocation import Options
from common.planning.decompositions import Decompositions, layer_methods
from common.planning.latencies import Latencies
from common.planning.plan import LayerPlan

ALIGNMENT = 16
"""The multiple for the ranks of wide layers. Processors compute 8 or 16 channels at once."""
WIDE_CHANNELS = 128
"""From this many inputs and outputs of a group, a layer is wide: a step of 16 is at most an eighth of its ranks."""

Divergences = Mapping[str, Sequence[tuple[float, float]]]
"""Layer -> measured points (squared relative error, divergence). Values in between are linear; 0 at no error."""


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
    """List the options of a layer: dense, or at any ranks that make it smaller and that no other option beats.

    Args:
        name: the layer's name.
        shape: the layer's shape.
        decompositions: the network's decompositions.
        methods: candidate methods; one that does not serve the layer is replaced, see ``layer_method``.
        divergences: measured divergences. Without them, the predicted loss is the squared relative error.
        round_to: the ranks are multiples of it, or the mode's maximum.
        latencies: measured times, which add seconds to the costs. Only timed methods and ranks are then options; ranks
            that are slow in the runtime drop out, because others beat them.
    """
    plans = [LayerPlan(reason=dense_reason(shape) or "the budget leaves room for it")]
    dense: list[float] = [*shape.dense_cost]
    if latencies is not None:
        dense.append(dense_layer_seconds(shape, latencies))
    table = [np.array([[*dense, 0.0]])]
    if not dense_reason(shape):
        timed = [method for method in methods if latencies is None or not DECOMPOSITIONS[method].depthwise]
        for method in layer_methods(timed, shape):
            ranks, rows = decompositions.cached(
                (name, method, shape, round_to, latencies),
                partial(_efficient_ranks, name, shape, decompositions, method, round_to, latencies),
            )
            plans += [decompositions.plan(name, method, tuple(map(int, row))) for row in ranks]
            table.append(np.column_stack([rows[:, :-1], decompositions.correct(name, method, rows[:, -1])]))
    rows = np.concatenate(table)
    loss = divergence_of_errors(rows[:, -1] ** 2, (divergences or {}).get(name))
    front = _pareto_front(np.column_stack([rows[:, :-1], loss]))
    seconds = None if latencies is None else rows[front, 2]
    return Options([plans[index] for index in front], rows[front, 0], rows[front, 1], loss[front], seconds)


def aligned_step(shape: LayerShape) -> int:
    """The step between a layer's ranks that suits the hardware: ``ALIGNMENT`` if the layer is wide, else 1."""
    return ALIGNMENT if min(shape.channels) // shape.groups >= WIDE_CHANNELS else 1


def dense_layer_seconds(shape: LayerShape, latencies: Latencies) -> float:
    """Predict the seconds of a layer in the dense network."""
    return float(latencies.layer_seconds(shape, None, np.zeros((1, 0)), np.array([shape.dense_cost[0]]))[0])


def _efficient_ranks(
    name: str,
    shape: LayerShape,
    decompositions: Decompositions,
    method: str,
    round_to: int,
    latencies: Latencies | None,
) -> tuple[Floats, Floats]:
    """The ranks ``(K, modes)`` that no others beat, and their costs and relative errors, ``(K, 3)`` or ``(K, 4)``."""
    steps: RankSteps = round_to
    if latencies is not None:
        steps = latencies.timed_ranks(round_to)
        if not steps:
            raise ValueError(f"round_to={round_to}: a budget of latency takes only timed ranks; allowed: 1, 8, 16")
    ranks, errors = decompositions.get(name, method).error_table(steps)
    costs = list(shape.costs(method, ranks, shift=name in decompositions.moments))
    if latencies is not None:
        costs.append(latencies.layer_seconds(shape, method, ranks, costs[0]))
    rows = np.column_stack([*costs, errors])
    dense_params, dense_macs = shape.dense_cost
    smaller = np.flatnonzero((rows[:, 0] < dense_params) & (rows[:, 1] <= dense_macs))
    front = smaller[_pareto_front(rows[smaller])]
    return ranks[front], rows[front]


def divergence_of_errors(squared_errors: Floats, points: Sequence[tuple[float, float]] | None) -> Floats:
    """Interpolate a layer's divergence at its squared relative errors, which may have any shape.

    Args:
        squared_errors: squared relative errors.
        points: the layer's measured (squared error, divergence); None returns the squared errors themselves.

    Raises:
        ValueError: a point is not finite.
    """
    if points is None:
        return squared_errors
    known = np.array([(0.0, 0.0), *sorted(points)])
    if not np.isfinite(known).all():
        raise ValueError(
            f"divergences={list(points)!r} for a layer: each must be a finite error and a finite divergence"
        )
    known[:, 1] = np.maximum.accumulate(known[:, 1])  # a smaller divergence at a greater error is noise
    inside = np.interp(squared_errors, known[:, 0], known[:, 1])
    (x0, y0), (x1, y1) = known[-2:] if len(known) > 1 else (known[0], known[0])
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
    # Among ranks with a measured divergence of 0, the smaller error wins.
    return inside + slope * np.maximum(squared_errors - x1, 0.0) + 1e-9 * squared_errors


def _pareto_front(rows: Floats) -> np.ndarray:
    """Indices of the rows on the Pareto front of loss against any one cost, or against the mean of all costs.

    Args:
        rows: ``(K, costs + 1)``, with the loss in the last column.
    """
    if not len(rows):
        return np.zeros(0, dtype=int)
    shares = rows[:, :-1] / rows[:, :-1].max(axis=0).clip(min=1e-12)
    front: set[int] = set()
    for cost in (*shares.T, shares.mean(axis=1)):
        order = np.lexsort((rows[:, -1], cost))
        loss = rows[order, -1]
        before = np.concatenate([[np.inf], np.minimum.accumulate(loss)[:-1]])
        front.update(order[loss < before].tolist())
    return np.array(sorted(front))

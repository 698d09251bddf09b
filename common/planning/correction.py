"""Measure what improved factors really lose on held-out data, to correct the errors that plans predict."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from common.network.shapes import LayerShape, dense_reason, trace_layers
from common.planning.allocation import Options
from common.planning.decompositions import Decompositions, layer_methods
from common.planning.methods import decompositions_of, timed_methods
from common.planning.options import aligned_step, layer_options
from common.planning.plan import LayerPlan, RankPlan
from common.planning.rules import Budget
from common.progress import track

COSTS = (1.0, 0.5)
"""Costs at which a method is measured in a layer, as fractions of what the plan gives the layer."""
USUAL_RATIOS = (0.5, 1.25)
"""Where measured over predicted error lies between these at the first cost, it holds for the others as well."""
DENSE_SHARE = 0.5
"""What counts as planned for a layer that the plan leaves dense, as a fraction of its cost."""
LEAST_ERROR = 1e-5
"""A smaller error is only rounding."""

Points = dict[tuple[str, str], list[tuple[float, float]]]
"""(layer, method) -> pairs (predicted relative error, measured relative error)."""


def measured_errors(
    model: nn.Module,
    x: Tensor,
    plan: RankPlan,
    budget: Budget,
    decompositions: Decompositions,
    improved: Decompositions,
) -> Points:
    """Measure what each method loses in each layer at about the planned cost; in doubt, at half of it as well.

    Predicted errors are those of factors that were not improved. Alternating least squares lowers the error of some
    methods by a few percent and that of others by half, so the predictions can favour the wrong one.

    Args:
        model: the dense network.
        x: one example input ``(N, C, H, W)``.
        plan: a plan within the budget, by the predicted errors.
        budget: that of the plan.
        decompositions: of the network's layers, without sweeps, as plans use them.
        improved: the same with sweeps. Where they have no held-out patches, the errors are those of the weight.

    Returns:
        Points for :meth:`common.planning.decompositions.Decompositions.corrected`.
    """
    shapes = decompositions.cached(("shapes", x.shape), lambda: trace_layers(model, x))
    methods = [each for each in decompositions_of(plan.method) if budget.latency is None or each in timed_methods()]
    cases = [
        (name, method)
        for name, shape in shapes.items()
        if not dense_reason(shape)
        for method in layer_methods(methods, shape)
    ]
    found: Points = {}
    for name, method in track(cases, "measuring errors", unit="layer"):
        shape = shapes[name]
        step = aligned_step(shape) if budget.round_to is None else budget.round_to
        options = layer_options(name, shape, decompositions, [method], round_to=step)
        for layer in _at_costs(options, _limits(shape, plan.layers[name], budget)):
            predicted = decompositions.get(name, method).relative_error(layer.ranks)
            if predicted > LEAST_ERROR:
                measured = max(improved.get(name, method).measured_error(layer.ranks), LEAST_ERROR)
                found.setdefault((name, method), []).append((predicted, measured))
                if USUAL_RATIOS[0] <= measured / predicted <= USUAL_RATIOS[1]:
                    break
    return found


def _limits(shape: LayerShape, planned: LayerPlan, budget: Budget) -> np.ndarray:
    """The parameters and MACs that the plan gives the layer; infinite where the budget limits only the other."""
    given = np.array(shape.cost(planned), dtype=float) * (1.0 if planned.method else DENSE_SHARE)
    limited = np.array([budget.params is not None, budget.macs is not None])
    return np.where(limited | ~limited.any(), given, np.inf)


def _at_costs(options: Options, limits: np.ndarray) -> list[LayerPlan]:
    """The factored options that lose least at ``COSTS``; the one with the fewest MACs where none is that small."""
    factored = np.array([each.method is not None for each in options.plans])
    if not factored.any():
        return []
    costs = options.sizes[:2]
    found = []
    for share in COSTS:
        fits = (costs <= share * limits[:, None]).all(axis=0) & factored
        order = np.where(fits, options.loss, np.inf) if fits.any() else np.where(factored, options.macs, np.inf)
        found.append(options.plans[int(np.argmin(order))])
    return list(dict.fromkeys(found))

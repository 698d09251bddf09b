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
CREDIBLE_RATIOS = (0.25, 1.5)
"""A ratio outside these is brought to the nearer one."""
NEAR_EXACT = 0.02
"""Near smaller predicted errors, factors are almost exact; ratios measured there hold for no other ranks."""
DENSE_SHARE = 0.5
"""What counts as planned for a layer that the plan leaves dense, as a fraction of its cost."""
Points = dict[tuple[str, str], list[tuple[float, float]]]
"""(layer, method) -> pairs (predicted relative error, measured relative error)."""


def measured_errors(
    model: nn.Module,
    x: Tensor,
    plan: RankPlan,
    budget: Budget,
    decompositions: Decompositions,
    sweeps: int,
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
        sweeps: improve the factors that are measured. The error is that on held-out patches; without any, it is the
            error that the decomposition itself minimises.

    Returns:
        Points for :meth:`common.planning.decompositions.Decompositions.corrected`.
    """
    shapes = decompositions.cached(("shapes", x.shape), lambda: trace_layers(model, x))
    improved = decompositions.with_sweeps(sweeps)  # its factors are needed here only
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
        for layer, predicted in _at_costs(options, _limits(shape, plan.layers[name], budget)):
            if predicted < NEAR_EXACT:
                continue
            ratio = improved.get(name, method).measured_error(layer.ranks) / predicted
            credible = min(max(ratio, CREDIBLE_RATIOS[0]), CREDIBLE_RATIOS[1])
            found.setdefault((name, method), []).append((predicted, predicted * credible))
            if USUAL_RATIOS[0] <= ratio <= USUAL_RATIOS[1]:
                break
    return found


def _limits(shape: LayerShape, planned: LayerPlan, budget: Budget) -> np.ndarray:
    """The parameters and MACs that the plan gives the layer; infinite where the budget limits only the other."""
    given = np.array(shape.cost(planned), dtype=float) * (1.0 if planned.method else DENSE_SHARE)
    limited = np.array([budget.params is not None, budget.macs is not None])
    return np.where(limited | ~limited.any(), given, np.inf)


def _at_costs(options: Options, limits: np.ndarray) -> list[tuple[LayerPlan, float]]:
    """The factored options that lose least at ``COSTS``, with their predicted errors.

    Where none is that small, it is the one with the fewest MACs.
    """
    factored = np.array([each.method is not None for each in options.plans])
    if not factored.any():
        return []
    costs = options.sizes[:2]
    found = []
    for share in COSTS:
        fits = (costs <= share * limits[:, None]).all(axis=0) & factored
        order = np.where(fits, options.loss, np.inf) if fits.any() else np.where(factored, options.macs, np.inf)
        found.append(int(np.argmin(order)))
    return [(options.plans[index], float(options.loss[index] ** 0.5)) for index in dict.fromkeys(found)]

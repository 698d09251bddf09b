"""Costs of plans, for one layer and for the whole network, computed without building any factors."""

from __future__ import annotations

from collections.abc import Mapping

from common.network.shapes import LayerShape
from common.planning.plan import LayerPlan, RankPlan


def kept_shares(shape: LayerShape, plan: LayerPlan) -> tuple[float, float]:
    """The fractions of the dense layer's parameters and MACs that the plan keeps."""
    (params, macs), (dense_params, dense_macs) = shape.cost(plan), shape.dense_cost
    return params / dense_params, macs / max(dense_macs, 1)


def dense_unless_smaller(shape: LayerShape, plan: LayerPlan) -> LayerPlan:
    """Return ``plan``, or a dense plan with the reason if the factors would not be smaller."""
    if plan.method is None:
        return plan
    (params, macs), (dense_params, dense_macs) = shape.cost(plan), shape.dense_cost
    ranks = "x".join(map(str, plan.ranks))
    if params >= dense_params:
        reason = f"at ranks {ranks} its factors would have {params:,} parameters, the layer has {dense_params:,}"
        return LayerPlan(reason=reason)
    if macs > dense_macs:
        return LayerPlan(
            reason=f"at ranks {ranks} its factors would need {macs:,} MACs, the layer needs {dense_macs:,}"
        )
    return plan


def plan_cost(shapes: Mapping[str, LayerShape], dense: tuple[int, int], plan: RankPlan) -> tuple[int, int]:
    """Parameters and MACs of the network that a plan makes.

    Args:
        shapes: the shapes of the layers in the plan.
        dense: parameters and MACs of the dense network.
        plan: the plan.
    """
    params, macs = dense
    for name, layer in plan.layers.items():
        (before_params, before_macs), (after_params, after_macs) = shapes[name].dense_cost, shapes[name].cost(layer)
        params, macs = params - before_params + after_params, macs - before_macs + after_macs
    return params, macs

"""What plans cost, layer by layer and for the whole network, without building anything."""

from __future__ import annotations

from collections.abc import Mapping

from common.network.shapes import LayerShape
from common.planning.plan import LayerPlan, RankPlan


def kept_shares(shape: LayerShape, plan: LayerPlan) -> tuple[float, float]:
    """Shares of the dense layer's parameters and of its MACs that the plan keeps."""
    (params, macs), (dense_params, dense_macs) = shape.cost(plan), shape.dense_cost
    return params / dense_params, macs / max(dense_macs, 1)


def dense_unless_smaller(shape: LayerShape, plan: LayerPlan) -> LayerPlan:
    """``plan``, or a dense layer and the reason, where the factors would not be smaller."""
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
    """Parameters and MACs of a network, from the shapes of its layers and the dense network's costs."""
    params, macs = dense
    for name, layer in plan.layers.items():
        (before_params, before_macs), (after_params, after_macs) = shapes[name].dense_cost, shapes[name].cost(layer)
        params, macs = params - before_params + after_params, macs - before_macs + after_macs
    return params, macs

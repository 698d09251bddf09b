"""Small networks that are timed beside the dense one, to learn what its operations leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from common.compression import factored_layer, planned_layers
from common.latency.pieces import greatest_ranks
from common.network.copies import independent_copy
from common.network.held import replace_module
from common.network.shapes import LayerShape, dense_reason
from common.planning.decompositions import layer_method
from common.planning.methods import method_for
from common.planning.plan import LayerPlan, RankPlan


def reference_plans(shapes: Mapping[str, LayerShape], methods: Sequence[str]) -> list[dict[str, LayerPlan]]:
    """Plans of small networks, see :meth:`common.latency.LatencyTable.calibrated`.

    By each method there is one at a quarter and one at a sixteenth of all ranks. By the first method there are two
    more, in which only the first or only the last half of the layers is at a sixteenth. In most networks the first
    layers need the time and the last layers hold the weights, so these two tell time and weights apart.
    """
    names = list(shapes)
    half = len(names) // 2
    wanted = [(method, part, names) for method in methods for part in (4, 16)]
    wanted += [(methods[0], 16, chosen) for chosen in (names[:half], names[half:])]
    found: list[dict[str, LayerPlan]] = []
    for method, part, chosen in wanted:
        plans = {name: _small(shapes[name], method, part) if name in chosen else LayerPlan() for name in names}
        if any(plan.method for plan in plans.values()) and plans not in found:
            found.append(plans)
    return found


def _small(shape: LayerShape, method: str, part: int) -> LayerPlan:
    """The layer at ``1 / part`` of its ranks, in multiples of 8 from 8 up; dense if that is not smaller."""
    method = layer_method(method, shape)
    ranks = tuple(max(min(8, most), most // part // 8 * 8) for most in greatest_ranks(shape, method))
    plan = LayerPlan(method, ranks)
    smaller = not dense_reason(shape) and shape.cost(plan)[0] < shape.dense_cost[0]
    return plan if smaller else LayerPlan()


def with_random_factors(model: nn.Module, plans: Mapping[str, LayerPlan]) -> nn.Module:
    """A copy of ``model`` with the planned layers, their factors random; it takes the time of the real network."""
    small = independent_copy(model)
    method = method_for(plan.method for plan in plans.values() if plan.method)
    for name, (layer, effective) in planned_layers(small, RankPlan(dict(plans), method, "fixed")).items():
        replace_module(small, layer, factored_layer(layer, effective, plans[name]))
    return small.eval()

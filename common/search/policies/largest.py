"""The largest plan of a rank rule within a budget, which a search can be compared with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from common.network.shapes import LayerShape
from common.planning import Budget, RankPlan, Rule, plan_ranks
from common.planning.costs import dense_unless_smaller, kept_shares
from common.planning.decompositions import Decompositions
from common.planning.methods import decompositions_of
from common.planning.plan import LayerPlan
from common.search.policies.base import SinglePlan
from common.search.space import Space

Cost = tuple[int, int]
"""Parameters and MACs of a whole network."""
PlansAt = Callable[[float], Sequence[RankPlan]]
"""From a share in [0, 1] to a plan for each method. A greater share lowers no layer's ranks."""


@dataclass(frozen=True)
class Fit:
    """What a rule makes of a network at one share.

    Attributes:
        share: in [0, 1].
        plans: a plan for each method, with layers factored whatever their cost.
        layers: for each layer the plan that keeps least of it, or the dense layer if factors are not smaller.
        cost: of the network that ``layers`` make.
        size: the shares of the dense network that it keeps, summed over what the budget limits.
    """

    share: float
    plans: Sequence[RankPlan]
    layers: Mapping[str, LayerPlan]
    cost: Cost
    size: float


class LargestPlan(SinglePlan):
    """The largest plan within the budget among a rule's plans at all shares.

    Attributes:
        least_share: the least share that the rule takes.
    """

    least_share: ClassVar[float] = 0.0

    @abstractmethod
    def plans_at(self, model: nn.Module, x: Tensor, decompositions: Decompositions, method: str) -> PlansAt:
        """Return a function from a share in [0, 1] to a plan for each decomposition that ``method`` stands for."""

    def single_plan(
        self, model: nn.Module, x: Tensor, decompositions: Decompositions, space: Space
    ) -> RankPlan | None:
        """See :meth:`SearchPolicy.single_plan`."""
        assert space.budget is not None
        plans_at = self.plans_at(model, x, decompositions, space.method)
        found = largest_within(plans_at, space.shapes, space.dense, space.budget, self.least_share)
        if found is None:
            raise ValueError(
                f"policy={self.name!r}: {space.budget} cannot be met by this rule, however few ranks it keeps"
            )
        return RankPlan(found.layers, space.method, self.name, found.plans[0].settings)


def plans_by(
    rule: Callable[[float], Rule], model: nn.Module, x: Tensor, decompositions: Decompositions, method: str
) -> PlansAt:
    """Return a function from a share to the plans of ``rule(share)``, one for each decomposition of ``method``."""
    methods = decompositions_of(method)

    def plans(share: float) -> list[RankPlan]:
        return [plan_ranks(model, x, each, rule(share), decompositions=decompositions) for each in methods]

    return plans


def largest_within(
    plans_at: PlansAt, shapes: Mapping[str, LayerShape], dense: Cost, budget: Budget, least: float = 0.0
) -> Fit | None:
    """Find the share in [``least``, 1] whose plan is the largest within the budget; None if no plan fits.

    Ranks grow with the share, and so does each method's cost of a layer. With several methods for a layer, the choice
    between them may lower the cost. The function therefore halves intervals of shares, the upper half first. It drops
    an interval if no plan in it can fit, or none can be larger than the best so far.

    Args:
        plans_at: the rule's plans at a share.
        shapes: of the network's layers.
        dense: the dense network's cost.
        budget: of parameters, MACs or both.
        least: the least share that the rule takes.
    """

    def at(share: float) -> Fit:
        plans = plans_at(share)
        layers = {name: _cheapest(shape, [plan.layers[name] for plan in plans]) for name, shape in shapes.items()}
        cost = _network_cost(dense, [(shape.dense_cost, shape.cost(layers[name])) for name, shape in shapes.items()])
        return Fit(share, plans, layers, cost, _size(cost, dense, budget))

    ends = at(least), at(1.0)
    best = max((fit for fit in ends if budget.allows(fit.cost, dense)), key=lambda fit: fit.size, default=None)
    intervals = [ends]
    while intervals:
        low, high = intervals.pop()
        share = (low.share + high.share) / 2
        if not low.share < share < high.share or _steps_between(low, high) < 2:
            continue
        smallest, greatest = _bounds(shapes, dense, low, high)
        hopeless = best is not None and _size(greatest, dense, budget) <= best.size
        if hopeless or not budget.allows(smallest, dense):
            continue
        middle = at(share)
        if budget.allows(middle.cost, dense) and (best is None or middle.size > best.size):
            best = middle
        intervals += [(low, middle), (middle, high)]
    return best


def _cheapest(shape: LayerShape, plans: Sequence[LayerPlan]) -> LayerPlan:
    return dense_unless_smaller(shape, min(plans, key=lambda plan: sum(kept_shares(shape, plan))))


def _network_cost(dense: Cost, layers: Sequence[tuple[Cost, Cost]]) -> Cost:
    """The cost of the network after each layer's cost changed.

    Args:
        dense: the dense network's cost.
        layers: for each layer its cost before and after.
    """
    params, macs = (dense[i] + sum(after[i] - before[i] for before, after in layers) for i in (0, 1))
    return params, macs


def _size(cost: Cost, dense: Cost, budget: Budget) -> float:
    limits = (budget.params, budget.macs)
    return sum(part / whole for part, whole, limit in zip(cost, dense, limits, strict=True) if limit is not None)


def _steps_between(low: Fit, high: Fit) -> int:
    """The sum of the differences in rank over all modes, layers and plans. Below two, no plan lies between."""
    return sum(
        abs(more - less)
        for lower, upper in zip(low.plans, high.plans, strict=True)
        for name, layer in lower.layers.items()
        for less, more in zip(layer.ranks, upper.layers[name].ranks, strict=True)
    )


def _bounds(shapes: Mapping[str, LayerShape], dense: Cost, low: Fit, high: Fit) -> tuple[Cost, Cost]:
    """A lower and an upper bound on the cost of every plan whose share lies between two."""
    least, most = [], []
    for name, shape in shapes.items():
        pairs = [(lower.layers[name], upper.layers[name]) for lower, upper in zip(low.plans, high.plans, strict=True)]
        limit = min(sum(kept_shares(shape, upper)) for _, upper in pairs)
        possible = [pair for pair in pairs if sum(kept_shares(shape, pair[0])) <= limit]  # the others are never taken
        costs = [[shape.cost(dense_unless_smaller(shape, plan)) for plan in pair] for pair in possible]
        least.append((shape.dense_cost, _each(min, [lower for lower, _ in costs])))
        most.append((shape.dense_cost, _each(max, [upper for _, upper in costs])))
    return _network_cost(dense, least), _network_cost(dense, most)


def _each(choose: Callable[[Sequence[int]], int], costs: Sequence[Cost]) -> Cost:
    return choose([params for params, _ in costs]), choose([macs for _, macs in costs])

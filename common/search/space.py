"""What a search chooses from: the levels of every layer, and the plan that a choice of levels stands for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from optuna.distributions import IntDistribution
from torch import Tensor, nn

from common.network import profile
from common.network.shapes import trace_layers
from common.planning import Budget
from common.planning.allocation import Options, allocate
from common.planning.costs import plan_cost
from common.planning.decompositions import Decompositions
from common.planning.methods import decompositions_of
from common.planning.options import Divergences, layer_options
from common.planning.plan import RankPlan
from common.search.candidates import Candidate, Candidates, layer_candidates, option_candidates, plan_of

Levels = dict[str, int]
"""Layer -> index of the candidate it takes."""


class Space:
    """The levels of every layer, and the plans that they stand for.

    With a budget it also holds every rank of every layer, so that it can fit any choice of levels to the budget. It
    does not fit the candidates of a policy that has its own.

    Args:
        model: the dense network.
        x: one example input ``(N, C, H, W)``.
        decompositions: of ``model``.
        method: the decomposition, or ``mixed``.
        budget: every plan is fitted to it. None takes the chosen candidates as they are.
        divergences: layer -> measured divergences, see :func:`common.search.sensitivity.measure_divergences`.
        candidates: those of the policy, whose plans are taken as they are, also under a budget. None for those of the
            levels' sizes.

    Attributes:
        fits_budget: whether there is a budget and every plan is fitted to it.

    Raises:
        ValueError: the budget cannot be met. The message names the least that can.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        decompositions: Decompositions,
        method: str,
        budget: Budget | None = None,
        divergences: Divergences | None = None,
        candidates: Candidates | None = None,
    ) -> None:
        self.method, self.budget = method, budget
        self.shapes = trace_layers(model, x)
        cost = profile(model, x)
        self._whole = (cost.params, cost.macs)
        self.dense = (cost.params_in_use, cost.macs)  # what a budget is a fraction of
        own = [sum(costs) for costs in zip(*(shape.dense_cost for shape in self.shapes.values()), strict=True)]
        self.rest = (self.dense[0] - own[0], self.dense[1] - own[1])
        self.options: dict[str, Options] = {}
        self.allocation: RankPlan | None = None
        self.fits_budget = budget is not None and candidates is None
        if not self.fits_budget:
            self.candidates: Candidates = candidates or layer_candidates(self.shapes, decompositions, method)
            return
        methods = decompositions_of(method)
        self.options = {
            name: layer_options(name, shape, decompositions, methods, divergences=divergences)
            for name, shape in self.shapes.items()
        }
        self.allocation = self._allocate({})
        self.candidates = option_candidates(self.options)
        self._losses = {
            name: dict(zip(options.plans, options.loss.tolist(), strict=True))
            for name, options in self.options.items()
        }

    def distributions(self) -> dict[str, IntDistribution]:
        """Layer -> the range of its levels."""
        levels = {
            name: [level for level, choice in enumerate(choices) if choice]
            for name, choices in self.candidates.items()
        }
        return {name: IntDistribution(known[0], known[-1]) for name, known in levels.items()}

    def plan(self, levels: Mapping[str, int], rule: str) -> RankPlan:
        """The plan that ``levels`` stand for. With a budget to fit, the plan fills it.

        A level implies a price per size: the price at which its layer would choose it. The plan has the least loss
        within the budget if each layer's loss is divided by its price. Thus the levels decide how the layers share
        the budget, and levels that all imply the same price give the budget's own allocation.

        Args:
            levels: layer -> index of its level.
            rule: name of the rule, for the plan.
        """
        if not self.fits_budget:
            return plan_of(self.candidates, levels, self.method, rule)
        weights = {name: 1 / price for name, price in self._prices(levels).items()}
        return replace(self._allocate(weights), rule=rule)

    def _allocate(self, weights: Mapping[str, float]) -> RankPlan:
        assert self.budget is not None
        options = {
            name: replace(options, loss=options.loss * weights.get(name, 1.0))
            for name, options in self.options.items()
        }
        layers = allocate(options, self.budget, self.dense, self.rest)
        return RankPlan(layers, self.method, "budget", {"params": self.budget.params, "macs": self.budget.macs})

    def _prices(self, levels: Mapping[str, int]) -> dict[str, float]:
        """Layer -> its price in units of the median price, without the layers that have only one level."""
        prices = {}
        for name, level in levels.items():
            choices = [choice for choice in self.candidates[name] if choice]
            if len(choices) > 1:
                sizes, losses = (
                    [self.size(choice) for choice in choices],
                    [choice.loss for choice in choices],
                )
                prices[name] = _price(sizes, losses, level - (len(self.candidates[name]) - len(choices)))
        typical = statistics.median(price for price in prices.values() if price > 0) if any(prices.values()) else 1.0
        return {name: min(max(price / typical, 1e-6), 1e6) for name, price in prices.items()}

    def size(self, choice: Candidate) -> float:
        """The candidate's share of the whole network, averaged over the costs that the budget limits."""
        budget = self.budget or Budget(params=1.0, macs=1.0)
        shares = [
            cost / dense
            for cost, dense, limit in zip(
                (choice.params, choice.macs), self.dense, (budget.params, budget.macs), strict=True
            )
            if limit is not None
        ]
        return sum(shares) / len(shares)

    def predicted_loss(self, plan: RankPlan) -> float:
        """The predicted loss of a plan that was fitted to the budget, summed over its layers."""
        return sum(self._losses[name][layer] for name, layer in plan.factored.items())

    def cost(self, plan: RankPlan) -> tuple[int, int]:
        """Parameters and MACs of the network that ``plan`` makes, without building it."""
        return plan_cost(self.shapes, self._whole, plan)

    def levels_of(self, plan: RankPlan) -> Levels:
        """Layer -> the level whose size is nearest to the layer's size in the plan."""
        found = {}
        for name, layer in plan.layers.items():
            params = self.shapes[name].cost(layer)[0]
            factored = [level for level, choice in enumerate(self.candidates[name][:-1]) if choice]
            if layer.method is None or not factored:
                found[name] = len(self.candidates[name]) - 1
            else:
                found[name] = min(factored, key=lambda level: abs(math.log(self._params(name, level) / params)))
        return found

    def _params(self, name: str, level: int) -> int:
        choice = self.candidates[name][level]
        assert choice is not None
        return choice.params


def _price(sizes: Sequence[float], losses: Sequence[float], index: int) -> float:
    """The price per size at which a layer would choose option ``index``, or a better one that is no larger.

    It is the geometric mean of the slopes of the layer's convex hull on both sides. The smallest option has only one
    slope and takes twice its value; the dense one takes half of its only slope.

    Args:
        sizes: the sizes of the layer's options.
        losses: their predicted losses.
        index: the option.
    """
    size, loss = min(zip(sizes, losses, strict=True), key=lambda o: (o[0] > sizes[index], o[1], o[0]))
    left = [(loss - other) / (smaller - size) for smaller, other in zip(sizes, losses, strict=True) if smaller < size]
    right = [(loss - other) / (larger - size) for larger, other in zip(sizes, losses, strict=True) if larger > size]
    if left and right:
        return math.sqrt(max(min(left), 0.0) * max(max(right), 0.0))
    return 2 * max(right, default=0.0) if right else min(left) / 2

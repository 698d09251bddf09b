"""Search policy ``budget``: the budget's own allocation by measured divergence."""

from __future__ import annotations

from optuna.samplers import BaseSampler
from torch import Tensor, nn

from common.planning import RankPlan
from common.planning.decompositions import Decompositions
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.largest import plan_sampler
from common.search.space import Space


class Allocation(SearchPolicy):
    """The plan of the rank rule ``Budget``."""

    name = "budget"
    kind = "rule"
    needs_budget = True
    has_single_plan = True

    def single_plan(
        self, model: nn.Module, x: Tensor, decompositions: Decompositions, space: Space
    ) -> RankPlan | None:
        """The space's allocation."""
        return space.allocation

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """Proposes the allocation."""
        return plan_sampler(start, plan)


POLICIES.add(Allocation())

"""Search policy ``budget``: the budget's own allocation, by measured divergence."""

from __future__ import annotations

from torch import Tensor, nn

from common.planning import RankPlan
from common.planning.decompositions import Decompositions
from common.search.policies.base import POLICIES, SinglePlan
from common.search.space import Space


class Allocation(SinglePlan):
    """The plan of the rank rule ``Budget``."""

    name = "budget"

    def single_plan(
        self, model: nn.Module, x: Tensor, decompositions: Decompositions, space: Space
    ) -> RankPlan | None:
        """The space's allocation."""
        return space.allocation


POLICIES.add(Allocation())

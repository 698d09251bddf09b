"""Search policy ``energy``: every layer keeps the same share of its energy."""

from __future__ import annotations

from torch import Tensor, nn

from common.planning import Energy
from common.planning.decompositions import Decompositions
from common.search.policies.base import POLICIES
from common.search.policies.largest import LargestPlan, PlansAt, plans_by


class SameEnergy(LargestPlan):
    """The rank rule ``Energy`` at the greatest threshold that keeps to the budget."""

    name = "energy"

    def plans_at(self, model: nn.Module, x: Tensor, decompositions: Decompositions, method: str) -> PlansAt:
        """Plans of ``Energy(share)``."""
        return plans_by(lambda share: Energy(share, only_if_smaller=False), model, x, decompositions, method)


POLICIES.add(SameEnergy())

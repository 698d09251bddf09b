"""Search policy ``uniform``: every layer keeps the same share of its ranks."""

from __future__ import annotations

from torch import Tensor, nn

from common.planning import Fixed
from common.planning.decompositions import Decompositions
from common.search.policies.base import POLICIES
from common.search.policies.largest import LargestPlan, PlansAt, plans_by


class SameRanks(LargestPlan):
    """The rank rule ``Fixed`` at the greatest share that keeps to the budget."""

    name = "uniform"
    mixes_methods = False
    least_share = 2.0**-24  # rank 1 in every layer

    def plans_at(self, model: nn.Module, x: Tensor, decompositions: Decompositions, method: str) -> PlansAt:
        """Plans of ``Fixed(share)``."""
        return plans_by(lambda share: Fixed(share, only_if_smaller=False), model, x, decompositions, method)


POLICIES.add(SameRanks())

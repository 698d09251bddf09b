"""Search policy ``vbmf``: the ranks of variational Bayes, times a common factor."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from common.planning import VBMF, LayerPlan, RankPlan, plan_ranks
from common.planning.decompositions import Decompositions
from common.search.policies.base import POLICIES
from common.search.policies.largest import LargestPlan, PlansAt


class ScaledVBMF(LargestPlan):
    """The rank rule ``VBMF``, its ranks times the greatest factor that keeps to the budget."""

    name = "vbmf"

    def plans_at(self, model: nn.Module, x: Tensor, decompositions: Decompositions, method: str) -> PlansAt:
        """Plans whose ranks are a common factor times those of ``VBMF``."""
        plan = plan_ranks(model, x, method, VBMF(only_if_smaller=False), decompositions=decompositions)
        return _scaled(plan, decompositions)


POLICIES.add(ScaledVBMF())


def _scaled(found: RankPlan, decompositions: Decompositions) -> PlansAt:
    """Scale the ranks of a plan by a common factor, from rank 1 in every mode to the greatest rank of each."""
    limits = {name: decompositions.get(name, str(layer.method)).max_ranks for name, layer in found.factored.items()}
    factors = [
        max(limit / rank, rank)
        for name, layer in found.factored.items()
        for rank, limit in zip(layer.ranks, limits[name], strict=True)
    ]
    most = max(factors, default=1.0)

    def scaled(share: float) -> list[RankPlan]:
        layers: dict[str, LayerPlan] = dict(found.layers)
        for name, layer in found.factored.items():
            # The factor grows geometrically: most layers need one near 1, a few could take a hundred.
            wanted = [round(rank * most ** (2 * share - 1)) for rank in layer.ranks]
            ranks = tuple(min(max(rank, 1), limit) for rank, limit in zip(wanted, limits[name], strict=True))
            layers[name] = replace(layer, ranks=decompositions.get(name, str(layer.method)).fit(ranks))
        return [replace(found, layers=layers)]

    return scaled

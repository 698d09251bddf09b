"""The plans of the rank rules at a budget, the comparison for every policy."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from common.planning import RankPlan, plan_ranks
from common.planning.layers import Decompositions
from common.planning.plan import LayerPlan
from common.planning.planner import dense_unless_smaller
from common.search.space import Space

STEPS = 400


def rule_plan(rule: str, model: nn.Module, x: Tensor, decompositions: Decompositions, space: Space) -> RankPlan:
    """The largest plan of a rank rule that keeps to the space's budget.

    ``budget`` is the allocation by measured harm. ``uniform`` gives every layer the same share of its ranks,
    ``energy`` the ranks that keep the same share of the energy, and ``vbmf`` those of variational Bayes times a common
    factor; the share or factor is the greatest of 400 that fits.

    Args:
        rule: one of ``RULES``.
        model: the dense network.
        x: one example input ``(N, C, H, W)``.
        decompositions: of ``model``.
        space: of ``model``, with a budget.

    Raises:
        ValueError: not even the least share keeps to the budget.
    """
    assert space.allocation is not None
    if rule == "budget":
        return space.allocation
    make = _family(rule, model, x, decompositions, space)
    steps = range(1, STEPS + 1)
    fitting = bisect.bisect_left(steps, True, key=lambda step: not _fits(space, make(step / STEPS)))
    if not fitting:
        raise ValueError(f"policy={rule!r}: {space.budget} cannot be met by this rule, however few ranks it keeps")
    return replace(make(fitting / STEPS), rule=rule)


def _family(
    rule: str, model: nn.Module, x: Tensor, decompositions: Decompositions, space: Space
) -> Callable[[float], RankPlan]:
    """The rule's plans by a share in (0, 1]; the greater it is, the larger the plan."""
    method = space.method
    if rule == "uniform":
        return lambda share: plan_ranks(model, x, method, "fixed", ranks=share, decompositions=decompositions)
    if rule == "energy":
        return lambda share: plan_ranks(model, x, method, "energy", threshold=share, decompositions=decompositions)
    found = plan_ranks(model, x, method, "vbmf", decompositions=decompositions, only_if_smaller=False)
    limits = {name: decompositions.get(name, str(layer.method)).max_ranks for name, layer in found.factored.items()}
    most = max(
        max(limit / rank, rank)
        for name, layer in found.factored.items()
        for rank, limit in zip(layer.ranks, limits[name], strict=True)
    )

    def scaled(share: float) -> RankPlan:
        layers: dict[str, LayerPlan] = dict(found.layers)
        for name, layer in found.factored.items():
            # Geometric steps: most layers need a factor near 1, a few could take a hundred.
            wanted = [round(rank * most ** (2 * share - 1)) for rank in layer.ranks]
            ranks = tuple(min(max(rank, 1), limit) for rank, limit in zip(wanted, limits[name], strict=True))
            fitted = decompositions.get(name, str(layer.method)).fit(ranks)
            layers[name] = dense_unless_smaller(space.shapes[name], replace(layer, ranks=fitted))
        return replace(found, layers=layers)

    return scaled


def _fits(space: Space, plan: RankPlan) -> bool:
    assert space.budget is not None
    return space.budget.allows(space.cost(plan), space.dense)

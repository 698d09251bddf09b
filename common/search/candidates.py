"""The candidates of each layer, of which a search policy picks one."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.network.shapes import LayerShape, dense_reason
from common.planning.allocation import Options
from common.planning.decompositions import Decompositions, layer_method
from common.planning.methods import decompositions_of
from common.planning.plan import LayerPlan, RankPlan

LEVEL_SHARES = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.45, 0.65, 1.0)
"""For each level the share of a layer's parameters that its candidate may keep. The last level is the dense layer."""
LEVEL_NAMES = (*(f"{level:.0%}" for level in LEVEL_SHARES[:-1]), "dense")


@dataclass(frozen=True)
class Candidate:
    """A plan for one layer.

    Attributes:
        plan: the plan.
        params, macs: the layer's cost under the plan.
        error: the layer's relative error. NaN if the search has a budget.
        loss: the predicted loss. NaN if the search has no budget.
    """

    plan: LayerPlan
    params: int
    macs: int
    error: float
    loss: float = math.nan


Candidates = Mapping[str, tuple[Candidate | None, ...]]
"""Layer -> one entry for each level; None if not even rank 1 is that small."""


def layer_candidates(shapes: Mapping[str, LayerShape], decompositions: Decompositions, method: str) -> Candidates:
    """For each layer and level, the candidate with the greatest ranks that fits.

    All modes have the same share of their greatest rank. A candidate never has more MACs than the dense layer.
    """
    return {name: _candidates(name, shape, decompositions, method) for name, shape in shapes.items()}


def planned_candidates(shapes: Mapping[str, LayerShape], decompositions: Decompositions, plan: RankPlan) -> Candidates:
    """The candidates of each layer by the method that ``plan`` gives it.

    A layer that stays dense gets the first decomposition of the plan's method.
    """
    first = decompositions_of(plan.method)[0]
    return {
        name: _candidates(name, shape, decompositions, plan.layers[name].method or first)
        for name, shape in shapes.items()
    }


def _candidates(
    name: str, shape: LayerShape, decompositions: Decompositions, method: str
) -> tuple[Candidate | None, ...]:
    dense_params, dense_macs = shape.dense_cost
    dense = Candidate(LayerPlan(reason="the policy chose it dense"), dense_params, dense_macs, 0.0)
    if dense_reason(shape):
        return (*[None] * (len(LEVEL_SHARES) - 1), dense)
    chosen = layer_method(method, shape)
    decomposition = decompositions.get(name, chosen)
    steps = range(1, max(decomposition.max_ranks) + 1)

    def kept(step: int) -> float:
        params, macs = shape.cost(decompositions.plan(name, chosen, decomposition.fraction(step / len(steps))))
        return params / dense_params if macs <= dense_macs else float("inf")

    found: list[Candidate | None] = []
    for share in LEVEL_SHARES[:-1]:
        step = bisect.bisect_right(steps, share, key=kept)
        if step:
            ranks = decomposition.fraction(step / len(steps))
            plan = decompositions.plan(name, chosen, ranks)
            found.append(Candidate(plan, *shape.cost(plan), decomposition.relative_error(ranks)))
        else:
            found.append(None)
    return (*found, dense)


def option_candidates(options: Mapping[str, Options]) -> Candidates:
    """For each layer and level, the option with the least loss that fits."""
    found: dict[str, tuple[Candidate | None, ...]] = {}
    for name, layer in options.items():
        dense = int(np.argmax(layer.params))
        choices: list[Candidate | None] = []
        for share in LEVEL_SHARES[:-1]:
            fitting = np.flatnonzero(layer.params <= share * layer.params[dense])
            best = fitting[np.argmin(layer.loss[fitting])] if len(fitting) else None
            choices.append(None if best is None else _option(layer, int(best)))
        found[name] = (*choices, _option(layer, dense))
    return found


def _option(options: Options, index: int) -> Candidate:
    params, macs = int(options.params[index]), int(options.macs[index])
    return Candidate(options.plans[index], params, macs, math.nan, float(options.loss[index]))


def plan_of(candidates: Candidates, levels: Mapping[str, int], method: str, rule: str) -> RankPlan:
    """The plan that takes each layer's candidate at its level.

    Args:
        candidates: the candidates of each layer.
        levels: layer -> index of its level.
        method: name of the method, for the plan.
        rule: name of the rule, for the plan.
    """
    layers = {}
    for name, index in levels.items():
        candidate = candidates[name][index]
        assert candidate is not None
        layers[name] = candidate.plan
    return RankPlan(layers, method, rule)

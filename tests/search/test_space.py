from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from common.calibration import calibrate
from common.compression import compress
from common.network import profile
from common.network.shapes import trace_layers
from common.planning import Budget, Fixed, RankPlan, plan_ranks
from common.planning.decompositions import Decompositions
from common.planning.options import layer_options
from common.search.candidates import LEVEL_SHARES, option_candidates
from common.search.policies import POLICIES
from common.search.probabilities import Probabilities, budget_logits
from common.search.space import Space, _price
from tests.networks import TinyCNN, tiny_cnn, tiny_digits

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
DIVERGENCES = {
    "stem.0": [(0.5, 1.0)],
    "conv": [(0.1, 0.02), (0.5, 0.5)],
    "shortcut": [(0.5, 0.3)],
    "head": [(0.5, 2.0)],
}


def planned_by(
    policy: str, model: torch.nn.Module, x: torch.Tensor, decompositions: Decompositions, space: Space
) -> RankPlan:
    plan = POLICIES[policy].single_plan(model, x, decompositions, space)
    assert plan is not None
    return plan


@pytest.fixture(scope="module")
def model() -> TinyCNN:
    return tiny_cnn(width=32)


@pytest.fixture(scope="module")
def decompositions(model: TinyCNN) -> Decompositions:
    return Decompositions(model, calibrate(model, tiny_digits().calibration))


def make_space(model: TinyCNN, decompositions: Decompositions, **budget: Any) -> Space:
    return Space(model, X, decompositions, "svd", Budget(**budget), DIVERGENCES)


@pytest.mark.parametrize("budget", [{"params": 0.4}, {"macs": 0.3}, {"params": 0.5, "macs": 0.4}])
def test_every_choice_of_levels_becomes_a_plan_that_fills_the_budget(
    budget: dict[str, float], model: TinyCNN, decompositions: Decompositions
) -> None:
    space = make_space(model, decompositions, **budget)
    dense = profile(model, X)
    generator = np.random.default_rng(0)
    for _ in range(20):
        levels = {
            name: int(generator.integers(d.low, d.high, endpoint=True)) for name, d in space.distributions().items()
        }
        plan = space.plan(levels, "test")
        small = profile(compress(model, plan, decompositions=decompositions), X)
        assert space.cost(plan) == (small.params, small.macs)
        kept = {"params": small.params / dense.params, "macs": small.macs / dense.macs}
        slack = [share - kept[name] for name, share in budget.items()]
        assert min(slack) >= 0
        assert min(slack) < 0.04


def test_the_first_plan_is_the_budgets_own_allocation(model: TinyCNN, decompositions: Decompositions) -> None:
    space = make_space(model, decompositions, macs=0.3)
    plan = plan_ranks(model, X, "svd", Budget(macs=0.3), divergences=DIVERGENCES, decompositions=decompositions)
    assert space.allocation is not None
    assert space.allocation.layers == plan.layers
    for other in (
        {"stem.0": 9, "conv": 2, "shortcut": 4, "head": 9},
        {"stem.0": 6, "conv": 9, "shortcut": 5, "head": 6},
    ):
        levels = {name: max(level, space.distributions()[name].low) for name, level in other.items()}
        assert space.predicted_loss(space.plan(levels, "")) >= space.predicted_loss(plan) * (1 - 1e-9)


def test_a_layer_that_is_lowered_alone_shrinks_and_the_others_gain(
    model: TinyCNN, decompositions: Decompositions
) -> None:
    space = make_space(model, decompositions, params=0.4)
    assert space.allocation is not None
    levels = space.levels_of(space.allocation)
    lowered = {**levels, "conv": levels["conv"] - 2}

    def params(chosen: dict[str, int]) -> dict[str, int]:
        return {name: space.shapes[name].cost(layer)[0] for name, layer in space.plan(chosen, "").layers.items()}

    before, after = params(levels), params(lowered)
    assert after["conv"] < before["conv"]
    assert all(after[name] >= before[name] for name in before if name != "conv")


def test_prices_by_hand() -> None:
    """Sizes 1, 2, 4 with divergences 7, 3, 1: the slopes are 4 and 1."""
    sizes, divergences = [1.0, 2.0, 4.0], [7.0, 3.0, 1.0]
    assert [_price(sizes, divergences, index) for index in range(3)] == pytest.approx([8.0, 2.0, 0.5])
    assert _price(sizes, [1.0, 1.0, 1.0], 1) == 0


def test_a_dominated_candidate_has_the_price_of_the_one_that_dominates_it() -> None:
    """Levels are defined by parameters, so their sizes under a budget for MACs need not ascend."""
    sizes, divergences = [1.0, 3.0, 2.0, 4.0], [7.0, 5.0, 3.0, 1.0]
    assert _price(sizes, divergences, 1) == _price(sizes, divergences, 2) == pytest.approx(2.0)
    assert [_price(sizes, divergences, index) for index in (0, 3)] == pytest.approx([8.0, 0.5])


def test_candidates_of_a_budget_have_the_least_loss_of_their_size(
    model: TinyCNN, decompositions: Decompositions
) -> None:
    options = {
        name: layer_options(name, shape, decompositions, ("svd",), divergences=DIVERGENCES)
        for name, shape in trace_layers(model, X).items()
    }
    for name, choices in option_candidates(options).items():
        dense = max(options[name].params)
        for share, choice in zip(LEVEL_SHARES, choices, strict=True):
            fitting = options[name].loss[options[name].params <= share * dense]
            assert (choice is None) == (len(fitting) == 0)
            if choice is not None:
                assert choice.loss == fitting.min()
                assert choice.params <= share * dense
        assert choices[-1] is not None
        assert choices[-1].plan.method is None


def test_levels_of_a_plan_are_the_nearest(model: TinyCNN, decompositions: Decompositions) -> None:
    space = make_space(model, decompositions, params=0.4)
    plan = plan_ranks(model, X, "svd", Fixed({"conv": 8}), decompositions=decompositions)
    levels = space.levels_of(plan)
    assert all(level == len(LEVEL_SHARES) - 1 for name, level in levels.items() if name != "conv")
    params = space.shapes["conv"].cost(plan.layers["conv"])[0]
    distances = [
        abs(math.log(choice.params / params)) if choice else math.inf for choice in space.candidates["conv"][:-1]
    ]
    assert levels["conv"] == distances.index(min(distances))


@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_the_first_policy_expects_the_budget_and_closes_in_on_its_allocation(
    kept: float, model: TinyCNN, decompositions: Decompositions
) -> None:
    space = make_space(model, decompositions, params=kept)
    assert space.allocation is not None
    allocated = space.levels_of(space.allocation)
    likely = []
    for temperature in (3.0, 0.3, 0.03):
        rows = Probabilities(budget_logits(space, temperature=temperature)).by_layer
        expected = space.rest[0] + sum(
            probability * choice.params
            for name, row in rows.items()
            for probability, choice in zip(row, space.candidates[name], strict=True)
            if choice
        )
        assert expected == pytest.approx(kept * space.dense[0], rel=1e-3)
        likely.append(sum(rows[name][level] for name, level in allocated.items()) / len(rows))
    assert likely[0] < likely[-1] > 0.8


@pytest.mark.parametrize("rule", ["uniform", "energy", "vbmf"])
@pytest.mark.parametrize("macs", [0.25, 0.7])
def test_a_rule_takes_the_largest_of_its_plans_that_fits(
    rule: str, macs: float, model: TinyCNN, decompositions: Decompositions
) -> None:
    space = make_space(model, decompositions, macs=macs)
    plan = planned_by(rule, model, X, decompositions, space)
    kept = space.cost(plan)[1] / space.dense[1]
    assert macs - 0.2 < kept <= macs
    if rule == "uniform":
        shares = [
            share / 400
            for share in range(1, 401)
            if space.cost(plan_ranks(model, X, "svd", Fixed(share / 400), decompositions=decompositions))[1]
            <= macs * space.dense[1]
        ]
        best = plan_ranks(model, X, "svd", Fixed(max(shares)), decompositions=decompositions)
        assert plan.layers == best.layers


def test_a_budget_that_a_rule_cannot_meet_is_refused(model: TinyCNN, decompositions: Decompositions) -> None:
    space = make_space(model, decompositions, params=0.3)
    space.budget = Budget(params=0.03)  # below the cost of rank 1 in all layers
    with pytest.raises(ValueError, match=r"^policy='energy': Budget\(params=0.03, .* cannot be met by this rule"):
        planned_by("energy", model, X, decompositions, space)


def test_a_latency_is_refused(model: TinyCNN, decompositions: Decompositions) -> None:
    with pytest.raises(ValueError, match="the latency was not measured"):
        make_space(model, decompositions, latency=0.5)

"""The plan of a rank rule fills the budget: it fits, and no larger plan of the rule does."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from torch import nn

from common.calibration import calibrate
from common.data import load_data
from common.network import profile
from common.network.shapes import trace_layers
from common.notebook.steps import arsvd_within
from common.planning import VBMF, Budget, Energy, Entropy, Fixed, RankPlan, plan_ranks
from common.planning.costs import plan_cost
from common.planning.decompositions import Decompositions
from common.search import SearchSettings, search_ranks
from common.search.policies import POLICIES
from common.search.policies.largest import largest_within
from common.search.space import Space
from tests.networks import tiny_cnn

METHODS = ("svd", "spatial_svd", "tucker2", "htd", "mixed")
FAMILIES = [(rule, method) for rule in ("energy", "uniform", "vbmf") for method in METHODS]
FAMILIES.remove(("uniform", "mixed"))
X = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@functools.cache
def planned_by(
    policy: str, model: nn.Module, x: torch.Tensor, decompositions: Decompositions, space: Space
) -> RankPlan:
    plan = POLICIES[policy].single_plan(model, x, decompositions, space)
    assert plan is not None
    return plan


def network() -> nn.Module:
    """A network with layers of all kinds, whose energy is concentrated in few directions to different degrees."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 18, (3, 2), stride=(2, 1), padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(18, 12, 2, stride=2),
        nn.Conv2d(12, 20, 1),
        nn.Conv2d(20, 10, 5, padding=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(40, 30),
    )
    with torch.no_grad():
        for power, weight in enumerate(parameter for parameter in model.parameters() if parameter.dim() > 1):
            weight.mul_(torch.rand(weight.shape) ** (2 * power))
    return model.eval()


@functools.cache
def decompositions(data_aware: bool) -> Decompositions:
    return Decompositions(network(), calibrate(network(), [X]) if data_aware else None)


@functools.cache
def dense() -> tuple[int, int]:
    cost = profile(network(), X[:1])
    return cost.params, cost.macs


@functools.cache
def space(method: str, data_aware: bool) -> Space:
    return Space(network(), X[:1], decompositions(data_aware), method, Budget(params=1.0))


def planned(rule: str, method: str, share: float, data_aware: bool) -> RankPlan:
    """Return the rule's plan by the planner itself."""
    how = Energy(share) if rule == "energy" else Fixed(share)
    return plan_ranks(network(), X[:1], method, how, decompositions=decompositions(data_aware))


@functools.cache
def costs(rule: str, method: str, data_aware: bool) -> list[tuple[int, int]]:
    """Return the costs of the plans at a thousand shares, most of which are close to 1."""
    shares = [*np.linspace(0.001, 1, 500).tolist(), *(1 - np.logspace(-12, -1, 500)).tolist()]
    shapes = space(method, data_aware).shapes
    return [plan_cost(shapes, dense(), planned(rule, method, share, data_aware)) for share in shares]


def size(cost: tuple[int, int], budget: Budget) -> float:
    limits = (budget.params, budget.macs)
    return sum(part / whole for part, whole, limit in zip(cost, dense(), limits, strict=True) if limit)


SHARES = st.floats(0.02, 1.0)
BUDGETS = st.one_of(
    st.builds(Budget, params=SHARES), st.builds(Budget, macs=SHARES), st.builds(Budget, params=SHARES, macs=SHARES)
)


@pytest.mark.parametrize("data_aware", [False, True])
@pytest.mark.parametrize(("rule", "method"), [family for family in FAMILIES if family[0] != "vbmf"])
@given(budget=BUDGETS)
@tries(max_examples=20)
def test_no_larger_plan_of_the_rule_fits(rule: str, method: str, data_aware: bool, budget: Budget) -> None:
    asked = space(method, data_aware)
    asked.budget = budget
    fitting = [size(cost, budget) for cost in costs(rule, method, data_aware) if budget.allows(cost, dense())]
    try:
        plan = planned_by(rule, network(), X[:1], decompositions(data_aware), asked)
    except ValueError as error:
        assert "cannot be met by this rule" in str(error)  # noqa: PT017
        assert not fitting
        return
    assert budget.allows(asked.cost(plan), dense())
    assert size(asked.cost(plan), budget) >= max(fitting, default=0.0)
    share = next(iter(plan.settings.values()))
    assert dict(planned(rule, method, share, data_aware).layers) == dict(plan.layers), "the setting gives this plan"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [Budget(params=0.3), Budget(macs=0.6), Budget(params=0.5, macs=0.4)])
def test_no_larger_multiple_of_the_vbmf_ranks_fits(method: str, budget: Budget) -> None:
    asked = space(method, False)
    asked.budget = budget
    plan = planned_by("vbmf", network(), X[:1], decompositions(False), asked)
    assert budget.allows(asked.cost(plan), dense())
    found = plan_ranks(network(), X[:1], method, VBMF(only_if_smaller=False), decompositions=decompositions(False))
    best = 0.0
    for factor in np.geomspace(0.02, 50, 2000):
        ranks = {}
        for name, layer in found.factored.items():
            decomposition = decompositions(False).get(name, str(layer.method))
            limits = zip(layer.ranks, decomposition.max_ranks, strict=True)
            ranks[name] = decomposition.fit(tuple(min(max(1, round(rank * factor)), most) for rank, most in limits))
        cost = np.array(dense())
        for name, shape in asked.shapes.items():
            layer = found.layers[name]
            made = (
                np.array(shape.cost(type(layer)(layer.method, ranks[name]))) if name in ranks else np.array([9e9, 0])
            )
            if made[0] < shape.dense_cost[0] and made[1] <= shape.dense_cost[1]:
                cost += made - np.array(shape.dense_cost)
        if budget.allows((int(cost[0]), int(cost[1])), dense()):
            best = max(best, size((int(cost[0]), int(cost[1])), budget))
    assert size(asked.cost(plan), budget) >= best > 0


@functools.cache
def arsvd_costs(data_aware: bool) -> list[int]:
    """The parameters that ARSVD keeps at a thousand values of tau, half of them close to 1."""
    shapes = trace_layers(network(), X[:1])
    taus = [*np.linspace(0, 1, 500).tolist(), *(1 - np.logspace(-12, -1, 500)).tolist()]
    return [
        plan_cost(
            shapes,
            dense(),
            plan_ranks(network(), X[:1], "arsvd", Entropy(tau), decompositions=decompositions(data_aware)),
        )[0]
        for tau in taus
    ]


@pytest.mark.parametrize("data_aware", [False, True])
def test_arsvd_at_a_share_of_the_parameters_fills_it(data_aware: bool) -> None:
    shapes = trace_layers(network(), X[:1])
    for share in (0.12, 0.3, 0.62):
        plan = arsvd_within(share, network(), X[:1], decompositions(data_aware))
        fitting = [cost for cost in arsvd_costs(data_aware) if cost <= share * dense()[0]]
        assert plan_cost(shapes, dense(), plan)[0] == max(fitting)


def test_arsvd_says_when_no_tau_keeps_to_the_share() -> None:
    with pytest.warns(UserWarning, match=r"^ARSVD keeps \d+\.\d% of the parameters at tau 0, more than 1\.0%$"):
        plan = arsvd_within(0.01, network(), X[:1], decompositions(False))
    assert all(layer.ranks == (1,) for layer in plan.factored.values())


def test_layers_whose_thresholds_coincide_change_together() -> None:
    """Two layers have the same weight, so no plan lies between both at rank k and both at rank k + 1."""
    torch.manual_seed(0)
    first = nn.Linear(16, 16)
    second = nn.Linear(16, 16)
    second.load_state_dict(first.state_dict())
    model = nn.Sequential(first, nn.ReLU(), second).eval()
    x = torch.randn(1, 16)
    shapes, cost = trace_layers(model, x), profile(model, x)

    def candidates(share: float) -> list[RankPlan]:
        return [plan_ranks(model, x, "svd", Energy(share, only_if_smaller=False))]

    for rank in range(1, 8):
        exact = 2 * (rank * 32 + 16)
        for params in (exact, exact + 31, exact + 63):
            found = largest_within(candidates, shapes, (cost.params, cost.macs), Budget(params=params / cost.params))
            assert found is not None
            assert [layer.ranks for layer in found.layers.values()] == [(rank,), (rank,)]


def test_a_network_without_a_layer_to_factor_is_its_own_plan() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Flatten()).eval()
    found = Decompositions(model)
    whole = Space(model, X[:1], found, "svd", Budget(params=1.0))
    for rule in ("energy", "uniform", "vbmf"):
        assert not planned_by(rule, model, X[:1], found, whole).factored


@pytest.mark.parametrize("method", ["svd", "tucker2", "htd"])
@pytest.mark.parametrize("policy", ["energy", "uniform", "vbmf"])
def test_a_search_by_a_rule_keeps_the_requested_share(
    method: Literal["svd", "tucker2", "htd"], policy: Literal["energy", "uniform", "vbmf"], tmp_path: Any
) -> None:
    data = load_data("digits", image_size=8, batch_size=32, limit=96)
    settings = SearchSettings(
        method=method, policy=policy, budget=Budget(macs=0.5), finetune_top=0, sensitivity_images=8, table=False
    )
    model = tiny_cnn(width=32)
    (record,) = search_ranks(model, data, settings, logs=tmp_path, run="r", on_trial=lambda _: None).records
    assert 0.45 < record.macs / record.baseline.macs <= 0.5
    shown = record.details.rule_settings
    assert all(0 < share <= 1 and math.isfinite(share) for share in shown.values())


def test_one_share_of_the_ranks_of_several_methods_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"policy='uniform' with method='mixed': the methods' ranks differ"):
        SearchSettings(method="mixed", policy="uniform", budget=Budget(params=0.5))

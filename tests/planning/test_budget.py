from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.calibration import calibrate
from common.compression import compress
from common.decomposition import DECOMPOSITIONS
from common.models import build_model
from common.network import profile
from common.planning import VBMF, Budget, Energy, Fixed, LayerPlan, RankPlan, plan_ranks
from common.planning.allocation import Options, allocate
from common.planning.decompositions import Decompositions
from tests.networks import tiny_cnn

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def options(seed: int, count: int) -> Options:
    """Random options with falling loss; the last one is dense."""
    generator = np.random.default_rng(seed)
    sizes = np.sort(generator.uniform(1, 100, (2, count)), axis=1)
    loss = np.sort(generator.exponential(size=count))[::-1].copy()
    loss[-1] = 0
    return Options([LayerPlan("svd", (index + 1,)) for index in range(count)], sizes[0], sizes[1], loss)


def dual_bound(options: dict[str, Options], limits: np.ndarray) -> float:
    """The greatest lower bound on the loss that two prices prove, on a grid of prices."""
    grid = np.concatenate([[0.0], np.logspace(-4, 2, 241)])
    bound = np.zeros((len(grid), len(grid)))
    for layer in options.values():
        first = layer.loss + np.outer(grid, layer.params)  # (prices, K)
        second = np.outer(grid, layer.macs)
        bound += np.array([(first + row).min(axis=1) for row in second]).T
    return float((bound - grid[:, None] * limits[0] - grid[None] * limits[1]).max())


@pytest.mark.parametrize(("params", "macs"), [(0.5, 0.5), (0.3, 0.4), (0.4, 0.3), (0.6, 0.45)])
@pytest.mark.parametrize("seed", range(3))
def test_two_budgets_cost_no_more_than_their_bound(seed: int, params: float, macs: float) -> None:
    """The loss is within half a percent of a lower bound, with layers as many and as unequal as a ResNet's."""
    generator = np.random.default_rng(seed)
    options, dense = {}, np.zeros(2)
    for index in range(40):
        size, work, weight, power = np.exp(generator.normal(size=4) * [1.5, 1.0, 1.0, 0.2])
        first, second = (np.append(values, 1.0) for values in generator.uniform(0.02, 0.95, (2, 300)))
        loss = weight * (0.5 * (1 - first) ** 2 + 0.5 * (1 - second) ** 2) ** power
        plans = [LayerPlan("tucker2", (rank, index + 1)) for rank in range(1, 301)] + [LayerPlan(reason="dense")]
        options[str(index)] = Options(plans, size * first, work * second, loss)
        dense += [size, work]
    chosen = allocate(options, Budget(params=params, macs=macs), dense.tolist(), [0.0, 0.0])
    loss = sum(float(layer.loss[list(layer.plans).index(chosen[name])]) for name, layer in options.items())
    bound = dual_bound(options, np.array([params, macs]) * dense)
    assert bound - 1e-9 <= loss <= 1.005 * bound


@pytest.mark.parametrize(
    "budget", [Budget(params=0.5), Budget(macs=0.4), Budget(params=0.5, macs=0.6), Budget(macs=1.0)]
)
@pytest.mark.parametrize("seed", range(5))
def test_an_allocation_is_close_to_the_optimum(seed: int, budget: Budget) -> None:
    """It meets the budget, and its loss is at most 15% above the least of all combinations."""
    layers = {str(index): options(10 * seed + index, 7) for index in range(4)}
    dense = tuple(sum(float(getattr(layer, cost)[-1]) for layer in layers.values()) for cost in ("params", "macs"))
    limits = [
        np.inf if share is None else share * whole
        for share, whole in zip((budget.params, budget.macs), dense, strict=True)
    ]
    best = np.inf
    for combination in itertools.product(range(7), repeat=4):
        chosen = list(zip(layers.values(), combination, strict=True))
        if sum(o.params[i] for o, i in chosen) <= limits[0] and sum(o.macs[i] for o, i in chosen) <= limits[1]:
            best = min(best, sum(o.loss[i] for o, i in chosen))
    plans = allocate(layers, budget, (dense[0], dense[1]), (0.0, 0.0))
    allocated = [(layers[name], plan.ranks[0] - 1) for name, plan in plans.items()]
    assert sum(o.params[i] for o, i in allocated) <= limits[0]
    assert sum(o.macs[i] for o, i in allocated) <= limits[1]
    assert sum(o.loss[i] for o, i in allocated) <= 1.15 * best + 1e-12


@pytest.fixture(scope="module")
def resnet18() -> tuple[nn.Module, Decompositions]:
    torch.manual_seed(0)
    model = build_model("resnet18", 10).eval()
    return model, Decompositions(model)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["svd", "tucker2", "htd", "mixed"])
def test_random_budgets_on_resnet18_are_met_within_one_percent(
    resnet18: tuple[nn.Module, Decompositions], method: str
) -> None:
    model, decompositions = resnet18
    x = torch.randn(1, 3, 64, 64)
    dense = profile(model, x)
    generator = np.random.default_rng(0)
    for _ in range(6):
        share = float(generator.uniform(0.05, 0.95))
        which = generator.integers(3)
        budget = [Budget(params=share), Budget(macs=share), Budget(params=share, macs=share)][which]
        plan = plan_ranks(model, x, method, budget, decompositions=decompositions)
        small = profile(compress(model, plan, decompositions=decompositions), x)
        kept_shares = [small.params / dense.params, small.macs / dense.macs]
        limited = [kept for kept, limit in zip(kept_shares, (budget.params, budget.macs), strict=True) if limit]
        assert max(limited) <= share
        assert max(limited) >= share - 0.01


def total_squared_error(plan: RankPlan, decompositions: Decompositions) -> float:
    """Sum of the layers' squared relative errors."""
    layers = ((decompositions.get(name, str(layer.method)), layer.ranks) for name, layer in plan.factored.items())
    return sum(decomposition.relative_error(ranks) ** 2 for decomposition, ranks in layers)


def test_a_budget_counts_the_whole_network_and_a_larger_one_is_never_worse() -> None:
    model = tiny_cnn(width=32)
    dense = profile(model, X)
    errors = []
    for share in (0.3, 0.5, 0.7, 0.9):
        plan = plan_ranks(model, X, "mixed", Budget(params=share))
        assert profile(compress(model, plan), X).params <= share * dense.params
        errors.append(total_squared_error(plan, Decompositions(model)))
    assert errors == sorted(errors, reverse=True)


def test_mixed_is_never_worse_than_any_single_method() -> None:
    model = tiny_cnn(width=32)
    decompositions = Decompositions(model, calibrate(model, [torch.randn(32, 3, 16, 16)]))

    def predicted_loss(method: str) -> float:
        plan = plan_ranks(model, X, method, Budget(macs=0.4), decompositions=decompositions)
        return total_squared_error(plan, decompositions)

    assert predicted_loss("mixed") <= 1.001 * min(predicted_loss(method) for method in DECOMPOSITIONS)


def test_without_round_to_only_the_ranks_of_wide_layers_are_aligned() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 100, 3), nn.Conv2d(100, 128, 3), nn.Conv2d(128, 144, 3)).eval()
    x = torch.randn(1, 3, 12, 12)
    decompositions = Decompositions(model)
    free = set()
    for kept in (0.2, 0.35, 0.5, 0.65):
        plan = plan_ranks(model, x, "tucker2", Budget(params=kept, round_to=None), decompositions=decompositions)
        assert (
            profile(compress(model, plan, decompositions=decompositions), x).params <= kept * profile(model, x).params
        )
        assert all(rank % 16 == 0 or rank in (128, 144) for rank in plan.layers["2"].ranks)
        free |= {rank % 16 for rank in plan.layers["1"].ranks}
    assert len(free) > 1


def test_round_to_gives_multiples_or_maxima() -> None:
    plan = plan_ranks(tiny_cnn(width=32), X, "mixed", Budget(params=0.5, round_to=8))
    assert plan.factored
    maxima = {3, 10, 32, 64}
    assert all(rank % 8 == 0 or rank in maxima for layer in plan.factored.values() for rank in layer.ranks)


def test_measured_divergences_shift_ranks_to_sensitive_layers() -> None:
    model = tiny_cnn(width=32)
    plain = plan_ranks(model, X, "svd", Budget(macs=0.2))
    divergences = {"conv": [(0.1, 0.1), (1.0, 1.0)], "stem.0": [(0.1, 100.0), (1.0, 1000.0)]}
    measured = plan_ranks(model, X, "svd", Budget(macs=0.2), divergences=divergences)
    assert "stem.0" in plain.factored
    assert measured.layers["stem.0"].method is None or measured.layers["stem.0"].ranks > plain.layers["stem.0"].ranks
    assert measured.layers["conv"].ranks <= plain.layers["conv"].ranks


def test_divergences_that_are_not_finite_are_refused() -> None:
    divergences = {"conv": [(0.1, float("nan"))]}
    with pytest.raises(ValueError, match=r"^divergences=\[\(0.1, nan\)\] for a layer: each must be a finite error"):
        plan_ranks(tiny_cnn(), X, "svd", Budget(macs=0.5), divergences=divergences)


def test_a_limit_that_is_rounded_down_can_be_met() -> None:
    """0.29 times 100 is 28.999999999999996 in floating point."""
    one = Options([LayerPlan("svd", (1,))], np.array([29.0]), np.array([29.0]), np.array([1.0]))
    assert allocate({"a": one}, Budget(params=0.29), (100.0, 100.0), (0.0, 0.0))["a"].ranks == (1,)
    assert Budget(params=0.29).allows((29, 29), (100, 100))
    assert not Budget(params=0.29).allows((30, 29), (100, 100))


def test_a_budget_that_cannot_be_met_names_the_least_that_can_be_kept() -> None:
    model = tiny_cnn()
    with pytest.raises(
        ValueError, match=r"Budget\(params=0.001, macs=None\) cannot be met: .* params=0\.\d{4}"
    ) as error:
        plan_ranks(model, X, "svd", Budget(params=0.001))
    least = float(str(error.value).split("params=")[-1].partition(";")[0])
    plan = plan_ranks(model, X, "svd", Budget(params=least))
    assert profile(compress(model, plan), X).params <= least * profile(model, X).params
    with pytest.raises(ValueError, match="cannot be met"):
        plan_ranks(model, X, "svd", Budget(params=least - 0.0002))


def test_limits_that_conflict_name_the_least_of_the_last_limit() -> None:
    """Each option is small in one size only."""
    plans = [LayerPlan("svd", (1,)), LayerPlan("svd", (2,))]
    one = Options(plans, np.array([1.0, 9.0]), np.array([9.0, 1.0]), np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match=r"keep to both; at params=0.2 the least found is macs=0.9000"):
        allocate({"a": one}, Budget(params=0.2, macs=0.2), (10.0, 10.0), (0.0, 0.0))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "a Budget needs params or macs"),
        ({"params": 0.0}, r"Budget\(params=0.0\): it must be in \(0, 1\]"),
        ({"macs": 1.5}, r"Budget\(macs=1.5\): it must be in \(0, 1\]"),
    ],
)
def test_invalid_budgets_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Budget(**arguments)


def test_invalid_combinations_of_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"divergences with rule=Energy\(.*\): only a Budget takes them"):
        plan_ranks(tiny_cnn(), X, "svd", Energy(), divergences={})
    with pytest.raises(ValueError, match=r"rule=VBMF\(.*\) with method='arsvd': it must be Entropy"):
        plan_ranks(tiny_cnn(), X, "arsvd", VBMF())
    with pytest.raises(ValueError, match="round_to=0: it must be a whole number of at least 1"):
        plan_ranks(tiny_cnn(), X, "svd", Budget(params=0.5, round_to=0))
    with pytest.raises(ValueError, match="method='mixed' with Fixed ranks"):
        plan_ranks(tiny_cnn(), X, "mixed", Fixed(3))


@pytest.mark.parametrize("seed", range(20))
def test_the_dense_network_meets_a_latency_budget_of_one(seed: int) -> None:
    """This holds whatever the order in which the seconds are summed."""
    seconds = np.random.default_rng(seed).random(40) * 1e-3
    one = np.array([1.0])
    layers = {
        str(index): Options([LayerPlan()], one, one, np.array([0.0]), np.array([part]))
        for index, part in enumerate(seconds)
    }
    whole = float(seconds.sum()) + 1.3e-3
    rest = whole - sum(sorted(seconds.tolist()))
    plans = allocate(layers, Budget(latency=1.0), (40.0, 40.0, whole), (0.0, 0.0, rest))
    assert all(plan.method is None for plan in plans.values())

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.compression import compress
from common.decomposition import DECOMPOSITIONS
from common.deploy import fold_batchnorm, merge_factors
from common.latency import LatencyTable
from common.latency.interpolation import bilinear
from common.latency.network import NetworkLatencies, network_fingerprint
from common.latency.operations import Operation, layer_operations, with_widths
from common.latency.pieces import greatest_ranks, needed_operations, rank_steps
from common.latency.references import reference_plans
from common.latency.table import Conditions, WholeNetwork
from common.network.kinds import CONVOLUTIONS, Convolution
from common.network.shapes import trace_layers
from common.planning import Budget, Fixed, LayerPlan, RankPlan, plan_ranks
from common.planning.decompositions import Decompositions
from tests.networks import tiny_cnn

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
METHODS = tuple(DECOMPOSITIONS)
CONDITIONS = Conditions("onnxruntime", "1", "a processor", 1, 2)
REST = 1e-4


def fake_seconds(operation: Operation, block: int = 16) -> float:
    """A machine that computes channels in blocks, and needs a little for every operation."""
    inputs, outputs = (-(-channels // block) * block for channels in operation.channels)
    area = operation.after[0] * operation.after[1]
    return 1e-6 + 1e-9 * inputs * outputs * operation.kernel[0] * operation.kernel[1] * area / operation.groups


def fake_table(
    model: nn.Module, methods: tuple[str, ...] = METHODS, block: int = 16, runtime: str = "onnxruntime"
) -> LatencyTable:
    shapes = trace_layers(model, X)
    seconds = {op: fake_seconds(op, block) for op in needed_operations(shapes.values(), methods)}
    table = LatencyTable(replace(CONDITIONS, runtime=runtime), seconds)
    table.networks[network_fingerprint(model, X)] = WholeNetwork(table.layers_seconds(shapes) + REST)
    return table


def of(table: LatencyTable, model: nn.Module, x: torch.Tensor = X) -> NetworkLatencies:
    return NetworkLatencies.of(table, model, x)


def whole_seconds(model: nn.Module, table: LatencyTable) -> float:
    return table.networks[network_fingerprint(model, X)].seconds


def predicted(model: nn.Module, table: LatencyTable, plan: RankPlan) -> float:
    return table.network_seconds(trace_layers(model, X), table.networks[network_fingerprint(model, X)], plan.layers)


@pytest.mark.parametrize("method", METHODS)
def test_the_operations_of_a_plan_are_the_layers_of_the_network(method: str) -> None:
    """The built factors, when traced, are the predicted operations."""
    model = tiny_cnn()
    plan = plan_ranks(model, X, method, Fixed(4, only_if_smaller=False))
    shapes = trace_layers(model, X)
    expected = []
    for name, layer in plan.layers.items():
        widths = (0, *layer.ranks, 0)
        for place, calls in enumerate(layer_operations(shapes[name], layer.method)):
            expected += [with_widths(call, widths[place], widths[place + 1]) for call in calls]
    built = needed_operations(trace_layers(compress(model, plan), X).values(), ())
    assert set(expected) == set(built)


@pytest.mark.parametrize(
    ("method", "ranks"),
    [("htd", (32, 96, 64)), ("htd", (64, 16, 32)), ("tucker2", (64, 16)), ("tucker2", (16, 128)), ("svd", 96)],
)
def test_a_prediction_sees_the_factors_as_they_are_deployed(method: str, ranks: tuple[int, ...] | int) -> None:
    """The predicted time is the sum over the operations of the network with merged factors."""
    model = tiny_cnn(width=64)
    plan = plan_ranks(model, X, method, Fixed({"conv": ranks}, only_if_smaller=False))
    deployed = trace_layers(merge_factors(fold_batchnorm(compress(model, plan)), X), X)
    built = LatencyTable(CONDITIONS, {op: fake_seconds(op) for op in needed_operations(deployed.values(), ())})
    table, shapes = fake_table(model), trace_layers(model, X)
    expected = table.network_seconds(shapes, WholeNetwork(table.layers_seconds(shapes)), plan.layers)
    assert expected == pytest.approx(built.layers_seconds(deployed))
    assert table.layers_seconds(shapes, plan.layers) == pytest.approx(expected)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("price", [0.0, 1e-9])
def test_a_fit_to_reference_networks_predicts_other_networks(price: float, factor: float) -> None:
    """The machine has become faster or slower, and weights take longer in a network than in isolation."""
    model = tiny_cnn(width=64)
    table, shapes = fake_table(model, runtime="eager"), trace_layers(model, X)

    def seconds(plans: Mapping[str, LayerPlan]) -> float:
        weights = sum(shape.cost(plans.get(name, LayerPlan()))[0] for name, shape in shapes.items())
        return factor * table.layers_seconds(shapes, plans) + REST + price * weights

    references = reference_plans(shapes, METHODS)
    assert len(references) == 2 * len(METHODS) + 2  # two sizes, and the halves of the first method
    assert all(any(plan.method for plan in plans.values()) for plans in references)
    whole = table.calibrated(shapes, seconds({}), [(plans, seconds(plans)) for plans in references])
    assert whole.seconds == seconds({})
    for method in METHODS:
        plan = plan_ranks(model, X, method, Fixed(0.4))
        assert table.network_seconds(shapes, whole, plan.layers) == pytest.approx(seconds(plan.layers), rel=0.05)


def test_contradicting_times_give_no_gain_for_more_weights() -> None:
    """Small networks slower than their operations must not make weights a gain: nothing is below 0."""
    model = tiny_cnn(width=64)
    table, shapes = fake_table(model, runtime="eager"), trace_layers(model, X)
    dense = table.layers_seconds(shapes)
    small = [(plans, table.layers_seconds(shapes, plans) + dense) for plans in reference_plans(shapes, METHODS)]
    whole = table.calibrated(shapes, dense, small)
    assert whole.seconds == dense
    assert whole.factor >= 0
    assert whole.per_weight >= 0


def test_a_network_without_layers_to_replace_has_no_references() -> None:
    shapes = trace_layers(nn.Sequential(nn.Conv2d(3, 3, 1, groups=3)), X)
    assert reference_plans(shapes, METHODS) == []


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_stride_and_padding_give_the_sizes(kind: Callable[..., Convolution], kernel: int, stride: int) -> None:
    layer = kind(2, 3, kernel, stride, kernel // 2)
    dimensions = len(layer.kernel_size)
    x = torch.zeros(1, 2, *[28] * dimensions)
    shape = trace_layers(nn.Sequential(layer), x)["0"]
    (operation,) = needed_operations([shape], ())
    assert operation.stride == (stride,) * dimensions
    found = kind(2, 3, kernel, operation.stride, operation.padding)(x)
    assert tuple(found.shape[2:]) == operation.after
    assert Operation.from_json(operation.to_json()) == operation


@pytest.mark.parametrize("method", METHODS)
def test_the_greatest_ranks_are_those_of_the_decomposition(method: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 40, (3, 5), groups=2), nn.Conv2d(40, 3, 3))
    shapes = trace_layers(model, torch.zeros(1, 4, 12, 12))
    kept = Decompositions(model)
    for name, shape in shapes.items():
        assert greatest_ranks(shape, method) == kept.get(name, method).max_ranks


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=5, unique=True).map(sorted),
    st.lists(st.integers(1, 60), min_size=1, max_size=5, unique=True).map(sorted),
    st.floats(0, 70),
    st.floats(0, 70),
    st.integers(0, 99),
)
def test_an_interpolated_time_lies_between_its_neighbours(
    ins: list[int], outs: list[int], i: float, o: float, seed: int
) -> None:
    grid = np.random.default_rng(seed).uniform(1, 2, (len(ins), len(outs)))
    (found,) = bilinear(grid, (ins, outs), np.array([i]), np.array([o]))
    near = [
        [k for k, point in enumerate(points) if point == min((p for p in points if p >= value), default=points[-1])]
        + [k for k, point in enumerate(points) if point == max((p for p in points if p <= value), default=points[0])]
        for points, value in ((ins, i), (outs, o))
    ]
    corners = [grid[a, b] for a, b in itertools.product(*near)]
    assert min(corners) - 1e-12 <= found <= max(corners) + 1e-12
    exact = bilinear(grid, (ins, outs), np.array(ins, dtype=float), np.full(len(ins), float(outs[0])))
    assert np.allclose(exact, grid[:, 0])


@given(st.integers(1, 5000))
def test_the_steps_ascend_and_are_coarse(most: int) -> None:
    steps = rank_steps(most)
    assert list(steps) == sorted({*steps})
    assert all(step % 8 == 0 and step <= most for step in steps)
    assert len(steps) <= 4 + 4 * max(0, np.log2(most / 32))


@pytest.mark.parametrize("method", [*METHODS, "mixed"])
def test_a_plan_never_exceeds_the_latency_that_is_predicted(method: str) -> None:
    model = tiny_cnn(width=64)
    kept, table = Decompositions(model), fake_table(model)
    dense = table.networks[network_fingerprint(model, X)].seconds
    divergences = []
    for share in (0.5, 0.65, 0.8, 1.0):
        budget = Budget(latency=share)
        plan = plan_ranks(model, X, method, budget, latencies=of(table, model), decompositions=kept)
        assert predicted(model, table, plan) <= share * dense * (1 + 1e-9)
        assert plan.settings["predicted_s"] == pytest.approx(predicted(model, table, plan))
        divergences.append(
            sum(kept.get(n, str(p.method)).relative_error(p.ranks) ** 2 for n, p in plan.factored.items())
        )
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[-1] == 0


shares = st.floats(0.3, 1.0).map(lambda share: round(share, 6))  # a share one rounding below 1 counts as 1


@settings(deadline=None, max_examples=15)
@given(shares, shares, shares)
def test_three_limits_hold_at_once(params: float, macs: float, latency: float) -> None:
    model = tiny_cnn(width=64)
    table = fake_table(model, ("svd",))
    budget = Budget(params=params, macs=macs, latency=latency)
    try:
        plan = plan_ranks(model, X, "svd", budget, latencies=of(table, model))
    except ValueError as error:
        assert "cannot be met" in str(error)  # noqa: PT017
        return
    from common.network import profile

    dense, small = profile(model, X), profile(compress(model, plan), X)
    assert small.params <= params * dense.params
    assert small.macs <= macs * dense.macs
    assert predicted(model, table, plan) <= latency * whole_seconds(model, table) * (1 + 1e-9)


@pytest.mark.parametrize("rest", [-3e-5, 0.0, 1e-3])
@pytest.mark.parametrize("beyond", [(1.0, 0.0), (1.0, 1e-9), (0.8, 1e-9)])
def test_the_dense_network_is_predicted_as_measured(rest: float, beyond: tuple[float, float]) -> None:
    """This holds even if the layers, one by one, took longer than the whole."""
    model = tiny_cnn(width=64)
    table, name = fake_table(model, ("svd",)), network_fingerprint(model, X)
    whole = table.layers_seconds(trace_layers(model, X)) + rest
    table.networks[name] = WholeNetwork(whole, *beyond)
    dense = plan_ranks(model, X, "svd", Fixed({}))
    assert predicted(model, table, dense) == pytest.approx(whole)
    for share in (0.7, 0.9):
        plan = plan_ranks(model, X, "svd", Budget(latency=share), latencies=of(table, model))
        assert predicted(model, table, plan) <= share * whole * (1 + 1e-9)
        assert plan.factored


def test_an_unreachable_latency_names_the_least() -> None:
    model = tiny_cnn(width=64)
    table = fake_table(model)
    with pytest.raises(
        ValueError, match=r"latency=0.01, runtime='onnxruntime'\) cannot be met: .* latency=0"
    ) as error:
        plan_ranks(model, X, "svd", Budget(latency=0.01), latencies=of(table, model))
    least = float(str(error.value).rpartition("latency=")[2])
    plan = plan_ranks(model, X, "svd", Budget(latency=least), latencies=of(table, model))
    assert predicted(model, table, plan) <= least * whole_seconds(model, table) * (1 + 1e-9)


@pytest.mark.parametrize("block", [16, 32])
def test_ranks_that_are_as_slow_as_greater_ones_are_not_planned(block: int) -> None:
    """If a rank of 24 takes as long as 32, no plan holds 24; no rule for steps is needed."""
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1))
    x = torch.zeros(2, 64, 16, 16)
    shapes = trace_layers(model, x)
    table = LatencyTable(
        CONDITIONS, {op: fake_seconds(op, block) for op in needed_operations(shapes.values(), ("svd",))}
    )
    table.networks[network_fingerprint(model, x)] = WholeNetwork(table.layers_seconds(shapes))
    kept = Decompositions(model)
    for share in (0.6, 0.7, 0.8, 0.9):
        budget = Budget(latency=share)
        plan = plan_ranks(model, x, "svd", budget, latencies=of(table, model, x), decompositions=kept)
        assert plan.factored
        assert all(layer.ranks[0] % block == 0 for layer in plan.factored.values())


def test_mixed_takes_the_fastest_method_at_equal_error() -> None:
    """If a 3x1 kernel is a thousand times as slow, methods without it win.

    In PyTorch, where no factors are merged: merged ones have no such kernel.
    """
    torch.manual_seed(0)
    model = tiny_cnn(width=64)
    fair, unfair = (fake_table(model, runtime="eager") for _ in range(2))
    unfair.seconds = {op: s * (1000 if op.kernel in ((3, 1), (1, 3)) else 1) for op, s in fair.seconds.items()}
    plans = [
        plan_ranks(model, X, "mixed", Budget(latency=0.6, runtime="eager"), latencies=of(table, model))
        for table in (fair, unfair)
    ]
    used = [[layer.method for layer in plan.factored.values()] for plan in plans]
    assert not {"spatial_svd", "htd"} & set(used[1])
    assert used[0] != used[1]


def test_bad_uses_are_named() -> None:
    model = tiny_cnn()
    with pytest.raises(ValueError, match=r"Budget\(latency=2\): it must be in \(0, 1\]"):
        Budget(latency=2)
    table = fake_table(model, ("svd",))
    with pytest.raises(ValueError, match=r"only a Budget\(latency=...\) takes them"):
        plan_ranks(model, X, "svd", Budget(macs=0.5), latencies=of(table, model))
    with pytest.raises(ValueError, match="with latencies of the runtime 'onnxruntime'"):
        plan_ranks(model, X, "svd", Budget(latency=0.5, runtime="eager"), latencies=of(table, model))
    with pytest.raises(ValueError, match="has no time of Operation"):
        plan_ranks(model, X, "htd", Budget(latency=0.5), latencies=of(table, model))
    with pytest.raises(ValueError, match="batches of 2, x is one of 1"):
        plan_ranks(model, X[:1], "svd", Budget(latency=0.5), latencies=of(table, model))
    with pytest.raises(ValueError, match="the latencies are not of this network"):
        plan_ranks(tiny_cnn(width=64), X, "svd", Budget(latency=0.5), latencies=of(table, model))
    with pytest.raises(ValueError, match=r"latency has to be measured first; .*measured_latencies\(model, x, 'onnx"):
        plan_ranks(model, X, "svd", Budget(latency=0.5))
    table.networks.clear()
    with pytest.raises(ValueError, match="the latencies are not of this network"):
        of(table, model)

"""Predicted errors are corrected by what improved factors lose on held-out data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.calibration import calibrate
from common.compression import compress
from common.network import profile
from common.network.shapes import trace_layers
from common.planning import Budget, plan_ranks
from common.planning.correction import measured_errors
from common.planning.decompositions import Decompositions
from common.planning.options import layer_options
from tests.networks import tiny_cnn, tiny_digits

X = tiny_digits(400).example()
BUDGET = Budget(params=0.4, macs=0.5)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_cnn(width=24).eval()


@pytest.fixture(scope="module")
def decompositions(model: nn.Module) -> Decompositions:
    return Decompositions(model, calibrate(model, tiny_digits(400).calibration))


def test_points_are_the_errors_of_improved_factors(model: nn.Module, decompositions: Decompositions) -> None:
    plan = plan_ranks(model, X, "mixed", BUDGET, decompositions=decompositions)
    improved = decompositions.with_sweeps(2)
    points = measured_errors(model, X, plan, BUDGET, decompositions, 2)
    assert {method for _, method in points} == {"svd", "spatial_svd", "tucker2", "htd", "cp"}
    corrected = decompositions.corrected(points)
    for (name, method), found in points.items():
        ranks, errors = decompositions.get(name, method).error_table()
        for predicted, measured in found:
            lost = [
                improved.get(name, method).measured_error(tuple(map(int, row)))
                for row in ranks[np.isclose(errors, predicted, rtol=0.1)]
            ]
            assert min(abs(each - measured) for each in lost) < 1e-4
        if np.all(np.diff([measured for _, measured in sorted(found)]) >= 0):
            values = np.array(found)
            assert corrected.correct(name, method, values[:, 0]) == pytest.approx(values[:, 1])


def test_a_method_whose_factors_improve_more_is_chosen(model: nn.Module, decompositions: Decompositions) -> None:
    """Its corrected errors count, so a plan of all methods takes it, and still keeps to the budget."""
    names = [
        name for name, shape in trace_layers(model, X).items() if len(shape.kernel) == 2 and shape.kernel != (1, 1)
    ]
    for method in ("spatial_svd", "htd", "cp"):
        points = {(name, method): [(0.5, 0.05)] for name in names}
        plan = plan_ranks(model, X, "mixed", BUDGET, decompositions=decompositions.corrected(points))
        taken = {plan.layers[name].method for name in names}
        assert taken <= {method, None}
        assert method in taken
        before, after = profile(model, X), profile(compress(model, plan, decompositions=decompositions), X)
        assert after.params <= 0.4 * before.params
        assert after.macs <= 0.5 * before.macs


def test_without_data_the_errors_are_those_of_the_swept_weight(model: nn.Module) -> None:
    plain = Decompositions(model)
    plan = plan_ranks(model, X, "mixed", BUDGET, decompositions=plain)
    points = measured_errors(model, X, plan, BUDGET, plain, 2)
    found = np.concatenate([np.array(each) for each in points.values()])
    assert np.all(found[:, 1] <= found[:, 0] * 1.03)  # errors of CP are interpolated


def test_other_layers_and_dense_ones_are_not_touched(model: nn.Module, decompositions: Decompositions) -> None:
    shapes = trace_layers(model, X)
    corrected = decompositions.corrected({("conv", "cp"): [(0.2, 0.1), (0.4, 0.3)]})
    for name, method in (("conv", "htd"), ("stem.0", "cp")):
        before, after = (layer_options(name, shapes[name], each, [method]) for each in (decompositions, corrected))
        assert np.array_equal(before.loss, after.loss)
    options = layer_options("conv", shapes["conv"], corrected, ["cp"])
    assert options.loss[[each.method is None for each in options.plans]] == [0.0]


pairs = st.tuples(st.floats(1e-3, 1.0), st.floats(1e-5, 1.0))


@given(
    st.lists(pairs, min_size=1, max_size=3, unique_by=lambda pair: pair[0]),
    st.lists(st.floats(1e-9, 2) | st.just(0.0), min_size=2),
)
def test_greater_predicted_errors_stay_greater(points: list[tuple[float, float]], errors: list[float]) -> None:
    """Whatever was measured, no error changes its rank among the errors of the layer, and none becomes 0."""
    corrected = Decompositions(nn.Linear(2, 2)).corrected({("", "svd"): points})
    predicted = np.sort(np.array(errors))
    found = corrected.correct("", "svd", predicted)
    assert np.all(np.isfinite(found))
    assert np.all((found > 0) == (predicted > 0))
    assert np.all(np.diff(found) >= -1e-9)

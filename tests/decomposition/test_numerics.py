"""Single precision against double precision, for weights and data of any size, condition and rank.

``NUMERIC_CASES=1000 pytest tests/decomposition/test_numerics.py`` tries so many of each method.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.calibration import calibrate
from common.compression import compress
from common.decomposition import DECOMPOSITIONS, LayerMoments, als, balance, metric, subspace
from common.decomposition.als import IMPROVING_SWEEPS, ridge_candidates
from common.decomposition.chain import by_group, compose
from common.decomposition.subspace import leading_subspace
from common.planning import Fixed, plan_ranks
from tests.decomposition.passes import moments_on
from tests.networks import tiny_cnn

TOLERANCE = 1e-3
"""How much a relative error in single precision may exceed that in double precision."""
SWEPT_TOLERANCE = 5e-3
"""The same with sweeps, which find large subspaces in single precision only nearly, see ``leading_subspace``."""
SHAPES = ((12, 8, 3, 3), (8, 12, 3, 3), (30, 3, 3, 3), (10, 14))
KINDS = ("random", "ill-conditioned", "rank 2", "zero rows", "equal", "zero", "spread rows")
SIZES = (1e-36, 1e-30, 1e-15, 1e-11, 1.0, 1e11, 1e15, 1e30, 1e36)
METHODS = sorted(DECOMPOSITIONS)
CASES = int(os.environ.get("NUMERIC_CASES", "10"))


def make_weight(kind: str, shape: tuple[int, ...], size: float) -> Tensor:
    """A weight in float32 of the kind, its elements about ``size``."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    if kind == "ill-conditioned":
        weight = (u * torch.logspace(0, -12, len(s), dtype=torch.float64) @ v).reshape(shape)
    elif kind == "rank 2":
        weight = (u[:, :2] * s[:2] @ v[:2]).reshape(shape)
    elif kind == "zero rows":
        weight[0], weight[:, 0] = 0, 0
    elif kind == "equal":
        weight = torch.ones(shape, dtype=torch.float64)
    elif kind == "zero":
        weight = torch.zeros(shape, dtype=torch.float64)
    elif kind == "spread rows":
        weight *= torch.logspace(0, -20, shape[0], dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1))
    return (weight * size).float()


def make_moments(weight: Tensor, kind: str) -> LayerMoments:
    """Moments of random, ill-conditioned, equal or zero inputs."""
    channels = weight.shape[1]
    images = torch.randn(24, channels, 5, 5, generator=torch.Generator().manual_seed(1))
    if kind == "ill-conditioned":
        images *= torch.logspace(0, -6, channels)[:, None, None]
    elif kind == "rank 1":
        images = images[:, :1].expand(-1, channels, -1, -1).contiguous()
    elif kind == "zero":
        images.zero_()
    return moments_on(weight, images)


@pytest.fixture(params=["as it is", "single"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``single``: the solvers for large weights, which work in single precision, serve small ones too."""
    if request.param == "single":
        for bound in ("LARGE", "WIDE"):
            monkeypatch.setattr(metric, bound, 1)
        monkeypatch.setattr(subspace, "EXACT_ROWS", 2)
        monkeypatch.setattr(als, "SINGLE_PRECISION_SIZE", 1)
    return request.param


@pytest.mark.filterwarnings("ignore:too few calibration patches")
@pytest.mark.parametrize("method", METHODS)
def test_the_errors_of_single_precision_are_those_of_double_precision(method: str, precision: str) -> None:
    cases = st.tuples(
        st.sampled_from([shape for shape in SHAPES if len(shape) == 4 or not DECOMPOSITIONS[method].needs_kernel]),
        st.sampled_from(KINDS),
        st.sampled_from(SIZES),
        st.sampled_from(["none", "random", "ill-conditioned", "rank 1", "zero"]),
        st.sampled_from([0, 2]),
    )

    @settings(max_examples=CASES, database=None)
    @given(cases)
    def check(case: Any) -> None:
        check_decomposition(method, *case)

    check()


def check_decomposition(method: str, shape: tuple[int, ...], kind: str, size: float, data: str, sweeps: int) -> None:
    weight = make_weight(kind, shape, size)
    moments = None if data == "none" or size > 1e15 else make_moments(weight, data)
    single = DECOMPOSITIONS[method](weight, 1, moments, sweeps)
    double = DECOMPOSITIONS[method](weight.double(), 1, moments, sweeps)
    norm = float(weight.double().norm()) or 1.0
    for share in (0.3, 1.0):
        ranks = single.fraction(share)
        factors = balance(single.factors(ranks))
        assert all(factor.isfinite().all() for factor in factors)
        assert math.isfinite(single.relative_error(ranks))
        iterated = sweeps or DECOMPOSITIONS[method].interpolates
        allowed = SWEPT_TOLERANCE if iterated else TOLERANCE
        assert single.relative_error(ranks) <= double.relative_error(ranks) + allowed
        lost = float((single.reconstruct(ranks).double() - weight).norm()) / norm
        if moments is None:
            assert single.relative_error(ranks) == pytest.approx(lost, abs=TOLERANCE)
        if share == 1.0:
            assert lost <= TOLERANCE
    assert bool(torch.from_numpy(single.error_table()[1]).isfinite().all())
    assert bool(single.spectrum.isfinite().all())


@pytest.mark.parametrize("method", [method for method in METHODS if method != "svd"])
def test_the_solver_of_factors_holds_for_any_size_and_condition(method: str, precision: str) -> None:
    cases = st.tuples(st.sampled_from(SIZES), st.sampled_from([1e-30, 1.0, 1e15]), st.sampled_from(KINDS[:3]))

    @settings(max_examples=CASES, database=None)
    @given(cases)
    def check(case: tuple[float, float, str]) -> None:
        weight = make_weight("random", (12, 8, 3, 3), case[0])
        patches = make_weight(case[2], (200, 72), 1.0).double() * case[1]
        inputs = (patches.mT @ patches / 200)[None]
        rows = weight.double().flatten(1)[None]
        decomposition = DECOMPOSITIONS[method](weight)
        before = balance(decomposition.factors(decomposition.fraction(0.4)))
        after = next(ridge_candidates(before, inputs, rows @ inputs, rows, [0.0], IMPROVING_SWEEPS))

        def error(factors: tuple[Tensor, ...]) -> float:
            lost = rows - compose([by_group(factor.double(), 1) for factor in factors]).flatten(2)
            return float(((lost @ inputs) * lost).sum() / ((rows @ inputs) * rows).sum())

        assert all(factor.isfinite().all() for factor in balance(after))
        assert error(after) <= error(before) * (1 + TOLERANCE) + 1e-6

    check()


def test_the_solver_leaves_factors_finite_where_no_input_varies(precision: str) -> None:
    weight = make_weight("random", (12, 8, 3, 3), 1.0)
    for method in METHODS:
        decomposition = DECOMPOSITIONS[method](weight)
        factors = decomposition.factors(decomposition.fraction(0.4))
        none = torch.zeros(1, 12, 72)
        after = next(ridge_candidates(factors, torch.zeros(1, 72, 72), none, none, [0.0], IMPROVING_SWEEPS))
        assert all(factor.isfinite().all() for factor in after), method


@pytest.mark.parametrize("fault", ["raises", "is not finite"])
def test_eigenvectors_that_single_precision_does_not_find_come_from_double(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(matrix: Tensor, solve: Any = torch.linalg.eigh) -> Any:
        if matrix.dtype == torch.float64:
            return solve(matrix)
        if fault == "raises":
            raise torch.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge")  # type: ignore[attr-defined]
        return matrix[:, 0] * torch.nan, matrix * torch.nan

    monkeypatch.setattr("torch.linalg.eigh", failing)
    gram = torch.diag(torch.arange(1.0, 4.0))[None]
    values, vectors = metric.eigh(gram)
    torch.testing.assert_close(values, torch.tensor([[1.0, 2.0, 3.0]]))
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.abs(), torch.eye(3)[None])


@pytest.mark.parametrize("size", SIZES)
def test_a_subspace_holds_the_energy_of_the_exact_one(size: float) -> None:
    matrix = make_weight("random", (160, 200), size)
    if not metric.fits_single_precision(matrix):
        matrix = matrix.double()  # as Tucker-2 does
    found = leading_subspace(matrix[None], lambda full: full, 40)[0].double()
    s = torch.linalg.svdvals(matrix.double())
    held = float((found.mT @ matrix.double()).square().sum() / s[:40].square().sum())
    assert held == pytest.approx(1.0, abs=5e-3)


def test_one_and_two_threads_give_the_same_factors() -> None:
    model, x = tiny_cnn(width=32), torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            moments = calibrate(model, [x])
            plan = plan_ranks(model, x[:1], "htd", Fixed(0.5, only_if_smaller=False), moments=moments)
            with torch.no_grad():
                found.append(compress(model, plan, moments=moments)(x))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)

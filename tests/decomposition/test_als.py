"""Alternating least squares: optimal where a closed form exists, never worse than the start elsewhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.decomposition import DECOMPOSITIONS
from common.decomposition.als import fits_in_one_step, ridge_candidates, ridge_candidates_of_rows
from common.decomposition.chain import by_group, compose, kernel_of, outputs_of

RIDGES = (1e-3, 1e-2, 1e-1)
KERNELS = ((3, 3), (5, 3), (1, 3), (2, 2))


def problem(outputs: int, inputs: int, kernel: tuple[int, int], groups: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight and the second moment of patches whose variances span two orders."""
    generator = torch.Generator().manual_seed(seed)
    size = inputs // groups * kernel[0] * kernel[1]
    weight = torch.randn(outputs, inputs // groups, *kernel, generator=generator, dtype=torch.float64)
    root = torch.randn(groups, size, size, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, size)
    return weight, root @ root.mT / size


def error(weight: Tensor, factors: tuple[Tensor, ...], moment: Tensor) -> float:
    """``E||(W - W')p||^2 / E||Wp||^2``."""
    groups = len(moment)
    whole = by_group(weight, groups).flatten(2)
    lost = whole - compose([by_group(factor, groups) for factor in factors]).flatten(2)
    return float((lost @ moment * lost).sum() / (whole @ moment * whole).sum())


def fit(weight: Tensor, factors: tuple[Tensor, ...], moment: Tensor, sweeps: int) -> tuple[Tensor, ...]:
    groups = len(moment)
    prior = by_group(weight, groups).flatten(2)
    return next(ridge_candidates(factors, moment, prior @ moment, prior, [0.0], sweeps))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_the_product_of_the_factors_is_what_they_compute(method: str, kernel: tuple[int, int], groups: int) -> None:
    weight, _ = problem(8, 6, kernel, groups, 0)
    decomposition = DECOMPOSITIONS[method](weight, groups)
    factors = decomposition.factors(decomposition.fraction(0.5))
    patches = torch.randn(20, 6, *kernel, dtype=torch.float64)
    product = compose([by_group(factor, groups) for factor in factors]).flatten(0, 1)
    torch.testing.assert_close(outputs_of([product], patches, groups), outputs_of(factors, patches, groups))
    assert kernel_of(factors) == kernel


@settings(max_examples=40, deadline=None)
@given(
    method=st.sampled_from(sorted(DECOMPOSITIONS)),
    kernel=st.sampled_from(KERNELS),
    groups=st.integers(1, 2),
    share=st.floats(0.1, 0.9),
    seed=st.integers(0, 2**31),
)
def test_every_sweep_lowers_the_error(
    method: str, kernel: tuple[int, int], groups: int, share: float, seed: int
) -> None:
    weight, moment = problem(8, 6, kernel, groups, seed)
    decomposition = DECOMPOSITIONS[method](weight, groups)
    factors = decomposition.factors(decomposition.fraction(share))
    errors = [error(weight, factors, moment)]
    for _ in range(3):
        factors = fit(weight, factors, moment, sweeps=1)
        errors.append(error(weight, factors, moment))
    assert all(after <= before + 1e-9 for before, after in pairwise(errors)), errors
    assert [factor.shape for factor in factors] == [
        factor.shape for factor in decomposition.factors(decomposition.fraction(share))
    ]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (12, 4, 1, 3), (6, 20, 1, 1)])
def test_svd_reaches_the_optimum_in_one_sweep_from_any_start(shape: tuple[int, ...], groups: int) -> None:
    """The optimum is the truncated SVD of the weight times the root of the moment, for each group."""
    weight, moment = problem(shape[0], shape[1], (shape[2], shape[3]), groups, 3)
    for rank in (1, 2, 3):
        start = (
            torch.randn(groups * rank, *weight.shape[1:], dtype=torch.float64),
            torch.randn(shape[0], rank, 1, 1, dtype=torch.float64),
        )
        found = error(weight, fit(weight, start, moment, 1), moment)
        lost = total = 0.0
        for part, second in zip(by_group(weight, groups).flatten(2), moment, strict=True):
            values, vectors = torch.linalg.eigh(second)
            singular = torch.linalg.svdvals(part @ vectors * values.clamp(min=0).sqrt())
            lost, total = lost + float(singular[rank:].square().sum()), total + float(singular.square().sum())
        assert found == pytest.approx(lost / total, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_the_last_factors_are_optimal_given_the_others(method: str) -> None:
    """The residual has no correlation with what the last factor sees."""
    weight, moment = problem(10, 6, (3, 3), 1, 5)
    decomposition = DECOMPOSITIONS[method](weight)
    factors = fit(weight, decomposition.factors(decomposition.fraction(0.4)), moment, 2)
    residual = (weight - compose([by_group(factor, 1) for factor in factors])[0]).flatten(1) @ moment[0]
    last, seen = factors[-1], compose([by_group(factor, 1) for factor in factors[:-1]])[0]  # (c, I, a, b)
    split = residual.reshape(10, 6, seen.shape[2], last.shape[2], seen.shape[3], last.shape[3])
    correlation = torch.einsum("oiaxby,ciab->ocxy", split, seen)
    scale = float((weight.flatten(1) @ moment[0]).norm() * seen.norm())
    assert float(correlation.norm()) < 1e-6 * scale


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_exact_factors_stay_exact_and_inputs_stay_as_they_are(method: str) -> None:
    weight, moment = problem(8, 6, (3, 3), 2, 7)
    decomposition = DECOMPOSITIONS[method](weight, 2)
    factors = decomposition.factors(decomposition.max_ranks)
    copies, moment_before = [factor.clone() for factor in factors], moment.clone()
    assert error(weight, fit(weight, factors, moment, 2), moment) < 1e-9
    assert all(torch.equal(factor, copy) for factor, copy in zip(factors, copies, strict=True))
    assert torch.equal(moment, moment_before)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_a_singular_moment_and_a_zero_weight_give_finite_factors(method: str) -> None:
    weight, moment = problem(8, 6, (3, 3), 1, 9)
    few = torch.randn(1, 5, moment.shape[1], dtype=torch.float64)
    for given_weight, given_moment in ((weight, few.mT @ few), (weight, 0 * moment), (0 * weight, moment)):
        decomposition = DECOMPOSITIONS[method](given_weight)
        factors = decomposition.factors(decomposition.fraction(0.4))
        fitted = fit(given_weight, factors, given_moment, 2)
        assert all(factor.isfinite().all() for factor in fitted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_factors_keep_their_dtype_and_a_linear_its_shape(dtype: torch.dtype) -> None:
    weight, moment = problem(8, 6, (1, 1), 1, 11)
    linear = weight[:, :, 0, 0].to(dtype)
    fitted = fit(linear.double(), (linear[:3].clone(), linear[:, :3].clone()), moment, 1)
    assert [tuple(factor.shape) for factor in fitted] == [(3, 6), (8, 3)]
    assert {factor.dtype for factor in fitted} == {dtype}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_a_later_ridge_gives_the_last_step_for_the_moment_with_that_ridge(
    method: str, kernel: tuple[int, int], groups: int
) -> None:
    weight, moment = problem(8, 6, kernel, groups, 3)
    decomposition = DECOMPOSITIONS[method](weight, groups)
    dense = by_group(weight, groups).flatten(2)
    cross, prior = dense @ moment, dense + 0.1
    found = list(ridge_candidates(decomposition.factors(decomposition.fraction(0.5)), moment, cross, prior, RIDGES, 1))
    mean = moment.diagonal(dim1=1, dim2=2).mean()
    for ridge, factors in zip(RIDGES, found, strict=True):
        raised = moment + ridge * mean * torch.eye(moment.shape[1], dtype=torch.float64)
        wanted = next(ridge_candidates(found[0], raised, cross + ridge * mean * prior, prior, [0.0], 0))
        products = [compose([by_group(factor, groups) for factor in each]) for each in (factors, wanted)]
        torch.testing.assert_close(*products, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.sampled_from(KERNELS),
    groups=st.sampled_from([1, 2]),
    rows=st.integers(1, 40),
    rank=st.integers(0, 4),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_rows_give_what_their_moments_give(
    kernel: tuple[int, int], groups: int, rows: int, rank: int, scale: float, seed: int
) -> None:
    weight, _ = problem(8, 6, kernel, groups, seed)
    decomposition = DECOMPOSITIONS["svd"](weight, groups)
    factors = decomposition.factors((rank,)) if rank else (weight,)
    prior = by_group(weight, groups).flatten(2)
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(groups, rows, prior.shape[2], generator=generator, dtype=torch.float64)
    y = x @ prior.mT + 0.1 * scale * torch.randn(
        groups, rows, prior.shape[1], generator=generator, dtype=torch.float64
    )
    assert fits_in_one_step(factors, groups)
    wanted = ridge_candidates(factors, x.mT @ x / rows, y.mT @ x / rows, prior, RIDGES, 2)
    for found, expected in zip(ridge_candidates_of_rows(factors, x, y, prior, RIDGES), wanted, strict=True):
        assert [each.shape for each in found] == [each.shape for each in factors]
        products = [compose([by_group(factor, groups) for factor in each]) for each in (found, expected)]
        torch.testing.assert_close(*products, rtol=1e-5, atol=1e-5)


def test_rows_of_zeros_leave_the_prior() -> None:
    weight, _ = problem(8, 6, (3, 3), 1, 0)
    prior = weight.flatten(1)[None]
    ((found,),) = ridge_candidates_of_rows((weight,), torch.zeros(1, 5, 54), torch.ones(1, 5, 8), prior, [1e-3])
    torch.testing.assert_close(found, weight)


@pytest.mark.parametrize("method", [name for name in DECOMPOSITIONS if name != "svd"])
def test_one_step_fits_no_chain_of_more_factors(method: str) -> None:
    decomposition = DECOMPOSITIONS[method](problem(8, 6, (3, 3), 1, 0)[0])
    assert not fits_in_one_step(decomposition.factors(decomposition.fraction(0.5)), 1)

"""Balanced factors have the same product, equal norms on both sides of every channel, and the least sum of squares."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from common.calibration import calibrate
from common.compression import compress
from common.decomposition import DECOMPOSITIONS, balance
from common.planning import Fixed, plan_ranks


def chain(x: Tensor, factors: tuple[Tensor, ...], groups: int) -> Tensor:
    """Output of the factors, applied in turn."""
    for factor in factors:
        x = functional.linear(x, factor) if factor.dim() == 2 else functional.conv2d(x, factor, groups=groups)
    return x


def norms(before: Tensor, after: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Norms of the weights before and after each channel between two factors, ``(groups * rank,)`` each."""
    depthwise = after.shape[1] * groups < len(before)
    by_channel = after if depthwise else after.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return before.flatten(1).norm(dim=1), by_channel.flatten(1).norm(dim=1)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Tensor, tuple[Tensor, ...], int]:
    """An input, two to four factors whose channel norms differ by up to ten orders of magnitude, and their groups."""
    linear = draw(st.booleans())
    groups = 1 if linear else draw(st.integers(1, 3))
    widths = [groups * draw(st.integers(1, 5)) for _ in range(draw(st.integers(3, 5)))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    factors = []
    for inputs, outputs in pairwise(widths):
        kernel = () if linear else draw(st.sampled_from([(1, 1), (3, 1), (1, 2)]))
        weight = normal(outputs, inputs // groups, *kernel)
        sizes = 10 ** (10 * torch.rand(outputs, generator=generator, dtype=torch.float64) - 5)
        factors.append(weight * sizes.view(-1, *[1] * (weight.dim() - 1)))
    shape = (4, widths[0]) if linear else (2, widths[0], 12, 12)
    return normal(*shape), tuple(factors), groups


@settings(max_examples=150, deadline=None)
@given(chains())
def test_balancing_keeps_the_product_and_makes_the_norms_equal(drawn: tuple[Tensor, tuple[Tensor, ...], int]) -> None:
    x, factors, groups = drawn
    copies = [factor.clone() for factor in factors]
    balanced = balance(factors, groups)
    expected = chain(x, factors, groups)
    assert (chain(x, balanced, groups) - expected).norm() <= 1e-9 * expected.norm()
    assert all(torch.equal(factor, copy) for factor, copy in zip(factors, copies, strict=True))
    for before, after in pairwise(balanced):
        norms_before, norms_after = norms(before, after, groups)
        torch.testing.assert_close(norms_before, norms_after, rtol=5e-3, atol=0.0)
    assert sum(f.square().sum() for f in balanced) <= (1 + 1e-9) * sum(f.square().sum() for f in factors)


def test_two_factors_are_balanced_in_one_pass_and_stay_balanced() -> None:
    u, s, v = torch.linalg.svd(torch.randn(7, 5, dtype=torch.float64), full_matrices=False)
    first, second = balance((s.diag() @ v, u))
    torch.testing.assert_close(first, s.sqrt().diag() @ v)
    torch.testing.assert_close(second, u @ s.sqrt().diag())
    for one, other in zip(balance((first, second)), (first, second), strict=True):
        torch.testing.assert_close(one, other)


def test_channels_that_are_zero_on_one_side_are_not_rescaled() -> None:
    first, second = torch.randn(3, 4), torch.randn(5, 3)
    first[1], second[:, 2] = 0, 0
    one, other = balance((first, second))
    assert torch.equal(one[1:], first[1:])
    assert torch.equal(other[:, 1:], second[:, 1:])
    torch.testing.assert_close(other @ one, second @ first)


@pytest.mark.parametrize("size", [1e-25, 1e-20, 1e15])
def test_channels_of_extreme_norm_stay_finite_and_keep_the_product(size: float) -> None:
    """Weight decay can shrink a filter until its square underflows float32."""
    first, second, third = torch.randn(3, 4), torch.randn(5, 3), torch.randn(2, 5)
    first[1] *= size
    balanced = balance((first, second, third))
    assert all(factor.isfinite().all() for factor in balanced)
    expected = third.double() @ second.double() @ first.double()
    product = balanced[2].double() @ balanced[1].double() @ balanced[0].double()
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    assert {factor.dtype for factor in balance((torch.ones(2, 3, dtype=dtype), torch.ones(4, 2, dtype=dtype)))} == {
        dtype
    }


def test_a_compressed_linear_layer_is_balanced() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9)).eval()
    x = torch.randn(4, 6)
    plan = plan_ranks(model, x, "svd", Fixed(3, only_if_smaller=False))
    small, rebuilt = compress(model, plan), compress(model, plan, mode="reconstruct")
    reduce, expand = (factor.get_parameter("weight").detach() for factor in small.get_submodule("0").children())
    torch.testing.assert_close(*norms(reduce, expand, 1))
    with torch.no_grad():
        torch.testing.assert_close(small(x), rebuilt(x))


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("transposed", [False, True])
def test_compressed_layers_are_balanced(method: str, transposed: bool) -> None:
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(kind(8, 12, 3, padding=1, groups=2, bias=False)).eval()
    x = torch.randn(4, 8, 9, 9) * torch.logspace(-2, 2, 8).view(-1, 1, 1)
    moments = calibrate(model, [x])
    plan = plan_ranks(model, x, method, Fixed(2, only_if_smaller=False), moments=moments)
    small, rebuilt = (compress(model, plan, moments=moments, mode=mode) for mode in ("factorized", "reconstruct"))
    weights = []
    for factor in small.get_submodule("0").children():
        weight = factor.get_parameter("weight").detach()
        if isinstance(factor, nn.ConvTranspose2d):  # (I, O/groups, ...) to (O, I/groups, ...)
            weight = weight.unflatten(0, (2, -1)).transpose(1, 2).flatten(0, 1)
        weights.append(weight)
    for before, after in pairwise(weights):
        torch.testing.assert_close(*norms(before, after, 2), rtol=5e-3, atol=0.0)
    with torch.no_grad():  # the rebuilt layer has no bias for the shift of the mean, which is the same everywhere
        difference = small(x) - rebuilt(x)
        shift = small.get_parameter(f"0.{len(weights) - 1}.bias").view(-1, 1, 1)
        torch.testing.assert_close(difference, shift.expand_as(difference), rtol=1e-3, atol=1e-3)

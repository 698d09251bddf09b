"""Large weights are decomposed in single precision. Here the weights are small, and the limit is lower still."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.decomposition import DECOMPOSITIONS, Decomposition, LayerMoments, metric
from tests.decomposition.passes import moments_on

SHAPES = {"kernel": (24, 10, 3, 3), "tall": (90, 4, 3, 3), "linear": (40, 60), "wide linear": (60, 40)}

RESOLUTION = 3e-4
"""The relative error that single precision cannot resolve: the root of 1e-7."""


def spread_weight(shape: tuple[int, ...]) -> Tensor:
    """A weight in float32 whose singular values fall by four orders of magnitude."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3)).flatten(1)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u * torch.logspace(0, -4, len(s)) @ vt).reshape(shape)


def moments_of(weight: Tensor) -> LayerMoments:
    """Moments on inputs whose channels vary by three orders of magnitude."""
    channels = weight.shape[1]
    images = torch.randn(64, channels, 6, 6, generator=torch.Generator().manual_seed(4))
    images *= torch.logspace(0, -3, channels)[:, None, None]
    return moments_on(weight, images)


def pair(
    method: str, weight: Tensor, moments: LayerMoments | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Decomposition, Decomposition]:
    """The same weight, decomposed in single and in double precision."""
    found = []
    for limit in (1, 2**60):
        for bound in ("LARGE", "WIDE"):
            monkeypatch.setattr(metric, bound, limit)
        found.append(DECOMPOSITIONS[method](weight, 1, moments))
        found[-1].error_table()  # computes the bases
    return found[0], found[1]


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_single_precision_loses_nothing_that_matters(
    shape: tuple[int, ...], method: str, with_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = DECOMPOSITIONS[method]
    if kind.needs_kernel and len(shape) == 2:
        pytest.skip("the method needs a kernel")
    weight = spread_weight(shape)
    single, double = pair(method, weight, moments_of(weight) if with_data else None, monkeypatch)
    assert single.max_ranks == double.max_ranks
    ranks = [single.fraction(share) for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    for each in ranks:
        assert single.relative_error(each) == pytest.approx(double.relative_error(each), rel=1e-3, abs=RESOLUTION)
        if not with_data:  # the prediction is that of the factors found
            lost = float((single.reconstruct(each) - weight).norm() / weight.norm())
            assert single.relative_error(each) == pytest.approx(lost, rel=1e-3, abs=1e-5)
        shifts = single.bias_shift(each), double.bias_shift(each)
        if shifts[0] is None or shifts[1] is None:
            assert not with_data
        else:
            torch.testing.assert_close(shifts[0], shifts[1], rtol=1e-2, atol=1e-4)
    assert float((single.reconstruct(ranks[-1]) - weight).norm() / weight.norm()) < 1e-4
    _, errors = single.error_table()
    assert errors.min() < (RESOLUTION if with_data else 1e-4)


def test_a_double_precision_weight_stays_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric, "LARGE", 1)
    weight = spread_weight(SHAPES["kernel"]).double()
    for method, kind in DECOMPOSITIONS.items():
        found = kind(weight)
        assert float((found.reconstruct(found.max_ranks) - weight).norm() / weight.norm()) < 1e-12, method


def test_with_data_directions_of_small_variance_are_told_apart_in_double_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Variances of a wide layer's outputs span more orders of magnitude than single precision holds."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.linalg.qr(torch.randn(60, 60, generator=generator))[0]
    images = torch.randn(64, 60, 8, 8, generator=generator) * torch.logspace(0, -5, 60)[:, None, None]
    single, double = pair("svd", weight, moments_on(weight, images), monkeypatch)
    rows = images.movedim(1, -1).flatten(0, 2).double()
    for rank in (10, 20, 30, 40):
        lost = [
            float(((weight - each.reconstruct((rank,))).double() @ rows.T).square().sum()) for each in (single, double)
        ]
        assert lost[0] == pytest.approx(lost[1], rel=1e-2), rank

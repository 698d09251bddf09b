from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.calibration import calibrate
from common.calibration.moments import held_out_images
from common.decomposition import DECOMPOSITIONS, Decomposition, LayerMoments, decompose
from common.decomposition.choice import SHARES, FixedFactors, HeldOut, SelectedDecomposition
from common.network.shapes import trace_layers
from common.network.weights import convolution_weight
from common.planning.decompositions import layer_method

LAYERS: dict[str, Callable[[], Any]] = {
    "3x3": lambda: nn.Conv2d(8, 10, 3, padding=1),
    "5x3 strided": lambda: nn.Conv2d(8, 10, (5, 3), (2, 1), (2, 1), bias=False),
    "dilated grouped": lambda: nn.Conv2d(8, 12, 3, padding="same", dilation=2, groups=2),
    "reflect": lambda: nn.Conv2d(8, 10, 3, padding=1, padding_mode="reflect"),
    "pointwise": lambda: nn.Conv2d(8, 10, 1),
    "transposed": lambda: nn.ConvTranspose2d(8, 10, 2, 2),
    "transposed overlapping": lambda: nn.ConvTranspose2d(8, 10, 3, 2, 1, 1),
    "transposed grouped": lambda: nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=2),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 10)),
    "linear of positions": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(36, 20)),
}


def network(kind: str) -> nn.Sequential:
    """The layer after a ReLU whose channels have unequal variances."""
    torch.manual_seed(0)
    mix = nn.Conv2d(3, 8, 3, padding=1)
    with torch.no_grad():
        mix.weight.mul_(torch.logspace(0.5, -1, 8).view(8, 1, 1, 1))
    return nn.Sequential(mix, nn.ReLU(), LAYERS[kind]()).double().eval()


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 3, 3, generator=generator, dtype=torch.float64)
    return nn.functional.interpolate(coarse, size=6, mode="bilinear")


def last_layer(model: nn.Module) -> tuple[str, Any]:
    """The last layer with a weight, and its name."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "weight")][-1]


def selected(kind: str, method: str, moments: LayerMoments | None = None, sweeps: int = 0) -> SelectedDecomposition:
    """The layer's decomposition with ``moments``, by default those of 64 images."""
    model = network(kind)
    name, layer = last_layer(model)
    moments = moments or calibrate(model, [images(64)])[name]
    method = layer_method(method, trace_layers(model, images(1))[name])
    groups = getattr(layer, "groups", 1)
    found = decompose(DECOMPOSITIONS[method], convolution_weight(layer), groups, moments, sweeps)
    assert isinstance(found, SelectedDecomposition)
    return found


def variants(found: SelectedDecomposition) -> tuple[Decomposition, Decomposition]:
    """The data-aware and the weight-only decomposition of the same weight."""
    kind = DECOMPOSITIONS[found.method]
    return kind(found.original, found.groups, found.moments), kind(found.original, found.groups)


@pytest.mark.parametrize("method", ["svd", "tucker2", "spatial_svd"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_measured_error_is_that_of_the_layers_output(kind: str, method: str) -> None:
    """It covers all positions of the held-out images; the bias holds the mean of the other images."""
    model, x = network(kind), images(20)
    name, layer = last_layer(model)
    moments = calibrate(model, [x])[name]
    method = layer_method(method, trace_layers(model, x)[name])
    groups = getattr(layer, "groups", 1)
    assert moments.held_out is not None
    decomposition = DECOMPOSITIONS[method](convolution_weight(layer), groups, moments)
    ranks, held_out = decomposition.fraction(0.5), x[held_out_images(0, len(x))]
    measured = HeldOut(decomposition.original, groups, moments).error(decomposition, ranks)
    shift = decomposition.bias_shift(ranks)
    assert shift is not None
    weight = convolution_weight(layer).reshape(groups, -1, *moments.patch_mean.shape[1:])
    mean = torch.einsum("goihw,gihw->go", weight, moments.patch_mean).flatten()
    with torch.no_grad():
        dense = model(held_out)
        bias = torch.zeros(()) if layer.bias is None else layer.bias.clone()
        low_rank = decomposition.reconstruct(ranks)
        if isinstance(layer, nn.ConvTranspose2d):
            low_rank = low_rank.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        layer.weight.copy_(low_rank)
        axis = -1 if isinstance(layer, nn.Linear) else 1
        changes = (dense - model(held_out)).movedim(axis, -1) - shift
        outputs = dense.movedim(axis, -1) - bias - mean
    expected = float(changes.square().sum() / outputs.square().sum())
    # If the 512 patches are only a sample of the positions, the error is only near the expected one.
    exact = len(moments.held_out) == outputs[..., 0].numel()
    assert measured == pytest.approx(expected, rel=1e-4 if exact else 0.15)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_no_variant_has_a_smaller_error_at_any_ranks(kind: str, method: str) -> None:
    found = selected(kind, method)
    for share in (0.1, 0.25, 0.4, 0.6, 0.75, 0.9):
        ranks = found.fraction(share)
        errors = [found.held_out.error(each, ranks) for each in (found, *variants(found))]
        assert errors[0] <= 1.001 * min(errors[1:]) + 1e-9, (share, errors)


@pytest.mark.parametrize("method", [name for name, kind in DECOMPOSITIONS.items() if kind.has_sweeps])
@pytest.mark.parametrize("kind", LAYERS)
def test_no_swept_variant_is_clearly_better_and_none_raises_the_error_on_its_own_moments(
    kind: str, method: str
) -> None:
    found = selected(kind, method, sweeps=2)
    for share in (0.25, 0.5, 0.75, 0.9):
        ranks = found.fraction(share)
        swept = [DECOMPOSITIONS[found.method](found.original, found.groups, m, 2) for m in (found.moments, None)]
        start = min((found.held_out.errors(each, ranks) for each in variants(found)), key=lambda e: float(e.mean()))
        bounds = []
        for each in (found, *swept):
            change = found.held_out.errors(each, ranks) - start
            bounds.append(float(change.mean() + change.std() / len(change) ** 0.5))
        assert bounds[0] <= min(0, *bounds[1:]) + 1e-6 * float(start.mean()), (share, bounds)
        chosen = found.best(ranks)
        if not isinstance(chosen, FixedFactors):
            continue
        assert found.moments is not None
        assert found.moments.patch_covariance is not None
        covariance, errors = found.moments.patch_covariance.double(), []
        for factored in (chosen, min(variants(found), key=lambda each: found.held_out.error(each, ranks))):
            lost = (found.original - factored.reconstruct(ranks)).reshape(found.groups, -1, covariance.shape[1])
            errors.append(float((lost @ covariance * lost).sum()))
        assert errors[0] <= (1 + 1e-4) * errors[1], (share, errors)


def misled(moments: LayerMoments) -> LayerMoments:
    """Moments with the order of the variances reversed, as if they came from a few patches of other data."""

    def reversed_variances(covariance: Tensor | None) -> Tensor | None:
        if covariance is None:
            return None
        values, vectors = torch.linalg.eigh(covariance)
        return (vectors * values.flip(-1).unsqueeze(-2)) @ vectors.mT

    output_covariance = reversed_variances(moments.output_covariance)
    assert output_covariance is not None
    input_covariance = reversed_variances(moments.input_covariance)
    return replace(moments, output_covariance=output_covariance, input_covariance=input_covariance)


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("kind", ["3x3", "dilated grouped", "transposed grouped", "pointwise", "linear of positions"])
def test_misleading_moments_are_not_used(kind: str, method: str, sweeps: int) -> None:
    model = network(kind)
    moments = misled(calibrate(model, [images(64)])[last_layer(model)[0]])
    found = selected(kind, method, moments, sweeps)
    aware, plain = variants(found)
    assert found.max_ranks == aware.max_ranks == plain.max_ranks
    for share in (0.3, 0.5, 0.7):
        ranks = found.fraction(share)
        least = found.held_out.error(plain, ranks)
        assert least < found.held_out.error(aware, ranks)
        assert found.held_out.error(found, ranks) <= 1.0001 * least
    ranks = found.fraction(0.5)
    if not sweeps:
        torch.testing.assert_close(found.reconstruct(ranks), plain.reconstruct(ranks))
        for factor, expected in zip(found.factors(ranks), plain.factors(ranks), strict=True):
            torch.testing.assert_close(factor, expected)
    lost = (found.original - found.reconstruct(ranks)).reshape(found.grouped.shape)
    shift = found.bias_shift(ranks)
    torch.testing.assert_close(shift, torch.einsum("goihw,gihw->go", lost, moments.patch_mean).flatten())
    table, errors = found.error_table()
    variance = float(aware.metric.weighted.square().sum())
    for row, error in list(zip(table, errors, strict=True))[::5]:
        predicted, between = found.relative_error(tuple(map(int, row))), DECOMPOSITIONS[found.method].interpolates
        assert predicted == pytest.approx(error, rel=0.15 if between else 0, abs=1e-9)
        energy = found.lost_energy(tuple(map(int, row)))
        assert energy == pytest.approx(predicted**2 * variance, rel=1e-6, abs=1e-12)
    torch.testing.assert_close(found.spectrum, plain.spectrum)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_weight_only_errors_are_rescaled_to_errors_of_the_output(method: str) -> None:
    """Otherwise they could not be compared with the errors of a data-aware method."""
    moments = misled(calibrate(network("3x3"), [images(64)])["2"])
    found = selected("3x3", method, moments)
    plain, changes = variants(found)[1], []
    for share in SHARES:
        ranks = found.near(share)
        measured = math.sqrt(found.held_out.error(found, ranks))
        assert found.relative_error(ranks) == pytest.approx(measured, rel=1e-3)
        changes.append(abs(math.log(plain.relative_error(ranks) / measured)))
    assert max(changes) > 0.04
    for share in (0.4, 0.5, 0.6):
        ranks = found.fraction(share)
        measured = math.sqrt(found.held_out.error(found, ranks))
        assert found.relative_error(ranks) == pytest.approx(measured, rel=0.35)
    assert found.relative_error(found.max_ranks) < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(DECOMPOSITIONS)), st.integers(0, 2**31), st.integers(1, 2), st.booleans())
def test_errors_fall_with_the_ranks_for_either_variant(method: str, seed: int, groups: int, misleads: bool) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, groups=groups)).eval()
    x = torch.randn(40, 6, 5, 5) * torch.rand(6, 1, 1)
    moments = calibrate(model, [x])["0"]
    moments = misled(moments) if misleads else moments
    found = decompose(DECOMPOSITIONS[method], convolution_weight(model[0]), groups, moments, 0)  # type: ignore[arg-type]
    ranks, errors = found.error_table()
    assert (errors >= 0).all()
    table = {tuple(map(int, row)): float(error) for row, error in zip(ranks, errors, strict=True)}
    for row, error in table.items():
        higher = tuple(min(rank + 1, max_rank) for rank, max_rank in zip(row, found.max_ranks, strict=True))
        assert table.get(higher, 0.0) <= error + 1e-7
    assert table[found.max_ranks] < 1e-4
    factors = found.factors(found.fraction(0.5))
    assert all(factor.isfinite().all() for factor in factors)


@pytest.mark.parametrize("method", ["tucker2", "htd"])
@pytest.mark.parametrize("kind", ["3x3", "5x3 strided", "dilated grouped", "transposed overlapping"])
def test_sweeps_keep_the_measured_output_basis(kind: str, method: str) -> None:
    found = selected(kind, method)
    swept = DECOMPOSITIONS[found.method](found.original, found.groups, found.moments, sweeps=2)
    unswept = variants(found)[0]
    ranks = found.fraction(0.5)
    last = [
        each.factors(ranks)[-1].flatten(1).unflatten(0, (found.groups, -1)) for each in (swept, unswept)
    ]  # (G, O/G, r)
    torch.testing.assert_close(last[0], last[1])
    assert swept.relative_error(ranks) <= unswept.relative_error(ranks) + 1e-9


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_moments_without_held_out_patches_are_trusted(method: str) -> None:
    model = network("3x3")
    moments = replace(calibrate(model, [images(64)])["2"], held_out=None, patches=None)
    weight = convolution_weight(model[2])  # type: ignore[arg-type]
    found = decompose(DECOMPOSITIONS[method], weight, 1, moments, 0)
    assert type(found) is DECOMPOSITIONS[method]
    ranks = found.fraction(0.5)
    torch.testing.assert_close(found.reconstruct(ranks), DECOMPOSITIONS[method](weight, 1, moments).reconstruct(ranks))


def test_a_zero_weight_and_constant_patches_are_decomposed() -> None:
    model = network("3x3")
    moments = calibrate(model, [images(64)])["2"]
    for method in DECOMPOSITIONS:
        kind = DECOMPOSITIONS[method]
        zero = decompose(kind, torch.zeros(10, 8, 3, 3).double(), 1, moments, 2)
        assert not zero.reconstruct(zero.fraction(0.5)).any()
        assert zero.relative_error(zero.fraction(0.5)) == 0
        assert moments.held_out is not None
        constant = replace(moments, held_out=moments.patch_mean.flatten(0, 1).expand_as(moments.held_out).float())
        weight = convolution_weight(model[2])  # type: ignore[arg-type]
        found = decompose(kind, weight, 1, constant, 2)
        assert found.reconstruct(found.fraction(0.5)).isfinite().all()
        torch.testing.assert_close(found.reconstruct(found.max_ranks), weight.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_factors_have_the_dtype_of_the_weight(dtype: torch.dtype) -> None:
    model = network("3x3")
    moments = calibrate(model, [images(64)])["2"]
    weight = convolution_weight(model[2]).to(dtype)  # type: ignore[arg-type]
    for method in DECOMPOSITIONS:
        found = decompose(DECOMPOSITIONS[method], weight, 1, moments, 2)
        factors = found.factors(found.fraction(0.5))
        assert {factor.dtype for factor in factors} == {dtype}
        assert all(factor.isfinite().all() for factor in factors)

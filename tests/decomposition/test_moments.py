from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.calibration import calibrate
from common.calibration.moments import held_out_images
from common.compression import compress
from common.decomposition import DECOMPOSITIONS, SVD, LayerMoments
from common.network.shapes import trace_layers
from common.network.weights import convolution_weight
from common.planning import Fixed, RankPlan, plan_ranks
from common.planning.decompositions import Decompositions, layer_method
from common.training import TrainingSettings, train
from tests.decomposition.passes import layer_pass
from tests.networks import tiny_cnn, tiny_digits

LAYERS: dict[str, Any] = {
    "3x3": lambda: nn.Conv2d(6, 10, 3, padding=1),
    "5x3 strided": lambda: nn.Conv2d(6, 10, (5, 3), (2, 1), (2, 1), bias=False),
    "same dilated grouped": lambda: nn.Conv2d(6, 10, 3, padding="same", dilation=2, groups=2),
    "reflect": lambda: nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect"),
    "pointwise": lambda: nn.Conv2d(6, 10, 1),
    "wide": lambda: nn.Conv2d(6, 90, 3, padding=1),
    "transposed": lambda: nn.ConvTranspose2d(6, 10, 2, 2),
    "transposed overlapping": lambda: nn.ConvTranspose2d(6, 10, 3, 2, 1, 1, groups=2),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6 * 12 * 12, 10)),
}


def network(kind: str) -> nn.Sequential:
    """The layer after another one, whose output channels are correlated, not centred and of unequal variance."""
    torch.manual_seed(0)
    mix = nn.Conv2d(3, 6, 3, padding=1)
    with torch.no_grad():
        mix.weight.mul_(torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5, 0.1]).view(6, 1, 1, 1))
        mix.bias.fill_(0.5)  # type: ignore[union-attr]
    return nn.Sequential(mix, nn.ReLU(), LAYERS[kind]()).double().eval()


def inputs(seed: int, count: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    return nn.functional.interpolate(coarse, size=12, mode="bilinear") + 0.3


def not_held_out(x: Tensor) -> Tensor:
    """The images of a first batch that the covariances come from."""
    return x[~held_out_images(0, len(x))]


def last_layer(model: nn.Module) -> str:
    """Name of the last layer with a weight."""
    return [name for name, module in model.named_modules() if hasattr(module, "weight")][-1]


def output_error(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    """Squared error of the network's output."""
    with torch.no_grad():
        return float((model(x) - small(x)).square().sum())


@pytest.mark.parametrize("kind", LAYERS)
def test_the_output_covariance_is_that_of_the_layers_outputs(kind: str) -> None:
    model, batches = network(kind), [inputs(1), inputs(2)]
    moments = calibrate(model, batches, positions=100_000)[last_layer(model)]
    with torch.no_grad():
        output = model(not_held_out(torch.cat(batches)))
    rows = output if output.dim() == 2 else output.movedim(1, -1).flatten(0, 2)
    covariance = torch.cov(rows.T, correction=0)
    size = moments.output_covariance.shape[1]
    for index, block in enumerate(moments.output_covariance):
        own = slice(index * size, (index + 1) * size)
        torch.testing.assert_close(block, covariance[own, own], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_weight_maps_the_mean_patch_to_the_mean_output(kind: str) -> None:
    """The mean of sampled patches is accurate enough for this."""
    model, x = network(kind), inputs(1)
    layer = model.get_submodule(last_layer(model))
    moments = calibrate(model, [x], positions=50_000)[last_layer(model)]
    groups = getattr(layer, "groups", 1)
    weight = convolution_weight(layer).reshape(groups, -1, *moments.patch_mean.shape[1:])  # type: ignore[arg-type]
    predicted = torch.einsum("goihw,gihw->go", weight, moments.patch_mean).flatten()
    with torch.no_grad():
        output = model(not_held_out(x))
    bias = layer.bias if layer.bias is not None else torch.zeros(())
    measured = (output if output.dim() == 2 else output.mean((2, 3))).mean(0) - bias
    spread = float(output.std())
    torch.testing.assert_close(predicted, measured.detach(), rtol=0, atol=0.1 * spread)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_full_rank_is_exact_with_moments_too(kind: str, method: str) -> None:
    model, x = network(kind), inputs(1)
    moments = calibrate(model, [x])
    plan = plan_ranks(model, x, method, Fixed("full", only_if_smaller=False), moments=moments)
    small = compress(model, plan, moments=moments)
    assert output_error(model, small, inputs(9)) < 1e-12 * float(model(inputs(9)).detach().square().sum())


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_data_aware_factors_beat_plain_ones_on_held_out_inputs(kind: str, method: str, share: float) -> None:
    model, held_out = network(kind), inputs(99, count=64)
    name = last_layer(model)
    errors = []
    for moments in (calibrate(model, [inputs(seed) for seed in range(8)]), None):
        decompositions = Decompositions(model, moments)
        chosen = layer_method(method, trace_layers(model, held_out)[name])
        plan = RankPlan(
            {name: decompositions.plan(name, chosen, decompositions.get(name, chosen).fraction(share))},
            method,
            "fixed",
        )
        errors.append(output_error(model, compress(model, plan, decompositions=decompositions), held_out))
    aware, plain = errors
    assert aware <= 1.01 * plain


def test_svd_with_moments_is_optimal_on_its_data() -> None:
    """Its error is that of the leading principal components of the outputs, the least of any rank-r linear map."""
    model = network("3x3")
    trusted = {
        name: replace(found, held_out=None, patches=None) for name, found in calibrate(model, [inputs(1)]).items()
    }
    decompositions, x = Decompositions(model, trusted), not_held_out(inputs(1))
    with torch.no_grad():
        rows = model(x).movedim(1, -1).flatten(0, 2)
    centred = rows - rows.mean(0)
    values = torch.linalg.svdvals(centred)
    for rank in (1, 3, 7):
        small = compress(
            model,
            RankPlan({"2": decompositions.plan("2", "svd", (rank,))}, "svd", "fixed"),
            decompositions=decompositions,
        )
        least = float(values[rank:].square().sum())
        assert output_error(model, small, x) == pytest.approx(least, rel=0.02)
        predicted = decompositions.get("2", "svd").relative_error((rank,)) ** 2 * float(values.square().sum())
        assert predicted == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_errors_in_the_metric_fall_with_the_ranks_and_match_the_table(method: str) -> None:
    model = network("3x3")
    decomposition = Decompositions(model, calibrate(model, [inputs(1)])).get("2", method)
    ranks, errors = decomposition.error_table()
    for row, error in list(zip(ranks, errors, strict=True))[::7]:
        tolerance = 0.15 if DECOMPOSITIONS[method].interpolates else 0.0
        assert decomposition.relative_error(tuple(map(int, row))) == pytest.approx(error, rel=tolerance, abs=1e-9)
    for share in (0.2, 0.5, 0.8):
        lower, higher = decomposition.fraction(share), decomposition.fraction(share + 0.2)
        assert decomposition.relative_error(higher) <= decomposition.relative_error(lower)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("defect", ["constant input", "dead channels", "one image", "zero weight"])
def test_degenerate_moments_give_finite_factors(defect: str, method: str) -> None:
    model, x = network("3x3"), inputs(1)
    with torch.no_grad():
        if defect == "constant input":
            x = torch.ones_like(x)
        elif defect == "dead channels":
            model.get_parameter("0.weight")[:3] = 0
            model.get_parameter("0.bias")[:3] = 0
        elif defect == "zero weight":
            model.get_parameter("2.weight").zero_()
    if defect == "one image":
        with pytest.warns(UserWarning, match="^too few calibration patches .* more images than 1$"):
            moments = calibrate(model, [x[:1]], positions=1)
    else:
        moments = calibrate(model, [x])
    full = plan_ranks(model, x, method, Fixed("full", only_if_smaller=False), moments=moments)
    half = plan_ranks(model, x, method, Fixed(0.5, only_if_smaller=False), moments=moments)
    with torch.no_grad():
        torch.testing.assert_close(compress(model, full, moments=moments)(inputs(5)), model(inputs(5)))
        assert compress(model, half, moments=moments)(inputs(5)).isfinite().all()


def test_the_last_factor_gets_a_bias_for_the_shift_of_the_mean() -> None:
    model, x = network("5x3 strided"), inputs(1)
    moments = calibrate(model, [x], positions=50_000)
    plan = plan_ranks(model, x, "svd", Fixed({"2": 2}), moments=moments)
    assert plan.layers["2"].shift
    small = compress(model, plan, moments=moments)
    with torch.no_grad():
        seen = not_held_out(x)
        mean_error = (model(seen) - small(seen)).mean((0, 2, 3)).norm() / model(x).std()
    assert mean_error < 1e-5
    cost = trace_layers(model, x)["2"].cost(plan.layers["2"])[0]
    assert cost == sum(parameter.numel() for parameter in small.get_submodule("2").parameters())


def test_calibration_does_not_change_the_network() -> None:
    model = network("3x3").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibrate(model, [(inputs(1), torch.empty(0))])
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="no batch to calibrate on"):
        calibrate(model, [])


def test_moments_without_a_kernel_need_no_input_covariance() -> None:
    weight = torch.randn(5, 4, dtype=torch.float64)
    covariance = torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)).unsqueeze(0)
    moments = LayerMoments(covariance, torch.zeros(1, 4, 1, 1, dtype=torch.float64))
    assert SVD(weight, moments=moments).max_ranks == (4,)


def test_fewer_samples_than_channels_still_predict_the_error() -> None:
    """Moments whose patches were not counted are used unchanged."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 80)).double().eval()
    x = torch.randn(30, 64, dtype=torch.float64)
    with pytest.warns(UserWarning, match="layers '0' \\(21 of 32 different patches, 9 of 8 held out\\), '2'"):
        found = calibrate(model, [x])
    decompositions = Decompositions(model, {"2": replace(found["2"], held_out=None, patches=None)})
    decomposition, x = decompositions.get("2", "svd"), not_held_out(x)
    with torch.no_grad():
        spread = float((model(x) - model(x).mean(0)).square().sum())
    for rank in (3, 10, 20, 29, 40):
        plan = RankPlan({"2": decompositions.plan("2", "svd", (rank,))}, "svd", "fixed")
        measured = output_error(model, compress(model, plan, decompositions=decompositions), x) / spread
        assert decomposition.relative_error((rank,)) ** 2 == pytest.approx(measured, rel=0.02, abs=1e-5)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_data_aware_factors_beat_plain_ones_in_every_layer_of_a_trained_network(method: str) -> None:
    data, model = tiny_digits(limit=600), tiny_cnn(width=24)
    train(model, data, TrainingSettings(epochs=4.0, amp="off"))
    model.eval()
    held_out = torch.cat([images for images, _ in data.test])
    moments = calibrate(model, data.calibration)
    for name, shape in trace_layers(model, held_out[:1]).items():
        chosen = layer_method(method, shape)
        for share in (0.25, 0.5, 0.75):
            errors = []
            for decompositions in (Decompositions(model, moments), Decompositions(model)):
                plan = RankPlan(
                    {name: decompositions.plan(name, chosen, decompositions.get(name, chosen).fraction(share))},
                    method,
                    "fixed",
                )
                small = compress(model, plan, decompositions=decompositions)
                dense_output, output = (layer_pass(network, name, held_out)[1] for network in (model, small))
                errors.append(float((dense_output - output).square().sum()))
            aware, plain = errors
            assert aware <= 1.01 * plain, (name, share)


@pytest.mark.parametrize(
    "settings", [(4, 1, 0, 0), (3, 1, 0, 0), (4, 2, 1, 0), (3, 2, 1, 1), (2, 2, 0, 0), (2, 3, 0, 0)]
)
@pytest.mark.parametrize("size", [1, 4])
def test_a_transposed_convolution_keeps_its_mean_output_exactly(settings: tuple[int, ...], size: int) -> None:
    """This holds however much of the output is cropped, and for output positions without any input."""
    kernel, stride, padding, output_padding = settings
    if kernel + (size - 1) * stride <= 2 * padding:
        pytest.skip("no output is left")
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, kernel, stride, padding, output_padding)).eval()
    x = torch.randn(32, 8, size, size) + torch.arange(8.0)[:, None, None]
    moments = calibrate(model, [x])
    plan = plan_ranks(model, x, "svd", Fixed(2, only_if_smaller=False), moments=moments)
    with torch.no_grad():
        small, dense = compress(model, plan, moments=moments)(not_held_out(x)), model(not_held_out(x))
    torch.testing.assert_close(small.mean((0, 2, 3)), dense.mean((0, 2, 3)), rtol=0, atol=1e-4 * float(dense.std()))


def test_a_large_bias_costs_the_covariance_no_precision() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(4, 6, 3)), torch.randn(16, 4, 8, 8)
    nn.init.zeros_(model.get_parameter("0.bias"))
    plain = calibrate(model, [x])["0"].output_covariance
    nn.init.constant_(model.get_parameter("0.bias"), 1e4)
    torch.testing.assert_close(calibrate(model, [x])["0"].output_covariance, plain, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_bias_shift_is_the_mean_output_of_the_lost_weight(kind: str, method: str) -> None:
    model = network(kind)
    name = last_layer(model)
    moments = calibrate(model, [inputs(1)])
    decompositions = Decompositions(model, moments)
    decomposition = decompositions.get(name, layer_method(method, trace_layers(model, inputs(1))[name]))
    ranks, mean = decomposition.fraction(0.4), moments[name].patch_mean
    lost = (decomposition.original - decomposition.reconstruct(ranks)).reshape(len(mean), -1, *mean.shape[1:])
    shift = decomposition.bias_shift(ranks)
    assert shift is not None
    torch.testing.assert_close(shift, torch.einsum("goihw,gihw->go", lost, mean).flatten())
    assert shift.abs().max() > 0

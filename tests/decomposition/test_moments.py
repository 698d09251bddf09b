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
    """The layer behind another one, whose outputs are correlated, unequal and not centred."""
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


def learned(x: Tensor) -> Tensor:
    """The images of a first batch that the covariances are made of."""
    return x[~held_out_images(0, len(x))]


def the_layer(model: nn.Module) -> str:
    return [name for name, module in model.named_modules() if hasattr(module, "weight")][-1]


def output_error(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - small(x)).square().sum())


@pytest.mark.parametrize("kind", LAYERS)
def test_moments_are_those_of_the_outputs_and_inputs(kind: str) -> None:
    model, batches = network(kind), [inputs(1), inputs(2)]
    moments = calibrate(model, batches, positions=100_000)[the_layer(model)]
    with torch.no_grad():
        output = model(learned(torch.cat(batches)))
    rows = output if output.dim() == 2 else output.movedim(1, -1).flatten(0, 2)
    covariance = torch.cov(rows.T, correction=0)
    size = moments.output_covariance.shape[1]
    for index, block in enumerate(moments.output_covariance):
        own = slice(index * size, (index + 1) * size)
        torch.testing.assert_close(block, covariance[own, own], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_outputs_mean_follows_from_the_patches_mean(kind: str) -> None:
    """Sampled patches, folded with the weight, give the mean that the layer really puts out."""
    model, x = network(kind), inputs(1)
    layer = model.get_submodule(the_layer(model))
    moments = calibrate(model, [x], positions=50_000)[the_layer(model)]
    groups = getattr(layer, "groups", 1)
    weight = convolution_weight(layer).reshape(groups, -1, *moments.patch_mean.shape[1:])  # type: ignore[arg-type]
    predicted = torch.einsum("goihw,gihw->go", weight, moments.patch_mean).flatten()
    with torch.no_grad():
        output = model(learned(x))
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
    name = the_layer(model)
    errors = []
    for moments in (calibrate(model, [inputs(seed) for seed in range(8)]), None):
        kept = Decompositions(model, moments)
        chosen = layer_method(method, trace_layers(model, held_out)[name])
        plan = RankPlan({name: kept.plan(name, chosen, kept.get(name, chosen).fraction(share))}, method, "fixed")
        errors.append(output_error(model, compress(model, plan, decompositions=kept), held_out))
    aware, plain = errors
    assert aware <= 1.01 * plain


def test_svd_with_moments_is_optimal_on_its_data() -> None:
    """No rank-r linear map of the outputs beats their leading principal components."""
    model = network("3x3")
    trusted = {
        name: replace(found, held_out=None, patches=None) for name, found in calibrate(model, [inputs(1)]).items()
    }
    kept, x = Decompositions(model, trusted), learned(inputs(1))
    with torch.no_grad():
        rows = model(x).movedim(1, -1).flatten(0, 2)
    centred = rows - rows.mean(0)
    values = torch.linalg.svdvals(centred)
    for rank in (1, 3, 7):
        small = compress(model, RankPlan({"2": kept.plan("2", "svd", (rank,))}, "svd", "fixed"), decompositions=kept)
        least = float(values[rank:].square().sum())
        assert output_error(model, small, x) == pytest.approx(least, rel=0.02)
        predicted = kept.get("2", "svd").relative_error((rank,)) ** 2 * float(values.square().sum())
        assert predicted == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_errors_stay_monotone_and_true_in_the_metric(method: str) -> None:
    model = network("3x3")
    decomposition = Decompositions(model, calibrate(model, [inputs(1)])).get("2", method)
    ranks, errors = decomposition.error_table()
    for row, error in list(zip(ranks, errors, strict=True))[::7]:
        assert decomposition.relative_error(tuple(map(int, row))) == pytest.approx(error, abs=1e-9)
    for share in (0.2, 0.5, 0.8):
        less, more = decomposition.fraction(share), decomposition.fraction(share + 0.2)
        assert decomposition.relative_error(more) <= decomposition.relative_error(less)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("odd", ["constant input", "dead channels", "one image", "zero weight"])
def test_degenerate_moments(odd: str, method: str) -> None:
    model, x = network("3x3"), inputs(1)
    with torch.no_grad():
        if odd == "constant input":
            x = torch.ones_like(x)
        elif odd == "dead channels":
            model.get_parameter("0.weight")[:3] = 0
            model.get_parameter("0.bias")[:3] = 0
        elif odd == "zero weight":
            model.get_parameter("2.weight").zero_()
    if odd == "one image":
        with pytest.warns(UserWarning, match="^too few calibration patches .* more images than 1$"):
            moments = calibrate(model, [x[:1]], positions=1)
    else:
        moments = calibrate(model, [x])
    full = plan_ranks(model, x, method, Fixed("full", only_if_smaller=False), moments=moments)
    half = plan_ranks(model, x, method, Fixed(0.5, only_if_smaller=False), moments=moments)
    with torch.no_grad():
        torch.testing.assert_close(compress(model, full, moments=moments)(inputs(5)), model(inputs(5)))
        assert compress(model, half, moments=moments)(inputs(5)).isfinite().all()


def test_the_shift_goes_into_a_bias_of_the_last_factor() -> None:
    model, x = network("5x3 strided"), inputs(1)
    moments = calibrate(model, [x], positions=50_000)
    plan = plan_ranks(model, x, "svd", Fixed({"2": 2}), moments=moments)
    assert plan.layers["2"].shift
    small = compress(model, plan, moments=moments)
    with torch.no_grad():
        seen = learned(x)
        lost = (model(seen) - small(seen)).mean((0, 2, 3)).norm() / model(x).std()
    assert lost < 1e-5
    cost = trace_layers(model, x)["2"].cost(plan.layers["2"])[0]
    assert cost == sum(parameter.numel() for parameter in small.get_submodule("2").parameters())


def test_calibration_leaves_the_network_alone() -> None:
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
    """Moments that nobody counted the patches of are taken as they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 80)).double().eval()
    x = torch.randn(30, 64, dtype=torch.float64)
    with pytest.warns(UserWarning, match="layers '0' \\(21 of 32 different patches, 9 of 8 held out\\), '2'"):
        found = calibrate(model, [x])
    kept = Decompositions(model, {"2": replace(found["2"], held_out=None, patches=None)})
    decomposition, x = kept.get("2", "svd"), learned(x)
    with torch.no_grad():
        spread = float((model(x) - model(x).mean(0)).square().sum())
    for rank in (3, 10, 20, 29, 40):
        plan = RankPlan({"2": kept.plan("2", "svd", (rank,))}, "svd", "fixed")
        measured = output_error(model, compress(model, plan, decompositions=kept), x) / spread
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
            for kept in (Decompositions(model, moments), Decompositions(model)):
                plan = RankPlan(
                    {name: kept.plan(name, chosen, kept.get(name, chosen).fraction(share))}, method, "fixed"
                )
                small = compress(model, plan, decompositions=kept)
                pair = [output_of(network, name, held_out) for network in (model, small)]
                errors.append(float((pair[0] - pair[1]).square().sum()))
            aware, plain = errors
            assert aware <= 1.01 * plain, (name, share)


def output_of(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What one layer puts out."""
    outputs: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        model(x)
    handle.remove()
    return outputs[0]


@pytest.mark.parametrize(
    "settings", [(4, 1, 0, 0), (3, 1, 0, 0), (4, 2, 1, 0), (3, 2, 1, 1), (2, 2, 0, 0), (2, 3, 0, 0)]
)
@pytest.mark.parametrize("size", [1, 4])
def test_a_transposed_convolution_keeps_its_outputs_mean_exactly(settings: tuple[int, ...], size: int) -> None:
    """However much of what its kernel makes is cropped, or no position meets."""
    kernel, stride, padding, more = settings
    if kernel + (size - 1) * stride <= 2 * padding:
        pytest.skip("no output is left")
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, kernel, stride, padding, more)).eval()
    x = torch.randn(32, 8, size, size) + torch.arange(8.0)[:, None, None]
    moments = calibrate(model, [x])
    plan = plan_ranks(model, x, "svd", Fixed(2, only_if_smaller=False), moments=moments)
    with torch.no_grad():
        small, dense = compress(model, plan, moments=moments)(learned(x)), model(learned(x))
    torch.testing.assert_close(small.mean((0, 2, 3)), dense.mean((0, 2, 3)), rtol=0, atol=1e-4 * float(dense.std()))


def test_a_large_bias_takes_no_digits_from_the_covariance() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(4, 6, 3)), torch.randn(16, 4, 8, 8)
    nn.init.zeros_(model.get_parameter("0.bias"))
    plain = calibrate(model, [x])["0"].output_covariance
    nn.init.constant_(model.get_parameter("0.bias"), 1e4)
    torch.testing.assert_close(calibrate(model, [x])["0"].output_covariance, plain, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_bias_gains_what_the_lost_weight_would_have_put_out(kind: str, method: str) -> None:
    model = network(kind)
    name = the_layer(model)
    moments = calibrate(model, [inputs(1)])
    kept = Decompositions(model, moments)
    decomposition = kept.get(name, layer_method(method, trace_layers(model, inputs(1))[name]))
    ranks, mean = decomposition.fraction(0.4), moments[name].patch_mean
    lost = (decomposition.original - decomposition.reconstruct(ranks)).reshape(len(mean), -1, *mean.shape[1:])
    shift = decomposition.bias_shift(ranks)
    assert shift is not None
    torch.testing.assert_close(shift, torch.einsum("goihw,gihw->go", lost, mean).flatten())
    assert shift.abs().max() > 0

"""Refitting lowers the error on images that it did not see, layer by layer, and leaves everything else alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from common.calibration import calibrate, refit, refitting
from common.calibration.divergence import divergence_for, kl_divergence, outputs_on, squared_error
from common.calibration.moments import held_out_images
from common.calibration.paired import DenseOutputs, paired_layers
from common.compression import compress
from common.decomposition.als import ridge_candidates_of_rows
from common.network.lowrank import LowRank
from common.planning import Fixed, plan_ranks
from tests.networks import lived_in, same_weights, tiny_cnn


class Twice(nn.Module):
    """One layer that runs twice, and a Linear that sees positions instead of images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.tokens, self.head = nn.Linear(16, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.stem(x))))))
        return self.head(torch.relu(self.tokens(x.flatten(2).mT)).mean(1))


def varied() -> nn.Module:
    """Groups, strides, dilation, reflected padding, a transposed layer and a layer without a bias."""
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        *(nn.Conv2d(24, 32, (3, 5), 2, (1, 2), groups=2), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 24, 3, 2, 1, 1), nn.ReLU()),
        *(nn.Conv2d(24, 32, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: lived_in(tiny_cnn()),
    "varied": varied,
    "called twice": Twice,
}


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, size=8, mode="bilinear")


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[kind]().eval()


def compressed(dense: nn.Module, method: str = "tucker2", share: float = 0.3, moments: bool = True) -> nn.Module:
    """The network with every layer at a share of its ranks."""
    measured = calibrate(dense, [images(64)]) if moments else None
    plan = plan_ranks(dense, images(1), method, Fixed(share, only_if_smaller=False), moments=measured)
    return compress(dense, plan, moments=measured)


@pytest.mark.parametrize("method", ["svd", "spatial_svd", "tucker2", "htd"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_it_lowers_the_error_of_every_layer_and_of_the_network(kind: str, method: str) -> None:
    dense = network(kind)
    small = compressed(dense, method)
    fresh = [images(200, seed=1)]
    wanted = outputs_on(dense, fresh)
    before = squared_error(wanted, outputs_on(small, fresh)).mean()
    found = refit(small, dense, list(images(128).split(32)))
    after = squared_error(wanted, outputs_on(small, fresh)).mean()
    assert set(found) == {name for name, module in small.named_modules() if isinstance(module, LowRank)}
    assert all(layer.after <= layer.before for layer in found.values())
    assert any(layer.after < layer.before for layer in found.values())
    assert after < 0.95 * before


def test_the_reported_error_is_that_of_the_networks_on_held_out_images() -> None:
    dense = network("residual")
    small = compressed(dense)
    x = images(40)
    found = refit(small, dense, [x])
    held_out = x[held_out_images(0, len(x))]
    outputs = [outputs_on(each, [held_out]) for each in (dense, small)]
    lost = (outputs[0] - outputs[1]).square().sum(1).mean()
    variance = (outputs[0] - outputs[0].mean(0)).square().sum(1).mean()
    assert list(found)[-1] == "head"  # the last layer: its error is that of the network
    assert found["head"].after == pytest.approx(float(lost / variance), rel=1e-4)


def test_factors_that_were_disturbed_are_found_again() -> None:
    """The dense weights have low rank, so that an exact solution exists."""
    dense = network("varied")
    plan = plan_ranks(dense, images(1), "svd", Fixed(0.5, only_if_smaller=False))
    small = compress(dense, plan)
    compress_exactly = compress(dense, plan, mode="reconstruct")
    with torch.no_grad():
        for module in small.modules():
            if isinstance(module, LowRank):
                last = module.factors[-1].weight
                last.add_(0.2 * last.std() * torch.randn(last.shape, generator=torch.Generator().manual_seed(1)))
    before = squared_error(outputs_on(compress_exactly, [images(50, 1)]), outputs_on(small, [images(50, 1)])).mean()
    refit(small, compress_exactly, list(images(256).split(64)))
    after = squared_error(outputs_on(compress_exactly, [images(50, 1)]), outputs_on(small, [images(50, 1)])).mean()
    assert after < 1e-3 * before


def test_only_layers_after_the_first_factored_one_change() -> None:
    dense = network("residual")
    plan = plan_ranks(dense, images(1), "svd", Fixed({"conv": (4,), "stem.0": "full", "shortcut": "full", "head": 5}))
    small = compress(dense, plan)
    found = refit(small, dense, [images(64)])
    assert next(iter(found)) == "conv"
    assert same_weights(small.get_submodule("stem"), dense.get_submodule("stem"))
    assert "head" in found


def test_a_network_equal_to_the_dense_one_stays_as_it_is() -> None:
    dense = network("residual")
    small = compress(dense, plan_ranks(dense, images(1), "svd", Fixed("full", only_if_smaller=False)))
    wanted = outputs_on(dense, [images(20, 1)])
    refit(small, dense, [images(64)])
    torch.testing.assert_close(outputs_on(small, [images(20, 1)]), wanted, atol=1e-4, rtol=1e-3)


def test_wide_patches_are_fitted_by_the_last_factor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.calibration.refitting.WIDEST_PATCH", 30)
    dense = network("residual")
    small = compressed(dense, "tucker2", 0.4)
    first = {n: m.factors[0].weight.clone() for n, m in small.named_modules() if isinstance(m, LowRank)}
    found = refit(small, dense, list(images(128).split(32)))
    assert found["conv"].after < found["conv"].before
    conv = small.get_submodule("conv")
    assert isinstance(conv, LowRank)
    ratio = conv.factors[0].weight / first["conv"]  # balanced anew, each row by one scale
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3, atol=1e-4)


def test_it_repeats_and_leaves_modes_hooks_and_the_dense_network_alone() -> None:
    dense, results = network("residual"), []
    untouched = network("residual")
    for _ in range(2):
        small = compressed(dense).train()
        small.get_submodule("norm").eval()
        modes = [module.training for module in small.modules()]
        results.append((small, refit(small, dense, list(images(64).split(16)))))
        assert [module.training for module in small.modules()] == modes
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())
    assert same_weights(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert same_weights(dense, untouched)
    assert not any(module._forward_hooks for module in dense.modules())


@pytest.mark.parametrize("kind", ["residual", "varied"])
def test_few_images_are_fitted_as_by_their_moments(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In layers with few places, rows are fewer than a patch has elements; their second moments fit the same."""
    dense, x = network(kind), images(24)
    by_rows, by_moments = compressed(dense, "svd"), compressed(dense, "svd")
    few = mock.Mock(wraps=ridge_candidates_of_rows)
    monkeypatch.setattr(refitting, "ridge_candidates_of_rows", few)
    refit(by_rows, dense, [x[:12], x[12:]])
    calls = few.call_count
    assert calls
    monkeypatch.setattr(refitting, "fits_in_one_step", lambda *_: False)
    refit(by_moments, dense, [x[:12], x[12:]])
    assert few.call_count == calls
    with torch.no_grad():
        torch.testing.assert_close(by_rows(images(50, 1)), by_moments(images(50, 1)), rtol=1e-3, atol=1e-4)


def test_bad_data_is_refused_before_anything_changes() -> None:
    dense = network("residual")
    small = compressed(dense)
    copy = compressed(dense)
    with pytest.raises(ValueError, match="batches is empty"):
        refit(small, dense, [])
    broken = images(16)
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'stem.0': its inputs on the calibration data are not finite"):
        refit(small, dense, [broken])
    with pytest.raises(ValueError, match=r"'stem.0': the squares of its inputs .* are not finite"):
        refit(small, dense, [1e25 * images(16)])
    with pytest.raises(ValueError, match="does not take x of shape"):
        refit(small, dense, [torch.zeros(4, 5, 8, 8)])
    assert same_weights(small, copy)


def test_networks_that_do_not_belong_together_are_refused() -> None:
    dense, x = tiny_cnn(), torch.randn(16, 3, 12, 12)
    small = compress(dense, plan_ranks(dense, x[:1], "svd", Fixed(2)))
    with pytest.raises(ValueError, match=r"dense is compressed itself: its layer '[\w.]+' is factored"):
        refit(dense, small, [x])
    with pytest.raises(ValueError, match=r"dense has no layer '[\w.]+', which model has factored"):
        refit(small, nn.Sequential(nn.Conv2d(3, 4, 3)), [x])
    assert refit(dense, dense, [x]) == {}


@pytest.mark.parametrize("shape", [(6, 10), (6, 1, 4, 4), (6, 3, 4, 4)])
def test_divergences_are_zero_for_equal_outputs_and_positive_for_others(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    dense, other = (torch.randn(shape, generator=generator) for _ in range(2))
    for measure in (kl_divergence, squared_error):
        assert measure(dense, dense).shape == (6,)
        torch.testing.assert_close(measure(dense, dense), torch.zeros(6), atol=1e-6, rtol=0)
        assert (measure(dense, other) > 0).all()
    assert divergence_for(dense) is (kl_divergence if len(shape) == 2 else squared_error)
    probabilities = dense.softmax(1) if shape[1] > 1 else torch.cat([1 - dense.sigmoid(), dense.sigmoid()], 1)
    others = other.softmax(1) if shape[1] > 1 else torch.cat([1 - other.sigmoid(), other.sigmoid()], 1)
    expected = (probabilities * (probabilities / others).log()).sum(1).reshape(6, -1).mean(1)
    torch.testing.assert_close(kl_divergence(dense, other), expected, atol=1e-5, rtol=1e-4)


class Routes(nn.Module):
    """Runs a layer on all images or on none, or an expert on some of them, as the features of the stem say."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        self.stem, self.expert = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.head, self.each, self.threshold = nn.Linear(24, 10), each, 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        means = x.mean((1, 2, 3))
        if self.each:
            chosen = means > self.threshold
            x = torch.where(chosen[:, None, None, None], 0, x)
            if chosen.any():
                x[chosen] = x[chosen] + self.expert(x[chosen])
        elif means.mean() > self.threshold:
            x = x + self.expert(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("each", [True, False])
def test_a_layer_that_gets_other_images_stays_as_it_is(each: bool) -> None:
    torch.manual_seed(0)
    model, batch = Routes(each).eval(), images(64)
    means = torch.relu(model.stem(batch)).mean((1, 2, 3)).detach()
    model.threshold = float(means.median()) if each else float(means.mean()) - 1e-6
    small = compress(model, plan_ranks(model, batch[:1], "svd", Fixed(1)))
    assert isinstance(small, Routes)
    small.threshold = model.threshold + (0.0 if each else 1.0)
    weight = copy.deepcopy(small.expert.state_dict())
    found = refit(small, model, [batch])
    assert math.isnan(found["expert"].before)
    assert math.isnan(found["expert"].after)
    assert all(torch.equal(value, weight[name]) for name, value in small.expert.state_dict().items())
    assert found["stem"].after < found["stem"].before


class TwiceEach(nn.Module):
    """Takes its images one by one, each twice through one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(self.layer(image[None])) for image in x])


def test_rows_of_one_image_are_held_out_together() -> None:
    model, batch = TwiceEach(), images(16)
    recorded = DenseOutputs(paired_layers(model, model))
    recorded.record(model, [batch])
    flags = [bool(call.held_out.unique()) for call in recorded.calls["layer"][0]]
    assert flags == held_out_images(0, 16).repeat_interleave(2).tolist()

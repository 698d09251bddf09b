"""Channels between factors get like ranges, the network computes the same, and int8 loses less."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from common.compression import compress
from common.deploy import OnnxNetwork, export_onnx, onnx_files
from common.deploy.equalizing import equalize_factors
from common.network.lowrank import LowRank
from common.planning import Fixed, plan_ranks

X = torch.randn(24, 16, 9, 9, generator=torch.Generator().manual_seed(0))


def network(groups: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 24, 3, padding=1, groups=groups),
        nn.ReLU(),
        nn.ConvTranspose2d(24, 16, 3, stride=2, groups=groups),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
    ).eval()


def uneven(model: nn.Module, method: str) -> nn.Module:
    """Compress it, and spread the ranges of the channels between factors over three orders of magnitude."""
    small = compress(model, plan_ranks(model, X[:1], method, Fixed(0.5)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in low_rank(small):
            for first, second in pairwise(layer.factors):
                if not any(isinstance(each, nn.ConvTranspose2d) for each in (first, second)):
                    scale = 10 ** (3 * torch.rand(first.weight.shape[0], generator=generator))
                    axes = [1] * (first.weight.dim() - 1)
                    first.weight.mul_(scale.reshape(-1, *axes))
                    groups = getattr(second, "groups", 1)
                    columns = scale.reshape(groups, 1, -1, *axes[1:])
                    second.weight.copy_((second.weight.unflatten(0, (groups, -1)) / columns).flatten(0, 1))
    return small


def low_rank(model: nn.Module) -> list[LowRank]:
    return [module for module in model.modules() if isinstance(module, LowRank)]


def ranges(layer: LowRank, x: Tensor) -> list[Tensor]:
    """The greatest magnitude of each channel behind every factor but the last."""
    found = []
    with torch.no_grad():
        for factor in layer.factors[:-1]:
            x = factor(x)
            found.append(x.abs().movedim(1, 0).flatten(1).amax(1))
    return found


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", ["svd", "spatial_svd", "tucker2", "htd", "cp"])
def test_the_network_computes_the_same(method: str, groups: int) -> None:
    small = uneven(network(groups), method)
    weights = {name: value.clone() for name, value in small.state_dict().items()}
    with torch.no_grad():
        wanted, found = small(X), equalize_factors(small, X.split(8))(X)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert all(torch.equal(value, weights[name]) for name, value in small.state_dict().items())


def test_channels_before_a_depthwise_factor_have_one_range() -> None:
    small = uneven(network(), "cp")
    before, after = (ranges(low_rank(each)[0], X) for each in (small, equalize_factors(small, [X])))
    for gap in (0, 1):  # the factors behind both are depthwise
        assert before[gap].max() > 50 * before[gap].min()
        assert torch.allclose(after[gap], after[gap].mean(), rtol=1e-4)


def test_elsewhere_a_channel_and_its_weights_have_one_range() -> None:
    small = equalize_factors(uneven(network(), "svd"), [X])
    layer = low_rank(small)[0]
    weights = layer.factors[1].weight.detach().abs().amax((0, 2, 3))
    share = ranges(layer, X)[0] / weights
    assert torch.allclose(share, share.mean(), rtol=1e-3)


def test_a_channel_that_is_never_used_keeps_its_weights() -> None:
    small = uneven(network(), "svd")
    with torch.no_grad():
        low_rank(small)[0].factors[0].weight[0] = 0
    found = equalize_factors(small, [X])
    assert all(value.isfinite().all() for value in found.state_dict().values())
    with torch.no_grad():
        assert torch.allclose(found(X), small(X), rtol=1e-4, atol=1e-4)


class CallsWithoutBatch(nn.Module):
    """Calls a Linear on a vector, and a convolution image by image."""

    def __init__(self, parts: nn.Sequential) -> None:
        super().__init__()
        self.parts = parts
        self.query = nn.Parameter(torch.randn(64))

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([self.parts[0](image) for image in x.unbind()])
        return maps.mean((2, 3)) + self.parts[6](self.query)[:24]


def test_layers_that_are_called_without_a_batch() -> None:
    small = CallsWithoutBatch(uneven(network(), "svd")).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        wanted, found = small(X), equalize_factors(small, [X])(X)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("place", [0, 1])
def test_pruned_and_hooked_factors_stay_as_they_are(place: int) -> None:
    for change in (
        lambda factor: prune.l1_unstructured(factor, "weight", amount=0.3),
        nn.utils.parametrizations.weight_norm,
        lambda factor: factor.register_forward_hook(lambda *parts: parts[2].clamp(-1, 1)),
    ):
        small = uneven(network(), "svd")
        change(low_rank(small)[0].factors[place])
        with torch.no_grad():
            wanted, found = small(X), equalize_factors(small, [X])(X)
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_channel_that_is_almost_never_used_keeps_its_weights() -> None:
    small = uneven(network(), "cp")
    with torch.no_grad():
        low_rank(small)[0].factors[0].weight[0] *= 1e-35
    found = equalize_factors(small, [X])
    assert all(value.abs().max() < 1e6 for value in found.state_dict().values())


@pytest.mark.parametrize("method", ["htd", "cp"])
def test_int8_files_lose_less(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = uneven(network(), method)
    with torch.no_grad():
        wanted = small(X)

    def error() -> float:
        path = export_onnx(small, tmp_path / "small.onnx", X[:1], precision="int8", batches=[X])
        return float((OnnxNetwork(path)(X) - wanted).norm() / wanted.norm())

    equalized = error()
    monkeypatch.setattr(onnx_files, "equalize_factors", lambda network, inputs: network)
    assert equalized < error() / 2

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.compression import compress
from common.deploy import fold_batchnorm, merge_factors
from common.network import profile
from common.network.lowrank import LowRank, ProductWeight
from common.planning import Fixed, LayerPlan, RankPlan, plan_ranks
from tests.networks import lived_in, same_weights, tiny_cnn

LAYERS: list[tuple[nn.Module, tuple[int, ...], tuple[str, ...]]] = [
    (nn.Conv2d(8, 12, (3, 5), stride=2, padding=1, dilation=(1, 2)), (2, 8, 12, 12), ("svd", "htd", "tucker2")),
    (nn.Conv2d(8, 12, 3, groups=2, bias=False), (2, 8, 9, 9), ("svd", "spatial_svd", "htd")),
    (nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=2), (2, 8, 5, 5), ("svd", "tucker2")),
    (nn.Conv2d(8, 12, 3, padding="same", padding_mode="circular"), (2, 8, 9, 9), ("svd", "tucker2", "spatial_svd")),
    (nn.Linear(8, 12), (2, 7, 8), ("svd",)),
]


def factored(layer: nn.Module, x: Tensor, method: str, share: float | str = 0.5) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(copy.deepcopy(layer), nn.Identity()).eval()
    plan = plan_ranks(model, x, method, Fixed(share, only_if_smaller=False))
    return compress(model, plan)[0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("layer", "shape", "method"), [(layer, shape, method) for layer, shape, methods in LAYERS for method in methods]
)
def test_attributes_weight_and_output_match_the_layer(layer: Any, shape: tuple[int, ...], method: str) -> None:
    x = torch.randn(shape)
    found, exact = factored(layer, x, method), factored(layer, x, method, "full")
    assert isinstance(found, LowRank)
    assert isinstance(found, type(layer))
    for name, value in vars(layer).items():
        if name not in vars(nn.Module()):
            assert getattr(found, name) == value
    assert (found.bias is None) == (layer.bias is None)
    assert tuple(found.weight.shape) == tuple(layer.weight.shape)
    assert (found.weight.dtype, found.weight.device) == (layer.weight.dtype, layer.weight.device)
    with torch.no_grad():
        torch.testing.assert_close(exact.weight + 0, layer.weight + 0, rtol=1e-4, atol=1e-5)
        same = copy.deepcopy(layer)
        same.weight.copy_(found.weight)
        torch.testing.assert_close(found(x), same(x), rtol=1e-4, atol=1e-5)


def test_reading_shape_and_dtype_computes_no_product() -> None:
    class ReadsShape(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.conv.weight
            x = self.conv(x.to(weight.device, weight.dtype)).mean((2, 3))
            y: Tensor = self.head(x) * float(weight.shape[0] == len(weight) and weight.dim() == 4)
            return y

    model, x = ReadsShape().eval(), torch.randn(2, 3, 8, 8)
    small = compress(model, plan_ranks(model, x, "svd", Fixed(2)))
    assert profile(small, x).macs == 36 * (27 * 2 + 2 * 32) + 2 * (32 + 5)


def test_the_product_cannot_be_written_to() -> None:
    layer = factored(nn.Conv2d(8, 12, 3), torch.randn(2, 8, 9, 9), "svd")
    before = copy.deepcopy(layer)
    for write in (
        lambda: nn.init.zeros_(layer.weight),
        lambda: layer.weight.mul_(2),
        lambda: layer.weight.data.copy_(torch.zeros(12, 8, 3, 3)),
        lambda: layer.weight.__setitem__(0, 1.0),
        lambda: setattr(layer.weight, "data", torch.zeros(12, 8, 3, 3)),
        lambda: layer.weight.requires_grad_(False),
    ):
        with pytest.raises(RuntimeError, match="the weight of a factored layer is a product and cannot be changed"):
            write()
    assert same_weights(layer, before)
    with pytest.raises((KeyError, AttributeError)):
        layer.weight = nn.Parameter(torch.zeros(12, 8, 3, 3))


def test_gradients_reach_the_factors_through_the_product() -> None:
    layer = factored(nn.Linear(8, 12), torch.randn(2, 8), "svd")
    layer.weight.square().sum().backward()
    assert all(factor.weight.grad.abs().sum() > 0 for factor in layer.factors)
    assert isinstance(layer.weight, ProductWeight)
    assert "ProductWeight" not in repr(layer.weight.detach())


class WithMethod(nn.Conv2d):
    """A subclass with an extra method and an unchanged computation."""

    def describe(self) -> str:
        return f"{self.in_channels} to {self.out_channels}"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_are_independent(duplicate: Any) -> None:
    model, x = nn.Sequential(WithMethod(3, 16, 3), nn.Conv2d(16, 16, 3)).eval(), torch.randn(2, 3, 9, 9)
    small = compress(model, plan_ranks(model, x, "htd", Fixed(0.3)))
    found: Any = duplicate(small)
    first: Any = found[0]
    assert isinstance(first, WithMethod)
    assert first.describe() == "3 to 16"
    assert first.planned == small.get_submodule("0").planned
    assert torch.equal(found(x), small(x))
    factors: Any = found[0].factors
    factors[0].weight.data.zero_()
    assert not torch.equal(found(x), small(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript is deprecated
def test_torchscript_compiles_a_compressed_network() -> None:
    model, x = tiny_cnn(), torch.randn(2, 3, 8, 8)
    small = compress(model, plan_ranks(model, x, "htd", Fixed(0.3)))
    with torch.no_grad():
        expected = small(x)
        torch.testing.assert_close(torch.jit.script(copy.deepcopy(small))(x), expected)
        torch.testing.assert_close(torch.jit.trace(small, x)(x), expected)


def test_a_merged_layer_keeps_its_shape_and_output() -> None:
    model, x = lived_in(tiny_cnn()), torch.randn(2, 3, 8, 8)
    small = compress(model, RankPlan({"conv": LayerPlan("htd", (15, 40, 30))}, "htd", "fixed"))
    merged: Any = merge_factors(fold_batchnorm(small, x), x)
    assert len(merged.conv.factors) < 4
    assert tuple(merged.conv.weight.shape) == (32, 16, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(merged(x), small(x), rtol=1e-4, atol=1e-5)


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, 4)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.encoder(self.stem(x).flatten(2).transpose(1, 2))
        return y


def test_pytorchs_fused_encoder_runs_the_factors() -> None:
    torch.manual_seed(0)
    model, x = Attentive().eval(), torch.randn(2, 3, 16, 16)
    plan = plan_ranks(model, x, "svd", Fixed("full", only_if_smaller=False))
    assert "encoder.layers.0.linear1" in plan.factored
    exact = compress(model, plan)
    small: Any = compress(model, plan_ranks(model, x, "svd", Fixed(4)))
    called: list[int] = []
    small.encoder.layers[0].linear1.factors[0].register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():  # without gradients, PyTorch takes its fast path
        torch.testing.assert_close(exact(x), model(x), rtol=1e-4, atol=1e-4)
        small(x)
    assert called

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from common.compression import compress
from common.deploy import align_ranks, fold_batchnorm, merge_factors
from common.models import build_model
from common.network.lowrank import LowRank
from common.planning import Fixed, plan_ranks
from tests.networks import lived_in, same_weights, tiny_cnn


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def check_parity(changed: nn.Module, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x)
        assert (changed(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_values_by_hand() -> None:
    """y = ((2x + 1) - 3) / sqrt(4) * 5 + 6 = 5x + 1."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0))
    for tensor, value in zip(model.state_dict().values(), (2.0, 1.0, 5.0, 6.0, 3.0, 4.0), strict=False):
        tensor.fill_(value)
    folded = fold_batchnorm(model)
    assert isinstance(folded, nn.Sequential)
    assert isinstance(folded[1], nn.Identity)
    assert (folded.get_parameter("0.weight").item(), folded.get_parameter("0.bias").item()) == (5.0, 1.0)


def test_a_shared_weight_is_folded_for_one_layer_only() -> None:
    first, second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    second.weight = first.weight
    model = lived_in(nn.Sequential(first, nn.BatchNorm2d(4), second))
    folded = fold_batchnorm(model)
    assert norms(folded) == 0
    check_parity(folded, model, torch.randn(2, 4, 5, 5))


@pytest.mark.parametrize(
    ("name", "size", "settings"),
    [
        ("resnet18", (32, 32), {}),
        ("resnet20", (32, 32), {}),
        ("unet", (21, 18), {"width": 8, "depth": 2}),
        ("unet", (16, 16), {"width": 8, "depth": 2, "upsampling": "bilinear"}),
    ],
)
@pytest.mark.parametrize("method", [None, "svd", "htd"])
def test_every_network_keeps_its_outputs(
    name: str, size: tuple[int, int], settings: dict[str, int], method: str | None
) -> None:
    """The U-Net's forward branches on sizes and cannot be traced; its blocks can."""
    model, x = lived_in(build_model(name, 5, **settings)), torch.randn(2, 3, *size)
    if method:
        model = compress(model, plan_ranks(model, x, method, Fixed(0.3)), sweeps=0)
    model.train()
    before = copy.deepcopy(model)
    folded = fold_batchnorm(model)
    assert norms(model) > norms(folded) == 0
    check_parity(folded, model, x)
    assert model.training
    assert not folded.training
    assert same_weights(model, before)


def test_the_last_factor_takes_the_norm() -> None:
    model = lived_in(tiny_cnn())
    small = compress(model, plan_ranks(model, torch.randn(1, 3, 8, 8), "htd", Fixed({"conv": (4, 6, 5)})))
    folded = fold_batchnorm(small)
    factors = folded.get_submodule("conv")
    assert isinstance(factors, LowRank)
    assert [factor.bias is not None for factor in factors.factors] == [False, False, False, True]
    check_parity(folded, small, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.ConvTranspose2d(6, 9, 3, 2, 1, 1, groups=3), nn.BatchNorm2d(9), (2, 6, 5, 5)),
        (nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4, affine=False), (2, 6, 5, 5)),
        (nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), (2, 6)),
        (nn.Linear(6, 4), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)), (2, 6)),
    ],
)
def test_every_kind_of_layer(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = lived_in(nn.Sequential(layer, norm)), torch.randn(shape)
    folded = fold_batchnorm(model, x)
    assert norms(folded) == 0
    check_parity(folded, model, x)


def test_a_norm_over_the_positions_of_a_linear_stays() -> None:
    model, x = lived_in(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))), torch.randn(2, 8, 8)
    for folded in (fold_batchnorm(model), fold_batchnorm(model, x)):
        assert norms(folded) == 1
        check_parity(folded, model, x)


class Elsewhere(nn.Module):
    """BatchNorms that cannot be folded, each for a different reason."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.forked, self.after_fork = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.hooked = weight_norm(nn.Conv2d(3, 3, 1))
        self.after_hooked = nn.BatchNorm2d(3)
        self.shared, self.one, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.plain, self.without = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        self.tied, self.after_tied = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.linear, self.rows = nn.Linear(4, 4), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        x = self.forked(x)
        x = x + self.after_fork(x)
        x = self.after_hooked(self.hooked(x))
        x = self.one(self.shared(x)) + self.other(self.shared(x))
        x = self.without(self.plain(x))
        x = self.after_tied(self.tied(x)) + nn.functional.conv2d(x, self.tied.weight)
        return self.rows(self.linear(x))


def test_a_norm_used_elsewhere_stays() -> None:
    model = lived_in(Elsewhere())
    folded = fold_batchnorm(model)
    assert norms(folded) == norms(model)
    check_parity(folded, model, torch.randn(2, 3, 4, 4))


class Twice(nn.Module):
    """A network that uses a pair of layers twice and whose forward cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair(torch.relu(self.pair(x)))
        return self.norm(self.conv(x)) if x.mean() > -1e9 else x


class Tapped(nn.Module):
    """A network whose forward cannot be traced and calls the layers of a part one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.whole = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 100:
            return x
        tapped = self.features[0](x)
        return self.whole(self.features[1](tapped)) + tapped


def test_a_part_that_is_used_piece_by_piece_stays() -> None:
    model, x = lived_in(Tapped()), torch.randn(2, 3, 4, 4)
    folded = fold_batchnorm(model, x)
    assert norms(folded) == 1  # the norm of the part that is used as a whole is folded
    check_parity(folded, model, x)


class TappedFactors(nn.Module):
    """The same with two layers whose common width could be aligned."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 100:
            return x
        tapped: Tensor = self.features[0](x)
        return self.features[1](tapped) + tapped.mean(1, keepdim=True)


def test_ranks_between_pieces_that_are_used_one_by_one_are_not_aligned() -> None:
    model, x = TappedFactors().eval(), torch.randn(2, 3, 4, 4)
    check_parity(align_ranks(merge_factors(model, x), 8, x), model, x)


def test_pairs_that_an_untraceable_forward_joins_stay() -> None:
    model = lived_in(Twice())
    folded = fold_batchnorm(model)
    assert norms(folded.get_submodule("pair")) == 0
    assert norms(folded) == 1
    check_parity(folded, model, torch.randn(2, 3, 4, 4))

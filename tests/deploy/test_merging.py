from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.compression import compress
from common.deploy import align_ranks, fold_batchnorm, merge_factors
from common.models import build_model
from common.network import profile
from common.network.layers import factorable_layers
from common.planning import Fixed, plan_ranks
from tests.networks import lived_in, same_weights

MERGED = [
    # a rank that does not pay
    (nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 5, 3, 2, 1)),
    (nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 5, 1)),
    (nn.Conv2d(4, 20, (3, 1), (2, 1), (1, 0), bias=False), nn.Conv2d(20, 5, (1, 5), (1, 3), (0, 2))),
    (nn.Conv2d(4, 9, (3, 1), padding="same", bias=False), nn.Conv2d(9, 5, (1, 3), padding="same", dilation=(1, 2))),
    (nn.Conv2d(4, 8, 1, groups=2, bias=False), nn.Conv2d(8, 6, 3, padding=1, groups=2)),
    (nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 1, bias=False)),
    (nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3)),  # a bias before a kernel without padding
    (nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3, padding=2, padding_mode="reflect")),  # or with padding by image values
    (nn.Conv2d(4, 6, 1, bias=False), nn.ConvTranspose2d(6, 5, 3, 2, 1, 1)),
    (nn.ConvTranspose2d(4, 12, 3, 2, 1, 1, groups=2), nn.Conv2d(12, 6, 1, groups=2)),
    (nn.Linear(9, 9), nn.Linear(9, 4)),
]
KEPT = [
    (nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(2, 5, 3, padding=1)),  # a rank that pays
    (nn.Linear(9, 2), nn.Linear(2, 9)),
    (nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3, padding=1)),  # the bias would meet zero padding
    (nn.Conv2d(4, 6, 1), nn.ConvTranspose2d(6, 5, 3, 2)),  # or the gaps between positions
    (nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 3)),  # two kernels make a larger one
    (nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 5, 1)),
    (nn.Conv2d(4, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 5, 3)),
    # padded on one side
    (nn.Conv2d(4, 6, (2, 1), padding="same", padding_mode="circular", bias=False), nn.Conv2d(6, 5, (1, 3))),
]


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def example(model: nn.Module) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 9) if any(isinstance(module, nn.Linear) for module in model) else torch.randn(2, 4, 9, 8)  # type: ignore[attr-defined]


@pytest.mark.parametrize("layers", MERGED)
def test_two_layers_become_one(layers: tuple[nn.Module, ...]) -> None:
    model = nn.Sequential(*layers)
    x = example(model)
    merged = merge_factors(model, x)
    assert len(factorable_layers(merged)) == 1
    assert profile(merged, x).macs <= profile(model, x).macs
    torch.testing.assert_close(run(merged, x), run(model, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", KEPT)
def test_layers_that_pay_or_cannot_be_merged_stay(layers: tuple[nn.Module, ...]) -> None:
    model = nn.Sequential(*layers)
    assert same_weights(merge_factors(model, example(model)), model)


def test_the_cheapest_cut_is_found() -> None:
    """For one position: 1x1 8 x 2, 3x1 2 x 9 x 3, 1x3 9 x 2 x 3, 1x1 2 x 8; the middle two as 3x3 are 2 x 2 x 9."""
    widths, kernels = (8, 2, 9, 2, 8), ((1, 1), (3, 1), (1, 3), (1, 1))
    factors = [
        nn.Conv2d(widths[i], widths[i + 1], kernels[i], padding=(kernels[i][0] // 2, kernels[i][1] // 2), bias=i == 3)
        for i in range(4)
    ]
    model, x = nn.Sequential(*factors), torch.randn(1, 8, 4, 4)
    assert profile(model, x).macs == 16 * (16 + 54 + 54 + 16)
    merged = merge_factors(model, x)
    assert profile(merged, x).macs == 16 * (16 + 36 + 16)
    torch.testing.assert_close(run(merged, x), run(model, x), atol=1e-5, rtol=1e-5)


def test_merging_never_adds_parameters() -> None:
    """A 1x1 layer before a strided convolution has four times as many positions but few parameters."""
    model = nn.Sequential(nn.Conv2d(4, 3, 1, bias=False), nn.Conv2d(3, 5, 3, 2, 1, bias=False))
    x = torch.randn(1, 4, 8, 8)
    dense = nn.Conv2d(4, 5, 3, 2, 1, bias=False)
    assert profile(dense, x).macs < profile(model, x).macs
    assert profile(dense, x).params > profile(model, x).params
    assert same_weights(merge_factors(model, x), model)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet20", {}),
        ("unet", {"width": 8, "depth": 2}),
        ("unet", {"width": 8, "depth": 2, "upsampling": "bilinear"}),
    ],
)
def test_full_ranks_merge_to_the_dense_network(name: str, settings: dict[str, int]) -> None:
    model, x = lived_in(build_model(name, 3, **settings)), torch.randn(2, 3, 20, 24)
    full = compress(model, plan_ranks(model, x, "htd", Fixed("full", only_if_smaller=False)), sweeps=0)
    dense, merged = fold_batchnorm(model), merge_factors(fold_batchnorm(full), x)
    assert profile(full, x).macs > profile(merged, x).macs == profile(dense, x).macs
    assert profile(merged, x).params == profile(dense, x).params
    expected = run(model, x)
    assert (run(merged, x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_ranks_of_depthwise_factors_are_padded_from_end_to_end() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 5, 1, bias=False),
        nn.Conv2d(5, 5, (3, 1), stride=(2, 1), padding=(1, 0), groups=5, bias=False),
        nn.Conv2d(5, 5, (1, 3), padding=(0, 1), groups=5),
        nn.Conv2d(5, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6),  # a depthwise layer of the network, not between two others
        nn.ReLU(),
        nn.Conv2d(6, 9, 1, groups=3),
        nn.Conv2d(9, 4, 1),
    )
    aligned, x = align_ranks(model, 8), torch.randn(2, 4, 9, 8)
    layers = factorable_layers(aligned).values()
    assert [tuple(layer.weight.shape[:2]) for layer in layers] == [
        (8, 4),
        (8, 1),
        (8, 1),
        (6, 8),
        (6, 1),
        (9, 2),
        (4, 9),
    ]
    assert [layer.groups for layer in layers if isinstance(layer, nn.Conv2d)] == [1, 8, 8, 1, 6, 3, 1]
    torch.testing.assert_close(run(aligned, x), run(model, x), atol=1e-6, rtol=1e-6)
    assert same_weights(align_ranks(model, 5), model)


@pytest.mark.parametrize("ranks", [3, 7, 8, 21])
def test_cp_keeps_its_outputs_when_its_ranks_are_padded(ranks: int) -> None:
    model, x = lived_in(build_model("resnet20", 3)), torch.randn(2, 3, 20, 24)
    small = compress(model, plan_ranks(model, x, "cp", Fixed(ranks)), sweeps=0)
    aligned = align_ranks(merge_factors(fold_batchnorm(small, x), x), 8, x)
    depthwise = [layer for layer in aligned.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert depthwise
    assert all(layer.groups % 8 == 0 for layer in depthwise)
    expected = run(small, x)
    assert (run(aligned, x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_ranks_are_padded_with_zeros() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 3, 1),
        nn.Conv2d(3, 5, 3, padding=1, bias=False),
        nn.ConvTranspose2d(5, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 7, 1),
    )
    aligned = align_ranks(model, 8)
    assert [tuple(layer.weight.shape[:2]) for layer in factorable_layers(aligned).values()] == [
        (8, 4),
        (8, 8),
        (8, 6),  # of a transposed convolution: inputs, outputs
        (7, 6),
    ]
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(run(aligned, x), run(model, x), atol=1e-6, rtol=1e-6)
    assert same_weights(align_ranks(model, 1), model)
    with pytest.raises(ValueError, match="align=0: it must be a whole number of at least 1"):
        align_ranks(model, 0)

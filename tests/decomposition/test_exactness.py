from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.compression.compress import MODES, compress
from common.decomposition import DECOMPOSITIONS
from common.network.kinds import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from common.planning import Fixed, plan_ranks

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
Pair = tuple[int, int]


def relative_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def check_full_rank(layer: nn.Module, x: Tensor, method: str) -> None:
    """At full rank, both modes give the layer's output, and the layer does not change."""
    model = nn.Sequential(layer).eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(x)
        plan = plan_ranks(model, x, method, Fixed("full", only_if_smaller=False))
        assert list(plan.factored) == ["0"]
        for mode in MODES:
            small = compress(model, plan, mode=mode)
            assert relative_difference(small(x), expected) < TOLERANCE[x.dtype], mode
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3), (7, 7)])
def test_convolutions_are_exact_at_full_rank(kernel: Pair, method: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 15, 14, dtype=dtype)
    strides: list[int | Pair] = [1, 2, (2, 1)]
    paddings: list[int | Pair | str] = [0, 1, (2, 1), "same"]
    checked = 0
    for stride, padding, dilation, bias in itertools.product(strides, paddings, [1, 2], [True, False]):
        if padding == "same" and stride != 1:
            continue  # PyTorch refuses this combination
        layer = nn.Conv2d(6, 8, kernel, stride, padding, dilation, bias=bias, dtype=dtype)
        check_full_rank(layer, x, method)
        checked += 1
    assert checked == 40


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("channels", [(6, 8), (8, 6), (3, 20), (20, 3)])
def test_any_ratio_of_channels_is_exact_at_full_rank(channels: Pair, method: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check_full_rank(
        nn.Conv2d(*channels, 3, padding=1, dtype=dtype), torch.randn(2, channels[0], 9, 9, dtype=dtype), method
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("features", [(6, 8), (8, 6), (5, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_are_exact_at_full_rank(features: Pair, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(*features, bias=bias, dtype=dtype)
    check_full_rank(layer, torch.randn(4, features[0], dtype=dtype), "htd")


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("groups", [2, 3])
def test_grouped_convolutions_are_exact_at_full_rank(groups: int, method: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 12, 3, padding=1, groups=groups, dtype=torch.float64)
    check_full_rank(layer, torch.randn(2, 6, 9, 9, dtype=torch.float64), method)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (4, 2)])
def test_transposed_convolutions_are_exact_at_full_rank(kernel: Pair, method: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 7, 5, dtype=dtype)
    strides: list[int | Pair] = [1, 2, (2, 1)]
    paddings: list[int | Pair] = [0, 1, (1, 0)]
    for stride, padding, dilation, groups in itertools.product(strides, paddings, [1, 2], [1, 2]):
        extra = (1, 0) if dilation == 2 or stride in (2, (2, 1)) else 0
        layer = nn.ConvTranspose2d(6, 8, kernel, stride, padding, extra, groups, True, dilation, dtype=dtype)
        check_full_rank(layer, x, method)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_every_padding_mode_is_exact_at_full_rank(padding_mode: Any, method: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (5, 3), 1, (2, 1), padding_mode=padding_mode, dtype=torch.float64)
    check_full_rank(layer, torch.randn(2, 4, 9, 9, dtype=torch.float64), method)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Any convolution of one to three axes, transposed or not, and an input for it."""
    dimensions = draw(st.sampled_from([2, 1, 3]))
    groups = draw(st.sampled_from([1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(2, 5)), groups * draw(st.integers(1, 5))

    def each(least: int, most: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(least, most)] * dimensions))

    kernel, stride = each(1, 4 if dimensions < 3 else 3), each(1, 3)
    shared: dict[str, Any] = {
        "dilation": each(1, 2),
        "groups": groups,
        "bias": draw(st.booleans()),
        "dtype": torch.float64,
    }
    torch.manual_seed(draw(st.integers(0, 1000)))
    x = torch.randn(2, inputs, *(11, 12, 7)[:dimensions], dtype=torch.float64)
    if draw(st.booleans()):
        cropped = each(0, 1) if min(kernel) > 1 else 0
        return TRANSPOSED_CONVOLUTIONS[dimensions - 1](inputs, outputs, kernel, stride, cropped, **shared), x
    padding: Any = draw(st.sampled_from([0, 1, each(1, 2), "valid", "same"]))
    shared["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    return CONVOLUTIONS[dimensions - 1](
        inputs, outputs, kernel, 1 if padding == "same" else stride, padding, **shared
    ), x


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # PyTorch warns that it copies the input
@settings(max_examples=240, deadline=None)
@given(convolutions(), st.sampled_from(sorted(DECOMPOSITIONS)))
def test_any_convolution_is_exact_at_full_rank(drawn: tuple[nn.Module, Tensor], method: str) -> None:
    check_full_rank(*drawn, method)

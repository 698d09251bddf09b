from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.calibration import calibrate
from common.calibration.patches import as_images, inputs_by_kernel, output_patches, sample_positions
from common.decomposition.chain import outputs_of
from common.network.kinds import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from common.network.weights import convolution_weight

SIZE = (7, 5, 6)


def settings_of(transposed: bool, dimensions: int) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of a convolution from 4 to 6 channels that accepts images of ``SIZE``."""

    def each(*most: int) -> st.SearchStrategy[tuple[int, ...]]:
        return st.tuples(*(st.integers(1, value) for value in most[:dimensions]))

    common = {"stride": each(3, 3, 3), "dilation": each(3, 3, 2), "groups": st.sampled_from([1, 2])}
    if transposed:
        padding = st.sampled_from([0, (1, 0, 1)[:dimensions]])
        return st.fixed_dictionaries({**common, "kernel_size": each(3, 3, 3), "padding": padding})
    own = {
        "padding": st.sampled_from([1, (3, 2, 2)[:dimensions]]),
        "padding_mode": st.sampled_from(["zeros", "reflect", "circular"]),
    }
    return st.fixed_dictionaries({**common, **own, "kernel_size": each(3, 2, 3)})


def all_positions(tensor: Tensor) -> tuple[Tensor, ...]:
    return sample_positions(torch.arange(len(tensor)), tensor.shape[2:], tensor[:, 0].numel(), torch.Generator())


def assert_patches_give_the_output(layer: Any, x: Tensor) -> None:
    with torch.no_grad():
        output = layer(x)
        weight, groups = convolution_weight(layer), getattr(layer, "groups", 1)
        images = as_images(layer, x)
        found = as_images(layer, output)
        patches = output_patches(layer, images, all_positions(found))
        expected = found.movedim(1, -1).flatten(0, -2) - layer.bias
        torch.testing.assert_close(outputs_of((weight,), patches, groups), expected)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("kinds", [CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS], ids=["convolution", "transposed"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_output_is_weight_times_patches(dimensions: int, kinds: tuple[Any, ...], data: st.DataObject) -> None:
    """Strides can leave outputs without input, and overlapping transposed kernels give outputs several inputs."""
    arguments = data.draw(settings_of(kinds is TRANSPOSED_CONVOLUTIONS, dimensions))
    torch.manual_seed(0)
    layer = kinds[dimensions - 1](4, 6, **arguments).double()
    assert_patches_give_the_output(layer, torch.randn(3, 4, *SIZE[:dimensions]).double())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_mean_patch_gives_the_mean_output_of_a_transposed_convolution(
    dimensions: int, data: st.DataObject
) -> None:
    arguments = data.draw(settings_of(transposed=True, dimensions=dimensions))
    torch.manual_seed(0)
    layer = TRANSPOSED_CONVOLUTIONS[dimensions - 1](4, 6, **arguments, bias=False).double()
    x = torch.randn(3, 4, *SIZE[:dimensions]).double()
    with torch.no_grad():
        output = layer(x)
        patch = inputs_by_kernel(layer, x, output)[None] / output[:, 0].numel()
        found = outputs_of((convolution_weight(layer),), patch, layer.groups)[0]
    torch.testing.assert_close(found, output.movedim(1, 0).flatten(1).mean(1))


def test_output_is_weight_times_patches_for_linears_with_any_leading_axes() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 6).double()
    for shape in ((4,), (3, 4), (3, 5, 4), (3, 2, 5, 4)):
        assert_patches_give_the_output(layer, torch.randn(shape).double())


def test_output_is_weight_times_patches_with_named_padding_and_output_padding() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6).double()
    assert_patches_give_the_output(nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)).double(), x)
    assert_patches_give_the_output(nn.Conv2d(4, 6, 3, padding="valid").double(), x)
    assert_patches_give_the_output(nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1).double(), x)


def test_positions_are_sampled_from_the_given_images_only() -> None:
    image, y, x = sample_positions(torch.tensor([1, 4]), (3, 5), 1000, torch.Generator())
    assert sorted(zip(image.tolist(), y.tolist(), x.tolist(), strict=True)) == [
        (i, row, column) for i in (1, 4) for row in range(3) for column in range(5)
    ]
    image, y, x = sample_positions(torch.tensor([1, 4]), (30, 50), 400, torch.Generator().manual_seed(0))
    assert len(image) == 400
    assert set(image.tolist()) == {1, 4}
    assert y.max() == 29
    assert x.max() == 49


def test_held_out_patches_come_from_the_held_out_images() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 8, 3, 2)).double().eval()
    x = torch.randn(4, 3, 4, 4).double()
    moments = calibrate(model, [x])["2"]
    with torch.no_grad():
        output = model(x[1::2]) - model.get_parameter("2.bias").view(-1, 1, 1)
    weight = convolution_weight(model[2])  # type: ignore[arg-type]
    assert moments.held_out is not None
    found = outputs_of((weight,), moments.held_out.double(), 1)
    expected = output.movedim(1, -1).flatten(0, 2)
    assert found.shape == expected.shape
    order, same = (rows[:, 0].argsort() for rows in (found, expected))
    torch.testing.assert_close(found[order], expected[same], rtol=1e-5, atol=1e-6)

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.calibration import calibrate
from common.calibration.patches import as_images, output_patches, sample_positions
from common.decomposition.chain import outputs_of
from common.network.weights import convolution_weight

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def settings_of(transposed: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of a convolution from 4 to 6 channels that accepts images of 7 x 5 pixels."""
    common = {"kernel_size": pairs, "stride": pairs, "dilation": pairs, "groups": st.sampled_from([1, 2])}
    if transposed:
        return st.fixed_dictionaries({**common, "padding": st.sampled_from([0, (1, 0)])})
    own = {"padding": st.sampled_from([1, (3, 2)]), "padding_mode": st.sampled_from(["zeros", "reflect", "circular"])}
    return st.fixed_dictionaries({**common, **own, "kernel_size": st.tuples(st.integers(1, 3), st.integers(1, 2))})


def all_positions(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = (tensor.shape[2], tensor.shape[3])
    return sample_positions(torch.arange(len(tensor)), size, tensor[:, 0].numel(), torch.Generator())


def assert_patches_give_the_output(layer: Any, x: Tensor) -> None:
    with torch.no_grad():
        output = layer(x)
        weight, groups = convolution_weight(layer), getattr(layer, "groups", 1)
        images = as_images(layer, x)
        found = as_images(layer, output)
        patches = output_patches(layer, images, all_positions(found))
        expected = found.movedim(1, -1).flatten(0, 2) - layer.bias
        torch.testing.assert_close(outputs_of((weight,), patches, groups), expected)


@settings(max_examples=60, deadline=None)
@given(settings_of(transposed=False))
def test_output_is_weight_times_patches_for_convolutions(given_settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    assert_patches_give_the_output(nn.Conv2d(4, 6, **given_settings).double(), torch.randn(3, 4, 7, 5).double())


@settings(max_examples=60, deadline=None)
@given(settings_of(transposed=True))
def test_output_is_weight_times_patches_for_transposed_convolutions(given_settings: dict[str, Any]) -> None:
    """Strides can leave outputs without input, and overlapping kernels give outputs several inputs."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, **given_settings).double()
    x = torch.randn(3, 4, 7, 5).double()
    assert_patches_give_the_output(layer, x)


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

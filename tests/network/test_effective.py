from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.calibration import calibrate
from common.compression import compress, load_compressed, save_compressed
from common.network import profile
from common.network.effective import FixedPadding, SamePadding
from common.network.layers import effective_layers
from common.network.shapes import trace_layers
from common.planning import Fixed, plan_ranks
from common.planning.costs import plan_cost


class PadsSame(nn.Conv2d):
    """TensorFlow's "same" padding: ceil(size / stride) outputs, an odd pixel at the end."""

    def forward(self, input: Tensor) -> Tensor:
        amounts: list[int] = []
        for axis in (1, 0):
            size, stride = input.shape[axis - 2], self.stride[axis]
            reach = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
            total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
            amounts += [total // 2, total - total // 2]
        padded = functional.pad(input, amounts)
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class PadsByChild(nn.Conv2d):
    """Pads by a child module."""

    def __init__(self, *settings: Any, **named: Any) -> None:
        super().__init__(*settings, **named)
        self.pad = nn.ZeroPad2d((0, 1, 2, 1))

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(self.pad(input), self.weight, self.bias)


class Standardized(nn.Conv2d):
    """Standardizes its filters to zero mean and unit variance, then scales them by a gain."""

    def __init__(self, *settings: Any, **named: Any) -> None:
        super().__init__(*settings, **named)
        self.gain = nn.Parameter(torch.rand(self.out_channels) + 0.5)

    def forward(self, input: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(rows, None, None, self.gain, training=True).reshape_as(self.weight)
        return self._conv_forward(input, weight, self.bias)


class CentredTransposed(nn.ConvTranspose2d):
    """Subtracts the mean of its filters."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        weight = self.weight - self.weight.mean((2, 3), keepdim=True)
        settings: Any = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return functional.conv_transpose2d(input, weight, self.bias, *settings)


class Cast(nn.Linear):
    """Overrides ``forward`` without changing the result."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight.to(input.dtype), self.bias)


FACTORABLE = [
    (PadsSame(8, 16, 3, 2), SamePadding, 0),
    (PadsSame(8, 16, (3, 5), (2, 3), dilation=(2, 1), bias=False), SamePadding, 0),
    (PadsSame(8, 16, 7, 4, groups=2), SamePadding, 0),
    (PadsByChild(8, 16, 3, 2), FixedPadding, 0),
    (Standardized(8, 16, 3, padding=1), type(None), 16),
    (Standardized(8, 16, 3, 2, padding=1, groups=2, bias=False), type(None), 16),
    (CentredTransposed(8, 16, 3, 2, padding=1, output_padding=1), type(None), 0),
    (Cast(12, 20), type(None), 0),
]


@pytest.mark.parametrize("method", ["svd", "spatial_svd", "tucker2", "htd"])
@pytest.mark.parametrize(("layer", "front", "unused"), FACTORABLE)
def test_layers_that_pad_or_standardize_are_factored(
    layer: nn.Module, front: type, unused: int, method: str, tmp_path: Any
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), layer).eval(), torch.randn(2, 3, 19, 14)
    served, reasons = effective_layers(model)
    assert not reasons
    assert [type(each.front) for each in served.values()] == [type(None), front]
    shapes = trace_layers(model, x)
    assert sum(shape.unused for shape in shapes.values()) == unused
    dense = profile(model, x)
    assert sum(shape.dense_cost[0] for shape in shapes.values()) == dense.params
    exact = compress(model, plan_ranks(model, x, method, Fixed("full", only_if_smaller=False)))
    with torch.no_grad():
        torch.testing.assert_close(exact(x), model(x), rtol=1e-4, atol=1e-4)
        larger = torch.randn(1, 3, 24, 14)  # "same" padding depends on the size
        torch.testing.assert_close(exact(larger), model(larger), rtol=1e-4, atol=1e-4)
    moments = calibrate(model, [torch.randn(8, 3, 19, 14)])
    plan = plan_ranks(model, x, method, Fixed(2, only_if_smaller=False), moments=moments)
    small = compress(model, plan, moments=moments)
    cost = profile(small, x)
    assert plan_cost(shapes, (dense.params, dense.macs), plan) == (cost.params, cost.macs)
    loaded = load_compressed(save_compressed(small, tmp_path / "small.safetensors"), model)
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).mul_(2)


class Noisy(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input + torch.randn_like(input) if self.training else input)


class Mirrored(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(functional.pad(input, (1, 1, 0, 0), mode="reflect"), weight, bias)


class CentresInput(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input - input.mean())


class Attentive(nn.Conv2d):
    """Scales its weight by a factor that depends on the input."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * input.std(), self.bias)


class Twice(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(super().forward(input))


class Merging(nn.Linear):
    """Adds its input in training mode."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + (input if self.training else 0)


@pytest.mark.parametrize(
    "layer",
    [kind(8, 8, 3) for kind in (Doubled, Noisy, Mirrored, CentresInput, Attentive)] + [Twice(8, 8), Merging(8, 8)],
)
def test_layers_that_compute_something_else_stay_dense(layer: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state = torch.random.get_rng_state()
    served, reasons = effective_layers(nn.Sequential(layer))
    assert not served
    assert reasons == {"0": f"its class {type(layer).__name__} does more than a plain layer"}
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


class DiffersWhenWide(nn.Conv2d):
    """Adds 1 for images that are wider than the probe inputs."""

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return output if input.shape[-1] < 16 else output + 1


def test_a_layer_that_differs_on_the_example_input_stays_dense() -> None:
    model, x = nn.Sequential(DiffersWhenWide(3, 16, 3), nn.Conv2d(16, 16, 3)).eval(), torch.randn(1, 3, 16, 16)
    plan = plan_ranks(model, x, "svd", Fixed(2))
    assert plan.skipped == {"0": "its class DiffersWhenWide does more than a plain layer"}
    assert set(plan_ranks(model, x[..., :12], "svd", Fixed(2)).factored) == {"0", "1"}

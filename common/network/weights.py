"""A layer's weight in one layout, whatever the layer; what several layers in a row multiply out to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.network.effective import Layer


def convolution_weight(layer: Layer) -> Tensor:
    """The weight as that of a convolution, ``(O, I/groups, kh, kw)``, or ``(O, I)`` of a Linear."""
    return _swap_channels(layer.weight, layer.groups) if isinstance(layer, nn.ConvTranspose2d) else layer.weight


def set_convolution_weight(layer: Layer, weight: Tensor) -> None:
    """Write a weight that is laid out as :func:`convolution_weight` gives it."""
    layer.weight.copy_(_swap_channels(weight, layer.groups) if isinstance(layer, nn.ConvTranspose2d) else weight)


def product(factors: Sequence[Layer]) -> Tensor:
    """The weight of the one layer that ``factors`` in a row stand for, in PyTorch's layout for its class.

    Args:
        factors: of one decomposition: on each axis of the image one of them has a kernel, the others have 1.
    """
    weight = blocks(factors[0])
    for factor in factors[1:]:
        weight = torch.einsum("gomab,gmicd->goiacbd", blocks(factor), weight).flatten(5).flatten(3, 4)
    flat = weight.flatten(0, 1)
    if isinstance(factors[0], nn.Linear):
        return flat[:, :, 0, 0]
    transposed = any(isinstance(factor, nn.ConvTranspose2d) for factor in factors)
    return _swap_channels(flat, factors[0].groups) if transposed else flat


def blocks(layer: Layer) -> Tensor:
    """The weight of each group by itself, ``(groups, O/groups, I/groups, kh, kw)``."""
    weight = convolution_weight(layer)
    if isinstance(layer, nn.Linear):
        return weight[None, :, :, None, None]
    return weight.unflatten(0, (layer.groups, -1))


def _swap_channels(weight: Tensor, groups: int) -> Tensor:
    """``(O, I/groups, kh, kw)`` to ``(I, O/groups, kh, kw)`` or back."""
    split = weight.unflatten(0, (groups, -1))
    return split.transpose(1, 2).flatten(0, 1)

"""Convert layer weights to one common layout, and multiply the weights of consecutive layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from common.decomposition.chain import compose
from common.network.effective import Layer


def convolution_weight(layer: Layer) -> Tensor:
    """Return the weight in a convolution's layout, ``(O, I/groups, kh, kw)``, or ``(O, I)`` for a Linear."""
    return _swap_channels(layer.weight, layer.groups) if isinstance(layer, nn.ConvTranspose2d) else layer.weight


def set_convolution_weight(layer: Layer, weight: Tensor) -> None:
    """Set the weight of ``layer`` from the layout of :func:`convolution_weight`."""
    layer.weight.copy_(_swap_channels(weight, layer.groups) if isinstance(layer, nn.ConvTranspose2d) else weight)


def product(factors: Sequence[Layer]) -> Tensor:
    """Return the weight of the layer that is equivalent to a chain of factors, in PyTorch's layout for its class.

    Args:
        factors: factors of one decomposition. On each image axis, one factor has a kernel and the others have size 1.
    """
    flat = compose([blocks(factor) for factor in factors]).flatten(0, 1)
    if isinstance(factors[0], nn.Linear):
        return flat[:, :, 0, 0]
    transposed = any(isinstance(factor, nn.ConvTranspose2d) for factor in factors)
    return _swap_channels(flat, factors[0].groups) if transposed else flat


def blocks(layer: Layer) -> Tensor:
    """Return the weight split by group, ``(groups, O/groups, I/groups, kh, kw)``."""
    weight = convolution_weight(layer)
    if isinstance(layer, nn.Linear):
        return weight[None, :, :, None, None]
    return weight.unflatten(0, (layer.groups, -1))


def _swap_channels(weight: Tensor, groups: int) -> Tensor:
    """Convert ``(O, I/groups, kh, kw)`` to ``(I, O/groups, kh, kw)``, or back."""
    split = weight.unflatten(0, (groups, -1))
    return split.transpose(1, 2).flatten(0, 1)

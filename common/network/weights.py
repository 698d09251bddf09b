"""Convert layer weights to one common layout, and multiply the weights of consecutive layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from common.decomposition.chain import compose
from common.network.kinds import FactorableLayer, TransposedConvolution, group_count, kernel_size


def convolution_weight(layer: FactorableLayer) -> Tensor:
    """Return the weight in the layout that decompositions take.

    Returns:
        ``(O, I/groups, kh, kw)``; ``(O, I)`` for a Linear. A kernel of one axis has width 1. The width of a kernel of
        three axes is the product of the last two.
    """
    if isinstance(layer, nn.Linear):
        return layer.weight
    weight = _swap_channels(layer.weight, layer.groups) if isinstance(layer, TransposedConvolution) else layer.weight
    return planar(weight)


def planar(tensor: Tensor) -> Tensor:
    """Return ``(N, C, ...)`` with one to three more axes as ``(N, C, h, w)``, see :func:`convolution_weight`."""
    return tensor if tensor.dim() == 4 else tensor.reshape(*tensor.shape[:3], math.prod(tensor.shape[3:]))


def own_layout(layer: FactorableLayer, weight: Tensor) -> Tensor:
    """Return a weight in the layout of :func:`convolution_weight` in PyTorch's layout for the class of ``layer``."""
    if isinstance(layer, nn.Linear):
        return weight
    weight = weight.reshape(*weight.shape[:2], *kernel_size(layer))
    return _swap_channels(weight, layer.groups) if isinstance(layer, TransposedConvolution) else weight


def set_convolution_weight(layer: FactorableLayer, weight: Tensor) -> None:
    """Set the weight of ``layer`` from the layout of :func:`convolution_weight`."""
    layer.weight.copy_(own_layout(layer, weight))


def product(factors: Sequence[FactorableLayer]) -> Tensor:
    """Return the weight of the layer that is equivalent to a chain of factors, in PyTorch's layout for its class.

    Args:
        factors: factors of one decomposition. On each image axis, one factor has a kernel and the others have size 1.
    """
    flat = compose([blocks(factor) for factor in factors]).flatten(0, 1)
    if isinstance(factors[0], nn.Linear):
        return flat[:, :, 0, 0]
    kernel = (math.prod(sizes) for sizes in zip(*map(kernel_size, factors), strict=True))
    flat = flat.reshape(*flat.shape[:2], *kernel)
    transposed = any(isinstance(factor, TransposedConvolution) for factor in factors)
    return _swap_channels(flat, group_count(factors[0])) if transposed else flat


def blocks(layer: FactorableLayer) -> Tensor:
    """Return the weight split by group, ``(groups, O/groups, I/groups, kh, kw)``."""
    weight = convolution_weight(layer)
    if isinstance(layer, nn.Linear):
        return weight[None, :, :, None, None]
    return weight.unflatten(0, (layer.groups, -1))


def _swap_channels(weight: Tensor, groups: int) -> Tensor:
    """Convert ``(O, I/groups, ...)`` to ``(I, O/groups, ...)``, or back."""
    split = weight.unflatten(0, (groups, -1))
    return split.transpose(1, 2).flatten(0, 1)

"""The kinds of layers that a decomposition can serve: convolutions of one to three axes, their transposes, Linear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

from torch import nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
AnyConvolution = Convolution | TransposedConvolution
FactorableLayer = AnyConvolution | nn.Linear
CONVOLUTIONS: tuple[Callable[..., Convolution], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Classes by number of axes, less 1."""
TRANSPOSED_CONVOLUTIONS: tuple[Callable[..., TransposedConvolution], ...] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""Classes by number of axes, less 1."""
LAYER_TYPES: tuple[type[FactorableLayer], ...] = get_args(FactorableLayer)


def kernel_size(layer: FactorableLayer) -> tuple[int, ...]:
    """The layer's kernel, a number for each axis; ``(1, 1)`` for a Linear."""
    return (1, 1) if isinstance(layer, nn.Linear) else tuple(map(int, layer.kernel_size))


def setting(layer: AnyConvolution, name: str) -> tuple[int, ...]:
    """A setting of a convolution, such as its ``stride``, as a number for each axis."""
    return per_axis(getattr(layer, name), len(layer.kernel_size))


def per_axis(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """One number, or a sequence of one or ``dimensions`` numbers, as a number for each axis."""
    values = (value,) if isinstance(value, int) else tuple(map(int, value))
    return values * dimensions if len(values) == 1 else values


def group_count(layer: FactorableLayer) -> int:
    """The layer's number of groups; 1 for a Linear."""
    return 1 if isinstance(layer, nn.Linear) else layer.groups

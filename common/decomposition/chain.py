"""A layer's factors as a chain: their product, their common kernel and what they compute."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d


def compose(factors: Sequence[Tensor]) -> Tensor:
    """Multiply the weights of consecutive convolutions.

    Args:
        factors: weights by group, ``(G, o, c, kh, kw)``; the outputs of each are the inputs of the next. On each image
            axis, one factor has a kernel and the others have size 1.

    Returns:
        ``(G, O, I, kh, kw)``.
    """
    weight = factors[0]
    for factor in factors[1:]:
        weight = torch.einsum("gomab,gmicd->goiacbd", factor, weight).flatten(5).flatten(3, 4)
    return weight


def by_group(factor: Tensor, groups: int) -> Tensor:
    """Return a weight as ``(G, o/G, c, kh, kw)``; a Linear counts as a 1x1 kernel."""
    kernel = factor.shape[2:] or (1, 1)
    return factor.reshape(groups, -1, factor.shape[1], *kernel)


def kernel_of(factors: Sequence[Tensor]) -> tuple[int, int]:
    """Height and width of the kernel that factors ``(o, c, kh, kw)`` or ``(o, c)`` cover together."""
    kernels = [tuple(factor.shape[2:]) or (1, 1) for factor in factors]
    return math.prod(height for height, _ in kernels), math.prod(width for _, width in kernels)


def patches_after(factors: Sequence[Tensor], patches: Tensor, groups: int) -> Tensor:
    """Apply layers with these weights, one after the other, to input patches.

    Args:
        factors: weights ``(O, I/groups, kh, kw)`` or ``(O, I)``.
        patches: ``(N, I, height, width)``. Their dtype is that of the computation.
        groups: the number of groups of every layer.

    Returns:
        The patches that a next layer sees, ``(N, O, height', width')``; without factors, ``patches``.
    """
    for factor in factors:
        kernel, factor = factor.shape[2:] or (1, 1), factor.to(patches.dtype)
        if kernel == patches.shape[2:]:  # one position: a matrix product is faster than a convolution
            rows = patches.reshape(len(patches), groups, -1).transpose(0, 1)
            patches = (
                (rows @ factor.reshape(groups, -1, rows.shape[2]).mT).transpose(0, 1).reshape(-1, len(factor), 1, 1)
            )
        else:
            patches = conv2d(patches, factor.reshape(*factor.shape[:2], *kernel), groups=groups)
    return patches


def outputs_of(factors: Sequence[Tensor], patches: Tensor, groups: int) -> Tensor:
    """The outputs ``(N, O)`` of factors whose kernels together cover a patch, see :func:`patches_after`."""
    return patches_after(factors, patches, groups).flatten(1)

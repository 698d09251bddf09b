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
            axis, one factor has a kernel and the others have size 1. A depthwise factor has c = 1.

    Returns:
        ``(G, O, I, kh, kw)``.
    """
    weight = factors[0]
    for factor in factors[1:]:
        if is_depthwise(factor, weight.shape[1]):
            weight = torch.einsum("goab,goicd->goiacbd", factor[:, :, 0], weight)
        else:
            weight = torch.einsum("gomab,gmicd->goiacbd", factor, weight)
        weight = weight.flatten(5).flatten(3, 4)
    return weight


def is_depthwise(factor: Tensor, inputs: int) -> bool:
    """Whether a factor by group, ``(G, o, c, ...)``, filters each of its ``inputs`` channels on its own."""
    return factor.shape[2] == 1 < inputs


def as_dense(factor: Tensor, inputs: int) -> Tensor:
    """Return a factor by group with all its zeros, ``(G, o, inputs, kh, kw)``, if it is depthwise."""
    if not is_depthwise(factor, inputs):
        return factor
    return torch.diag_embed(factor[:, :, 0].movedim(1, -1)).movedim((3, 4), (1, 2))


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
        groups: the number of groups of the chain; a depthwise layer has one for each of its channels.

    Returns:
        The patches that a next layer sees, ``(N, O, height', width')``; without factors, ``patches``.
    """
    for factor in factors:
        kernel, factor = factor.shape[2:] or (1, 1), factor.to(patches.dtype)
        own = patches.shape[1] // factor.shape[1]
        if kernel == patches.shape[2:]:  # one position: a matrix product is faster than a convolution
            rows = patches.reshape(len(patches), own, -1).transpose(0, 1)
            patches = (rows @ factor.reshape(own, -1, rows.shape[2]).mT).transpose(0, 1).reshape(-1, len(factor), 1, 1)
        else:
            patches = conv2d(patches, factor.reshape(*factor.shape[:2], *kernel), groups=own)
    return patches


def outputs_of(factors: Sequence[Tensor], patches: Tensor, groups: int) -> Tensor:
    """The outputs ``(N, O)`` of factors whose kernels together cover a patch, see :func:`patches_after`."""
    return patches_after(factors, patches, groups).flatten(1)

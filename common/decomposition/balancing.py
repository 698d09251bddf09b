"""Balance the factors of one layer, so that one learning rate suits all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from common.decomposition.chain import is_depthwise

MAX_PASSES = 100
TOLERANCE = 1e-3
"""Passes end when no scale changes by more than this fraction."""


def balance(factors: Sequence[Tensor], groups: int = 1) -> tuple[Tensor, ...]:
    """Rescale the channels between factors so that each has equal norms on both sides; the product stays the same.

    A decomposition leaves the energy where its algorithm put it: in orthonormal bases, a core, or the inverse roots of
    a metric. The product hides this, but the gradient of each factor grows with the norms of the others. Fine-tuning
    then diverges at learning rates that suit the dense layer. For two factors, each gets the square roots of the
    singular values (Khodak et al. 2021, spectral initialization). In a longer chain, the channels are rescaled in turn
    until no scale changes by more than ``TOLERANCE``, or ``MAX_PASSES`` times. Of all scalings, the balanced one has
    the least sum of squared weights.

    Args:
        factors: weights ``(O, I/groups, kh, kw)`` or ``(O, I)``. The outputs of each are the inputs of the next. They
            are not changed.
        groups: the number of groups of every factor but the depthwise ones, which have one for each channel.

    Returns:
        New tensors of the same shapes and dtypes. A channel that is zero on one side keeps its scale.
    """
    weights = [factor.unflatten(0, (groups, -1)) for factor in factors]  # (G, O/G, I/G, ...)
    energies = [weight.double().square() for weight in weights]
    energies = [energy.flatten(3).sum(3) if energy.dim() > 3 else energy for energy in energies]
    depthwise = [False, *(is_depthwise(after, before.shape[1]) for before, after in pairwise(energies))]
    energies = [
        torch.diag_embed(energy[:, :, 0]) if own else energy for energy, own in zip(energies, depthwise, strict=True)
    ]
    squared_scales = [torch.ones_like(energy[:, :, :1]) for energy in energies]  # of each output channel, (G, O/G, 1)
    for _ in range(MAX_PASSES):
        change = 0.0
        for index, (before, after) in enumerate(pairwise(energies)):
            rows = before @ (1 / squared_scales[index - 1]) if index else before.sum(2, keepdim=True)
            columns = after.mT @ squared_scales[index + 1]
            best = torch.where((rows > 0) & (columns > 0), (columns / rows).sqrt(), torch.ones_like(rows))
            change = max(change, float((best / squared_scales[index] - 1).abs().max()))
            squared_scales[index] = best
        if change <= TOLERANCE or len(factors) == 2:  # one pass balances two factors
            break
    for index, squared_scale in enumerate(squared_scales[:-1]):
        scale = squared_scale.sqrt()
        weights[index] = weights[index].double() * _broadcastable(scale, weights[index])
        columns = scale if depthwise[index + 1] else scale.mT
        weights[index + 1] = weights[index + 1].double() / _broadcastable(columns, weights[index + 1])
    return tuple(weight.flatten(0, 1).to(factor.dtype) for weight, factor in zip(weights, factors, strict=True))


def _broadcastable(scale: Tensor, weight: Tensor) -> Tensor:
    """``scale``, ``(G, O/G, 1)`` or ``(G, 1, I/G)``, with a trailing axis of size 1 for each kernel axis."""
    return scale.reshape(*scale.shape, *[1] * (weight.dim() - 3))

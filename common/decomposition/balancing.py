"""Factors of one layer, scaled against each other so that one learning rate suits all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

MOST_PASSES = 100
TOLERANCE = 1e-3
"""Of the scales: passes end when none changes by more than this share."""


def balance(factors: Sequence[Tensor], groups: int = 1) -> tuple[Tensor, ...]:
    """Factors of the same product in which every channel between two of them has equal norms on both sides.

    A decomposition leaves the energy where its algorithm put it: orthonormal bases here, a whole core there, inverse
    roots of a metric. The product does not tell, but the gradient of each factor grows with the size of the others:
    fine-tuning then diverges at rates that the dense layer takes well. For two factors this is the split of the
    singular values into two equal roots (Khodak et al. 2021, spectral initialization); in longer chains the channels
    are scaled in turn until nothing changes, or ``MOST_PASSES`` times. Of all scalings it is the one with the least
    sum of squared weights.

    Args:
        factors: weights ``(O, I/groups, kh, kw)`` or ``(O, I)``, each one's outputs the inputs of the next; unchanged.
        groups: of all of them.

    Returns:
        New tensors of the same shapes and dtypes. A channel that is zero on one side is left as it is.
    """
    weights = [factor.unflatten(0, (groups, -1)) for factor in factors]  # (G, O/G, I/G, ...)
    energies = [weight.double().square() for weight in weights]
    energies = [energy.flatten(3).sum(3) if energy.dim() > 3 else energy for energy in energies]
    scales = [torch.ones_like(energy[:, :, :1]) for energy in energies]  # squared, of the outputs of each, (G, O/G, 1)
    for _ in range(MOST_PASSES):
        change = 0.0
        for index, (before, after) in enumerate(pairwise(energies)):
            rows = before @ (1 / scales[index - 1]) if index else before.sum(2, keepdim=True)
            columns = after.mT @ scales[index + 1]
            best = torch.where((rows > 0) & (columns > 0), (columns / rows).sqrt(), torch.ones_like(rows))
            change = max(change, float((best / scales[index] - 1).abs().max()))
            scales[index] = best
        if change <= TOLERANCE or len(factors) == 2:  # two are balanced at once
            break
    for index, scale in enumerate(scales[:-1]):
        root = scale.sqrt()
        weights[index] = weights[index].double() * _spread(root, weights[index])
        weights[index + 1] = weights[index + 1].double() / _spread(root.mT, weights[index + 1])
    return tuple(weight.flatten(0, 1).to(factor.dtype) for weight, factor in zip(weights, factors, strict=True))


def _spread(scale: Tensor, weight: Tensor) -> Tensor:
    """``(G, O/G, 1)`` or ``(G, 1, I/G)`` with the kernel's dimensions of ``weight`` behind."""
    return scale.reshape(*scale.shape, *[1] * (weight.dim() - 3))

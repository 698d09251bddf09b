"""Rescale the channels between the factors of a layer, so that 8 bits hold all of them about equally well."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from common.deploy.links import is_plain
from common.deploy.parity import run
from common.network.copies import independent_copy
from common.network.kinds import FactorableLayer, TransposedConvolution, group_count
from common.network.lowrank import LowRank
from common.network.modes import hooked

LEAST = 1e-6
"""Channels whose scale is at most this share of the greatest are as good as dead, and keep their weights."""


def equalize_factors(network: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """Return a copy that computes the same, with channels between factors that have like ranges.

    An activation has one 8-bit scale for all of its channels, so a channel with a small range loses most of its bits.
    Nothing but a product lies between two factors. A channel may therefore be divided by any number in the first of
    them, whose weights have a scale for each output channel, and multiplied by it in the second. A depthwise second
    factor, whose weights have a scale for each channel as well, lets all channels have one range. Any other spreads
    its weights by what the channels gain: there the number is the root of the channel's range over the greatest weight
    that it meets, so that both have the same range (cross-layer equalization, Nagel, van Baalen, Blankevoort and
    Welling 2019).

    Args:
        network: on the CPU, in evaluation mode. It stays unchanged.
        inputs: typical inputs, which show the ranges.
    """
    copied = independent_copy(network)
    pairs = [
        (first, second)
        for module in copied.modules()
        if isinstance(module, LowRank)
        for first, second in pairwise(module.factors)
        if all(is_plain(each) and not isinstance(each, TransposedConvolution) for each in (first, second))
    ]
    ranges: dict[nn.Module, Tensor] = {}

    def note(layer: FactorableLayer, _: object, output: Tensor) -> None:
        if not output.numel():  # of an expert that gets no image, say
            return
        axis = -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)  # an input may have no batch axis
        found = output.detach().abs().movedim(axis, 0).reshape(output.shape[axis], -1).amax(1).double()
        ranges[layer] = torch.maximum(ranges[layer], found) if layer in ranges else found

    with hooked([first.register_forward_hook(note) for first, _ in pairs]):
        for part in inputs:
            run(copied, part)
    for first, second in pairs:
        if first in ranges:
            _rescale(first, second, _scale(ranges[first], second))
    return copied


def _scale(ranges: Tensor, second: FactorableLayer) -> Tensor:
    """By what to divide each channel, ``(C,)`` with a geometric mean of 1; see :func:`equalize_factors`."""
    weight = _by_group(second)
    scale = ranges
    if weight.shape[2] > 1:  # no depthwise convolution
        scale = (ranges / weight.double().abs().flatten(3).amax((1, 3)).flatten()).sqrt()
    finite = scale.isfinite()
    if not (scale[finite] > 0).any():
        return torch.ones_like(scale)
    usable = finite & (scale > LEAST * scale[finite].max())
    return torch.where(usable, scale / scale[usable].log().mean().exp(), 1.0)


def _by_group(layer: FactorableLayer) -> Tensor:
    """The weight as ``(G, O/G, I/G, positions)``."""
    return (
        layer.weight.detach().unflatten(0, (group_count(layer), -1)).flatten(3)
        if layer.weight.dim() > 2
        else (layer.weight.detach()[None, :, :, None])
    )


def _rescale(first: FactorableLayer, second: FactorableLayer, scale: Tensor) -> None:
    """Divide the output channels of the first layer by ``scale``, and multiply the inputs of the second by it."""
    with torch.no_grad():
        first.weight.copy_(first.weight.double() / scale.reshape(-1, *[1] * (first.weight.dim() - 1)))
        if first.bias is not None:
            first.bias.copy_(first.bias.double() / scale)
        weight = _by_group(second)
        columns = scale.reshape(len(weight), 1, -1, 1)
        second.weight.copy_((weight.double() * columns).reshape(second.weight.shape))

"""Pad the ranks of factors with zeros to the multiples at which a runtime is fast."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn

from common.deploy.links import chains, is_plain
from common.deploy.parity import changed_copy
from common.network.kinds import AnyConvolution, TransposedConvolution
from common.network.weights import convolution_weight, own_layout
from common.validation import is_whole


def align_ranks(model: nn.Module, multiple: int, x: Tensor | None = None) -> nn.Module:
    """Return a copy in evaluation mode whose ranks are padded with zeros to multiples of ``multiple``.

    The outputs stay the same. ONNX Runtime computes in blocks of channels (16 with AVX-512, 8 with AVX2). If the
    channels of a convolution do not fill the blocks, it has to reorder them before and after. It computes a depthwise
    convolution, which CP has, channel by channel if their number is no multiple of 4, several times as slowly.

    Args:
        model: stays unchanged.
        multiple: at least 1.
        x: example input. A pass of it confirms which layer follows which (see :func:`common.deploy.links.links`). If
            it is None, a random image is used. A network that takes no image is copied unchanged.

    Raises:
        ValueError: ``multiple`` is below 1, or the network does not take ``x`` or cannot be copied.
    """
    check_multiple(multiple)

    def find(network: nn.Module, shown: Tensor) -> list[list[str]]:
        return [
            part
            for chain in chains(network, shown, lambda *pair: all(map(_has_one_width, pair)))
            for part in _between_mixing(network, chain)
            if _convolution(network, part[0]).out_channels % multiple
        ]

    def widen(network: nn.Module, part: list[str]) -> None:
        first, *depthwise, last = (_convolution(network, name) for name in part)
        missing = -first.out_channels % multiple
        _widen(first, missing, outputs=True)
        for layer in depthwise:
            _widen(layer, missing, outputs=True)
            layer.in_channels += missing
            layer.groups += missing
        _widen(last, missing, outputs=False)

    return changed_copy(model, x, find, widen)


def _has_one_width(module: nn.Module) -> bool:
    """Whether the module is a convolution without groups or a depthwise one with as many outputs as inputs."""
    return _is_convolution(module) and (module.groups == 1 or _is_depthwise(module))


def _is_depthwise(layer: AnyConvolution) -> bool:
    is_transposed = isinstance(layer, TransposedConvolution)
    return layer.groups == layer.in_channels == layer.out_channels and not is_transposed


def _between_mixing(network: nn.Module, chain: list[str]) -> list[list[str]]:
    """Cut a chain of convolutions into the parts of one width: from each without groups to the next one."""
    mixing = [place for place, name in enumerate(chain) if _convolution(network, name).groups == 1]
    return [chain[first : last + 1] for first, last in pairwise(mixing)]


def _convolution(network: nn.Module, name: str) -> AnyConvolution:
    layer = network.get_submodule(name)
    assert _is_convolution(layer)
    return layer


def check_multiple(align: int) -> None:
    """Raise unless ranks can be padded to multiples of ``align``.

    Raises:
        ValueError: ``align`` is no whole number of at least 1.
    """
    if not (is_whole(align) and align >= 1):
        raise ValueError(f"align={align!r}: it must be a whole number of at least 1")


def _is_convolution(module: nn.Module) -> TypeGuard[AnyConvolution]:
    return is_plain(module) and not isinstance(module, nn.Linear)


def _widen(layer: AnyConvolution, channels: int, outputs: bool) -> None:
    """Add output or input channels whose weights are zero."""
    weight = convolution_weight(layer)
    shape = list(weight.shape)
    shape[0 if outputs else 1] = channels
    wider = torch.cat([weight, weight.new_zeros(shape)], 0 if outputs else 1)
    if outputs:
        layer.out_channels += channels
        if layer.bias is not None:
            longer = torch.cat([layer.bias, layer.bias.new_zeros(channels)])
            layer.bias = nn.Parameter(longer, layer.bias.requires_grad)
    else:
        layer.in_channels += channels
    layer.weight = nn.Parameter(own_layout(layer, wider), layer.weight.requires_grad)

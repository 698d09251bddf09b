"""Pad the ranks of factors with zeros to the multiples at which a runtime is fast."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from common.deploy.links import is_plain, links
from common.deploy.parity import changed_copy
from common.network.kinds import AnyConvolution
from common.network.weights import convolution_weight, own_layout


def align_ranks(model: nn.Module, multiple: int, x: Tensor | None = None) -> nn.Module:
    """Return a copy in evaluation mode whose ranks are padded with zeros to multiples of ``multiple``.

    The outputs stay the same. ONNX Runtime computes in blocks of channels (16 with AVX-512, 8 with AVX2). If the
    channels of a convolution do not fill the blocks, it has to reorder them before and after.

    Args:
        model: stays unchanged.
        multiple: at least 1.
        x: example input. A pass of it confirms which layer follows which (see :func:`common.deploy.links.links`). If
            it is None, a random image is used. A network that takes no image is copied unchanged.

    Raises:
        ValueError: ``multiple`` is below 1, or the network does not take ``x`` or cannot be copied.
    """
    check_multiple(multiple)

    def find(network: nn.Module, shown: Tensor) -> list[tuple[str, str]]:
        return links(network, shown, lambda first, second: _can_be_widened(first, second, multiple))

    def widen(network: nn.Module, pair: tuple[str, str]) -> None:
        first, second = map(network.get_submodule, pair)
        assert _is_convolution(first)
        assert _is_convolution(second)
        missing = -first.out_channels % multiple
        _widen(first, missing, outputs=True)
        _widen(second, missing, outputs=False)

    return changed_copy(model, x, find, widen)


def _can_be_widened(first: nn.Module, second: nn.Module, multiple: int) -> bool:
    """Whether the channels between two convolutions can be padded and need to be."""
    if not _is_convolution(first) or not _is_convolution(second):
        return False
    return first.groups == second.groups == 1 and first.out_channels % multiple > 0


def check_multiple(align: int) -> None:
    """Raise unless ranks can be padded to multiples of ``align``.

    Raises:
        ValueError: ``align`` is below 1.
    """
    if align < 1:
        raise ValueError(f"align={align!r}: it must be at least 1")


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

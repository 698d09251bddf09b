"""BatchNorm folded into the layer before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.deploy.links import deployed_copy, is_plain, links
from common.modes import hooked
from common.network.held import replace_module
from common.network.layers import FactorableLayer
from common.network.weights import convolution_weight, set_convolution_weight


def fold_batchnorm(model: nn.Module, x: Tensor | None = None) -> nn.Module:
    """A copy in evaluation mode without the BatchNorms that directly follow a Conv2d, ConvTranspose2d or Linear.

    In evaluation mode such a BatchNorm is a scale and a shift of each channel, which the layer's weight and bias take
    over; behind a factorized layer it is the last factor that does. An ``Identity`` stays in its place. A BatchNorm
    anywhere else is left alone, and so is one without running statistics. In a network that ``torch.fx`` cannot trace
    whole, those are found that follow their layer within a part that it can (see :func:`common.deploy.links.links`).

    Args:
        model: left as it was.
        x: example input. A pass of it tells what a Linear puts out, rows or sequences, whose axis 1 is another;
            without it the BatchNorm behind a Linear stays. It also tells which parts are used piece by piece.
    """
    folded = deployed_copy(model)
    pairs = links(folded, x)
    behind_linear = any(isinstance(layer, nn.Linear) and isinstance(norm, _BatchNorm) for layer, norm in pairs.items())
    of_rows = _norms_of_rows(folded, x) if behind_linear and x is not None else set()
    with torch.no_grad():
        for layer, norm in pairs.items():
            if is_plain(layer) and isinstance(norm, _BatchNorm) and _normalizes_outputs(norm, layer, of_rows):
                _fold(layer, norm)
                replace_module(folded, norm, nn.Identity())
    return folded


def _norms_of_rows(model: nn.Module, x: Tensor) -> set[nn.Module]:
    """The BatchNorms that meet nothing but rows ``(N, C)`` when ``x`` passes."""
    dimensions: dict[nn.Module, set[int]] = {}

    def note(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        dimensions.setdefault(norm, set()).add(given[0].dim() if given else 0)

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    with hooked(handles), torch.no_grad():
        model(x)
    return {norm for norm, met in dimensions.items() if met == {2}}


def _normalizes_outputs(norm: _BatchNorm, layer: FactorableLayer, of_rows: set[nn.Module]) -> bool:
    """Whether the channels that ``norm`` tells apart, those on axis 1, are the layer's outputs."""
    if norm.running_mean is None or norm._forward_hooks or norm._forward_pre_hooks:
        return False
    if isinstance(layer, nn.Linear):
        return norm in of_rows and norm.num_features == layer.out_features
    return norm.num_features == layer.out_channels


def _fold(layer: FactorableLayer, norm: _BatchNorm) -> None:
    """``fuse_conv_bn_eval`` of torch does the same, but neither in float64 nor for transposed groups."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias: Tensor = -norm.running_mean.double() if layer.bias is None else layer.bias - norm.running_mean.double()
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
    weight = convolution_weight(layer)
    layer.weight = nn.Parameter(layer.weight.clone(), layer.weight.requires_grad)  # which another layer may share
    set_convolution_weight(layer, weight * scale.reshape(-1, *[1] * (weight.dim() - 1)))
    layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=layer.weight.requires_grad)

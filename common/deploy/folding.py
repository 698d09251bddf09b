"""Fold BatchNorms into the layers before them."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.deploy.links import is_plain, links
from common.deploy.observing import is_altered
from common.deploy.parity import changed_copy
from common.network.held import replace_module
from common.network.inputs import for_one_pass
from common.network.kinds import FactorableLayer
from common.network.modes import hooked
from common.network.weights import convolution_weight, set_convolution_weight


def fold_batchnorm(model: nn.Module, x: Tensor | None = None) -> nn.Module:
    """Copy a network without the BatchNorms that directly follow a convolution or a Linear.

    The copy is in evaluation mode, in which such a BatchNorm scales and shifts each channel. The scale and shift move
    into the weight and bias of the layer, or of its last factor. An ``Identity`` replaces the BatchNorm. Any other
    BatchNorm stays, as does one without running statistics. A pass of ``x`` must confirm which layer follows which
    (see :func:`common.deploy.links.links`). On ``x``, the copy's outputs equal the network's up to rounding.

    Args:
        model: stays unchanged.
        x: example input. It also shows whether a Linear returns rows or sequences. (In sequences, axis 1 does not hold
            the channels.) If it is None, a random image is used, and every BatchNorm after a Linear stays. A network
            that takes no image keeps all BatchNorms.

    Raises:
        ValueError: the network does not take ``x``, or cannot be copied.
    """

    def find(network: nn.Module, shown: Tensor) -> list[tuple[str, str]]:
        modules = dict(network.named_modules())
        pairs = links(network, shown, _normalizes_outputs)
        behind_linear = [pair for pair in pairs if isinstance(modules[pair[0]], nn.Linear)]
        of_rows = _norms_of_rows(network, shown) if behind_linear and x is not None else set()
        return [pair for pair in pairs if pair not in behind_linear or modules[pair[1]] in of_rows]

    return changed_copy(model, x, find, _fold)


def _normalizes_outputs(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether ``norm`` is a BatchNorm with fixed statistics of the layer's output channels."""
    if not is_plain(layer) or not _is_norm(norm) or norm.running_mean is None or norm.training:
        return False
    return norm.num_features == (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _is_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether ``module`` is PyTorch's own BatchNorm without a parametrization or hook."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return type(module) in kinds and not is_altered(module)


def _norms_of_rows(model: nn.Module, x: Tensor) -> set[nn.Module]:
    """Return the BatchNorms that get only rows ``(N, C)`` in a pass of ``x``."""
    dimensions: dict[nn.Module, set[int]] = {}

    def note(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        dimensions.setdefault(norm, set()).add(given[0].dim() if given else 0)

    handles = [norm.register_forward_pre_hook(note) for norm in model.modules() if isinstance(norm, _BatchNorm)]
    with hooked(handles), torch.no_grad():
        model(for_one_pass(x))
    return {norm for norm, met in dimensions.items() if met == {2}}


def _fold(model: nn.Module, pair: tuple[str, str]) -> None:
    """Fold the second of two modules, which is a BatchNorm, into the first."""
    layer, norm = map(model.get_submodule, pair)
    assert is_plain(layer)
    assert isinstance(norm, _BatchNorm)
    _take_over(layer, norm)
    replace_module(model, norm, nn.Identity().eval())


def _take_over(layer: FactorableLayer, norm: _BatchNorm) -> None:
    """Multiply the layer's weight by the scale of ``norm``, and add its shift to the bias, in float64.

    ``fuse_conv_bn_eval`` of torch does not use float64 and does not support transposed convolutions with groups.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias: Tensor = -norm.running_mean.double() if layer.bias is None else layer.bias - norm.running_mean.double()
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
    weight = convolution_weight(layer)
    # Another layer may share the old weight.
    layer.weight = nn.Parameter(layer.weight.clone(), layer.weight.requires_grad)
    set_convolution_weight(layer, weight * scale.reshape(-1, *[1] * (weight.dim() - 1)))
    layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=layer.weight.requires_grad)

"""Find the layers of a network that can be factored, and say why the others stay dense."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.network.copies import shared_by_copies
from common.network.effective import EffectiveLayer, effective_layer
from common.network.held import unreplaceable_holders
from common.network.kinds import LAYER_TYPES, FactorableLayer, TransposedConvolution
from common.network.lowrank import LowRank

_FORWARD_ATTRIBUTES = (
    "forward",
    "_conv_forward",
    "_output_padding",
    "__call__",
    "_call_impl",
    "__getattr__",
    "__getattribute__",
)
"""Attributes that determine a layer's outputs, besides its weight, bias and settings."""
_STATE_DICT_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def factorable_layers(model: nn.Module) -> dict[str, FactorableLayer]:
    """Return the layers that a decomposition could replace, by name. A module that is used twice appears once."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYER_TYPES) and not isinstance(module, LowRank)
    }


def effective_layers(model: nn.Module) -> tuple[dict[str, EffectiveLayer], dict[str, str]]:
    """Return what each factorable layer computes, and why the other layers must stay dense.

    Returns:
        Layer name -> plain equivalent of a layer that can be factored, and layer name -> reason for the others.
    """
    owners: dict[Hashable, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():  # a layer may have a parameters() of its own
            if parameter is not None:
                owners.setdefault(_memory_key(parameter), []).append(name)
    holders, shared = unreplaceable_holders(model), shared_by_copies(model)
    served: dict[str, EffectiveLayer] = {}
    reasons: dict[str, str] = {}
    for name, layer in factorable_layers(model).items():
        reason = _layer_reason(layer)
        others = [] if reason else [other for other in owners[_memory_key(layer.weight)] if other != name]
        if others:
            reason = f"it shares its weight with {', '.join(others)}"
        elif not reason and layer.bias is not None and owners[_memory_key(layer.bias)] != [name]:
            sharing = [other for other in owners[_memory_key(layer.bias)] if other != name]
            reason = f"it shares its bias with {', '.join(sharing)}"
        elif layer in holders and not reason:
            reason = f"{holders[layer]} also refers to it, and nothing can replace it there"
        elif layer in shared and not reason:
            reason = "a __deepcopy__ lets all copies of the network share it"
        found = None if reason else _effective(layer)
        if found is None:
            reasons[name] = reason or _reason_of_class(layer)
        else:
            served[name] = found
    return served, reasons


def _layer_reason(layer: FactorableLayer) -> str:
    """Return why this layer on its own must stay dense; empty if it need not."""
    own = {name: parameter for name, parameter in layer._parameters.items() if parameter is not None}
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in own.values()):
        return "its weight has no shape yet; run one pass first"
    if changed := [name for name in _FORWARD_ATTRIBUTES if name in vars(layer)]:
        return f"its {changed[0]} was changed on the instance"
    if "weight" not in own or (layer.bias is not None and "bias" not in own):
        what = "bias" if "weight" in own else "weight"
        return f"its {what} is computed from other parameters; remove the parametrization first"
    if any(getattr(layer, hooks, None) for hooks in _STATE_DICT_HOOKS):
        return "hooks on its state_dict expect a dense weight"
    return _weight_reason(layer)


def _weight_reason(layer: FactorableLayer) -> str:
    """Return why the layer's weight or bias cannot be factored; empty if it can."""
    weight = layer.weight
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor or weight.layout != torch.strided:
        return f"its weight is a {type(weight.data).__name__} of layout {weight.layout}; it must be a plain tensor"
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}; only real floating point is factored"
    declared = _declared_shape(layer)
    if tuple(weight.shape) != declared:
        return f"its weight has shape {tuple(weight.shape)}, but its attributes give {declared}"
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if layer.bias is not None and (tuple(layer.bias.shape) != (outputs,) or layer.bias.dtype != weight.dtype):
        return f"its bias has shape {tuple(layer.bias.shape)} and dtype {layer.bias.dtype}, unlike its weight"
    return ""


def _declared_shape(layer: FactorableLayer) -> tuple[int, ...]:
    """Return the weight's shape according to the layer's attributes."""
    if isinstance(layer, nn.Linear):
        return (layer.out_features, layer.in_features)
    first, second = layer.out_channels, layer.in_channels
    if isinstance(layer, TransposedConvolution):
        first, second = second, first
    return (first, second // layer.groups, *layer.kernel_size)


def _effective(layer: FactorableLayer) -> EffectiveLayer | None:
    """Return the layer itself if its class inherits PyTorch's computation; otherwise find what it computes."""
    if _computes_plainly(layer):
        return None if layer._modules else EffectiveLayer(layer)
    return effective_layer(layer, _base(layer))


def _base(layer: FactorableLayer) -> type[nn.Module]:
    """PyTorch's class from which a layer's class inherits."""
    return next(kind for kind in LAYER_TYPES if isinstance(layer, kind))


def _computes_plainly(layer: FactorableLayer) -> bool:
    """Whether a layer's class inherits PyTorch's computation."""
    names = (*_FORWARD_ATTRIBUTES, "weight", "bias", "train")
    return all(_inherited(type(layer), _base(layer), name) for name in names)


def _reason_of_class(layer: FactorableLayer) -> str:
    """Say why a layer that does not act like a plain one stays dense."""
    if _computes_plainly(layer):
        return f"it holds {', '.join(map(repr, layer._modules))}, which the network may run"
    return f"its class {type(layer).__name__} does more than a plain layer"


def _inherited(cls: type, base: type, name: str) -> bool:
    """Whether ``cls`` inherits the attribute from ``base`` unchanged."""
    return getattr(cls, name, None) is getattr(base, name, None)


def _memory_key(parameter: Tensor) -> Hashable:
    """Return a key that is equal for two parameters if they view the same memory in the same shape."""
    if type(parameter) is not nn.Parameter or parameter.is_meta or parameter.layout != torch.strided:
        return id(parameter)  # lazy parameters and other tensor types may have no memory
    return parameter.untyped_storage().data_ptr(), parameter.storage_offset(), parameter.shape, parameter.stride()


def layer_input(given: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """Return the input of a layer from the arguments of its forward hook.

    Args:
        given: positional arguments of the call.
        named: keyword arguments of the call.
    """
    found: Tensor = given[0] if given else named["input"]
    return found

"""Which layers of a network can be factored, and why others stay dense."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.network.effective import EffectiveLayer, effective_layer
from common.network.held import unreplaceable_holders
from common.network.lowrank import LowRank

FactorableLayer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
KINDS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_COMPUTES = (
    "forward",
    "_conv_forward",
    "_output_padding",
    "__call__",
    "_call_impl",
    "__getattr__",
    "__getattribute__",
)
"""What decides on a layer's outputs, besides its weight, bias and settings."""
_HOOKS_ON_STATE = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def factorable_layers(model: nn.Module) -> dict[str, FactorableLayer]:
    """The layers that a decomposition could replace, by name; a module that is used twice stands once."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, KINDS) and not isinstance(module, LowRank)
    }


def effective_layers(model: nn.Module) -> tuple[dict[str, EffectiveLayer], dict[str, str]]:
    """What each layer that can be factored computes, and why the others have to stay dense, both by name."""
    owners: dict[Hashable, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(_memory(parameter), []).append(name)
    holders = unreplaceable_holders(model)
    served: dict[str, EffectiveLayer] = {}
    reasons: dict[str, str] = {}
    for name, layer in factorable_layers(model).items():
        reason = _own_reason(layer)
        others = [] if reason else [other for other in owners[_memory(layer.weight)] if other != name]
        if others:
            reason = f"it shares its weight with {', '.join(others)}"
        elif layer in holders and not reason:
            reason = f"{holders[layer]} holds it too, where nothing can take its place"
        found = None if reason else _computed_by(layer)
        if found is None:
            reasons[name] = reason or f"a {type(layer).__name__} computes something of its own"
        else:
            served[name] = found
    return served, reasons


def _own_reason(layer: FactorableLayer) -> str:
    """Why the layer, looked at by itself, has to stay dense; empty where nothing speaks for that."""
    own = dict(layer.named_parameters(recurse=False))
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin) and layer.has_uninitialized_params():
        return "its weight has no shape yet; run one pass first"
    if changed := [name for name in _COMPUTES if name in vars(layer)]:
        return f"its {changed[0]} was changed on the instance"
    if "weight" not in own or (layer.bias is not None and "bias" not in own):
        what = "bias" if "weight" in own else "weight"
        return f"its {what} is computed from other parameters; remove the parametrization first"
    if any(getattr(layer, hooks, None) for hooks in _HOOKS_ON_STATE):
        return "hooks on its state_dict expect a dense weight"
    return _weight_reason(layer)


def _weight_reason(layer: FactorableLayer) -> str:
    weight = layer.weight
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor or weight.layout != torch.strided:
        return f"its weight is a {type(weight.data).__name__} of layout {weight.layout}, no plain tensor"
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}; only real floating point is factored"
    declared = _declared_shape(layer)
    if tuple(weight.shape) != declared:
        return f"its weight has shape {tuple(weight.shape)}, its attributes say {declared}"
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if layer.bias is not None and (tuple(layer.bias.shape) != (outputs,) or layer.bias.dtype != weight.dtype):
        return f"its bias has shape {tuple(layer.bias.shape)} and dtype {layer.bias.dtype}, its weight another"
    return ""


def _declared_shape(layer: FactorableLayer) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return (layer.out_features, layer.in_features)
    first, second = layer.out_channels, layer.in_channels
    if isinstance(layer, nn.ConvTranspose2d):
        first, second = second, first
    return (first, second // layer.groups, *layer.kernel_size)


def _computed_by(layer: FactorableLayer) -> EffectiveLayer | None:
    """The layer itself where its class is PyTorch's or changes nothing of it; else what it is seen to compute."""
    base = next(kind for kind in KINDS if isinstance(layer, kind))
    if all(_inherited(type(layer), base, name) for name in (*_COMPUTES, "weight", "bias", "train")):
        return EffectiveLayer(layer)
    return effective_layer(layer, base)


def _inherited(cls: type, base: type, name: str) -> bool:
    """Whether the class has the attribute as ``base`` has it."""
    return getattr(cls, name, None) is getattr(base, name, None)


def _memory(parameter: Tensor) -> Hashable:
    """What two parameters have in common when they are the same memory, seen in the same shape."""
    if type(parameter) is not nn.Parameter or parameter.is_meta or parameter.layout != torch.strided:
        return id(parameter)  # lazy ones and tensors of other kinds may have no memory
    return parameter.untyped_storage().data_ptr(), parameter.storage_offset(), parameter.shape, parameter.stride()


def layer_input(given: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """What a layer was called with, as a hook sees it."""
    found: Tensor = given[0] if given else named["input"]
    return found

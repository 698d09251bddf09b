"""Let attention call its projections as Linear layers, so that they can be factored like any other.

``nn.MultiheadAttention`` holds the projections of queries, keys and values as one weight, which it never calls. Other
attention, such as torchvision's Swin, has a Linear and reads its weight. Nothing can stand in for such a weight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from common.network.copies import Module, independent_copy
from common.network.held import replace_module, unreplaceable_holders
from common.network.lowrank import LowRank
from common.network.modes import random_state_kept

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""The layers into which a joint projection is separated."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


class SeparateAttention(nn.MultiheadAttention):
    """Attention that equals an ``nn.MultiheadAttention`` and calls a Linear for each of its four projections.

    Args:
        whole: the attention that it equals. The weights are copied, except those of ``out_proj``.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        self.embed_dim, self.kdim, self.vdim = whole.embed_dim, whole.kdim, whole.vdim
        self.num_heads, self.head_dim, self.dropout = whole.num_heads, whole.head_dim, whole.dropout
        self.batch_first, self.add_zero_attn, self._qkv_same_embed_dim = whole.batch_first, False, False
        for name in ("in_proj_weight", "in_proj_bias", *(f"{each}_weight" for each in PROJECTIONS)):
            self.register_parameter(name, None)
        self.bias_k = self.bias_v = None
        biases = [None] * 3 if whole.in_proj_bias is None else whole.in_proj_bias.detach().chunk(3)
        for name, weight, bias in zip(PROJECTIONS, _weights(whole), biases, strict=True):
            self.add_module(name, _linear(weight, bias, whole.out_proj.weight.requires_grad))
        self.out_proj = whole.out_proj
        self.training = whole.training

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output and, if they are needed, the attention weights, as ``nn.MultiheadAttention`` does.

        ``is_causal`` is a hint that ``attn_mask`` is causal, and changes nothing.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is only a hint; give attn_mask too")
        batch_axis = 0 if self.batch_first else 1
        single = query.dim() == 2
        if single:
            query, key, value = (given.unsqueeze(batch_axis) for given in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        queries, keys, values = (
            self._heads(layer(given).transpose(0, batch_axis) if batch_axis else layer(given))
            for layer, given in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mask = self._mask(key_padding_mask, attn_mask, query.dtype)
        found, weights = self._attended(queries, keys, values, mask, need_weights)
        output: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        output = output.transpose(0, batch_axis) if batch_axis else output
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            output = output.squeeze(batch_axis)
            weights = None if weights is None else weights.squeeze(0)
        return output, weights

    def _heads(self, projected: Tensor) -> Tensor:
        """Divide ``(N, L, E)`` among the heads: ``(N, H, L, E / H)``."""
        return projected.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _attended(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend by heads; ``(N, H, L, E / H)``, and the weights ``(N, H, L, S)`` if they are needed."""
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return F.scaled_dot_product_attention(query, key, value, mask, dropout), None
        scores = query @ key.transpose(-2, -1) / math.sqrt(self.head_dim)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        weights = F.dropout(weights, dropout)
        return weights @ value, weights

    def _mask(self, padding: Tensor | None, attention: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Return the sum of both masks, which is added to the scores, as ``(N, H, L, S)`` or broadcast to it."""
        parts = []
        if attention is not None:
            part = _added(attention, dtype)
            parts.append(part.unflatten(0, (-1, self.num_heads)) if part.dim() == 3 else part)
        if padding is not None:
            parts.append(_added(padding, dtype)[:, None, None])
        return sum(parts[1:], parts[0]) if parts else None

    def joined(self) -> nn.MultiheadAttention:
        """Return the equal ``nn.MultiheadAttention``; its projections must be dense."""
        layers: list[Any] = [getattr(self, name) for name in PROJECTIONS]
        weight = layers[0].weight
        with random_state_kept(weight.device):  # it draws weights
            whole = nn.MultiheadAttention(
                self.embed_dim,
                self.num_heads,
                self.dropout,
                layers[0].bias is not None,
                kdim=self.kdim,
                vdim=self.vdim,
                batch_first=self.batch_first,
                device=weight.device,
                dtype=weight.dtype,
            )
        with torch.no_grad():
            for part, layer in zip(_weights(whole), layers, strict=True):
                part.copy_(layer.weight)
            if whole.in_proj_bias is not None:
                whole.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        whole.out_proj = self.out_proj
        for parameter in whole.parameters():
            parameter.requires_grad_(weight.requires_grad)
        return whole.train(self.training)


def _weights(whole: nn.MultiheadAttention) -> Iterable[Tensor]:
    """The weights of queries, keys and values, each a view."""
    if whole._qkv_same_embed_dim:
        return whole.in_proj_weight.detach().chunk(3)
    return [whole.get_parameter(f"{name}_weight").detach() for name in PROJECTIONS]


def _linear(weight: Tensor, bias: Tensor | None, trainable: bool) -> nn.Linear:
    """Return a Linear with copies of ``weight`` and ``bias``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone(), trainable)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), trainable)
    return layer


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add to scores. True in a mask of booleans leaves a position out."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


class _CallsInstead(TorchFunctionMode):
    """Call a Linear child of ``module`` where its weight and bias are read for a product."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.layers = [child for child in module.children() if isinstance(child, nn.Linear)]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run ``func``, or the layer in its place."""
        if func is F.linear:
            x, weight, bias = _product(*args, **(kwargs or {}))
            for layer in self.layers:
                own = weight._layer is layer if isinstance(layer, LowRank) and hasattr(weight, "_layer") else False
                if (own or weight is layer._parameters.get("weight")) and bias is layer.bias:
                    return layer(x)
        return func(*args, **(kwargs or {}))


def _product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Any, Tensor | None]:
    """Return the arguments of ``linear`` in order."""
    return input, weight, bias


class CallsItsLayers(nn.Module):
    """Base of the modules that replace those whose ``forward`` reads the weight of a Linear child without a call.

    The module also inherits from the class that it replaces, and has its attributes, parameters and hooks.
    """

    stands_for: ClassVar[type[nn.Module]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the replaced module's ``forward``; calls take the place of products with a child's weight and bias."""
        with _CallsInstead(self):
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle by the class of the replaced module, because the module's own class is created at run time."""
        return _empty, (self.stands_for,), self.__dict__


_CLASSES: dict[type[nn.Module], type[CallsItsLayers]] = {}


def _empty(cls: type[nn.Module]) -> CallsItsLayers:
    """Create an uninitialised replacement for a module of class ``cls``. Pickles refer to this function by name."""
    if cls not in _CLASSES:
        described = {"__module__": __name__, "__doc__": CallsItsLayers.__doc__, "stands_for": cls}
        _CLASSES[cls] = type(f"Calls{cls.__name__}", (CallsItsLayers, cls), described)
    return _CLASSES[cls].__new__(_CLASSES[cls])


def separate_projections(model: Module, only: Container[str] | None = None) -> Module:
    """Return an equal network in which attention calls its projections as Linear layers.

    A :class:`SeparateAttention` replaces each ``nn.MultiheadAttention``, unless its class is another one, or it has
    hooks, shares its weights or appends keys of its own. A :class:`CallsItsLayers` replaces each module that reads the
    weights of its Linear children.

    Args:
        model: stays unchanged. If there is nothing to replace, it is returned itself.
        only: names of the modules to replace; None for all.
    """
    wanted = [name for name in _replaceable(model) if only is None or name in only]
    if not wanted:
        return model
    made = independent_copy(model)
    modules = dict(made.named_modules())
    with torch.no_grad():
        for name in wanted:
            module = modules[name]
            if isinstance(module, nn.MultiheadAttention):
                replace_module(made, module, SeparateAttention(module))
            else:
                calling = _empty(type(module))
                calling.__dict__.update(vars(module))
                replace_module(made, module, calling)
    for module in made.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # which only PyTorch's own attention takes
    return made


def _replaceable(model: nn.Module) -> list[str]:
    """The names of the modules that :func:`separate_projections` replaces."""
    owners = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())
    found = {
        name: module
        for name, module in model.named_modules()
        if module is not model and (_is_plain_attention(module, owners) or _reads_its_layers(module))
    }
    holders = unreplaceable_holders(model) if found else {}
    return [name for name, module in found.items() if module not in holders]


def _is_plain_attention(module: nn.Module, owners: Mapping[int, int]) -> bool:
    """Whether a :class:`SeparateAttention` can replace ``module``."""
    if type(module) is not nn.MultiheadAttention or module.bias_k is not None or module.add_zero_attn:
        return False
    altered = "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS)
    own = [tensor for tensor in module._parameters.values() if tensor is not None]
    return not altered and all(owners[id(tensor)] == 1 for tensor in own)


def _reads_its_layers(module: nn.Module) -> bool:
    """Whether the ``forward`` of ``module`` names a weight, while the module has Linear children."""
    if isinstance(module, CallsItsLayers | nn.MultiheadAttention | torch.jit.ScriptModule) or type(
        module
    ).__module__.startswith("torch.nn."):
        return False
    code = getattr(type(module).forward, "__code__", None)
    linear = any(isinstance(child, nn.Linear) for child in module.children())
    return linear and code is not None and "weight" in code.co_names


def join_projections(model: nn.Module) -> None:
    """Put a joint projection back, in place, wherever no projection of a :class:`SeparateAttention` is factored."""
    for module in list(model.modules()):
        if isinstance(module, SeparateAttention) and not any(isinstance(part, LowRank) for part in module.modules()):
            replace_module(model, module, module.joined())

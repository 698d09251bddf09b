"""Encode a network's state as tensors and plain values, so that files need no pickle."""

from __future__ import annotations

import base64
import copy
import io
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.network.held import OF_EVERY_MODULE

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_JSON_TYPES = (type(None), bool, int, float, str)


def _is_plain_tensor(value: object) -> bool:
    """Whether ``value`` is a strided tensor that is not quantized."""
    return isinstance(value, Tensor) and not value.is_quantized and value.layout == torch.strided


def distinct_tensors(model: nn.Module, copies: bool = True) -> dict[str, Tensor]:
    """Return the plain tensors of ``model.state_dict()``, each once, under its first name.

    A module that is used twice has its tensors under both names, but a safetensors file refuses shared memory. Two
    tensors that view the same memory both appear, the second as a copy. :func:`encoded_state` returns the entries
    that are not plain tensors.

    Args:
        model: the network. Its tensors stay unchanged.
        copies: whether to return contiguous tensors that share no memory, as a file needs; otherwise return the
            parameters and buffers themselves.
    """
    first: dict[int, str] = {}
    own = model.state_dict(keep_vars=True)
    for name, tensor in own.items():
        if _is_plain_tensor(tensor):
            first.setdefault(id(tensor), name)
    if not copies:
        return {name: own[name] for name in first.values()}
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in first.values():
        tensor = own[name].detach()
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone(memory_format=torch.contiguous_format) if place in seen else tensor.contiguous()
        seen.add(place)
    return found


class Snapshot:
    """The values of a network's parameters and buffers, to undo changes of them.

    All count, whether or not the network's own ``state_dict`` holds them.

    Args:
        model: the network; its tensors are copied.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        plain = [tensor.detach() for tensor in tensors if _is_plain_tensor(tensor)]
        self._values = [(distinct, distinct.clone()) for distinct in map(_distinct_elements, plain)]

    def restore(self) -> None:
        """Write the values back."""
        with torch.no_grad():
            for tensor, value in self._values:
                tensor.copy_(value)


class Attributes:
    """What a network's modules hold in plain attributes, to undo what a pass that was broken off left there.

    A network may keep the maps of a pass in a list, for example, and take them out again later in the pass. Of lists,
    dicts, sets and deques the items count, too.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._values = {module: _own_attributes(module) for module in model.modules()}
        held = [value for values in self._values.values() for value in values.values()]
        self._items = [(value, copy.copy(value)) for value in held if type(value) in (list, dict, set, deque)]

    def restore(self) -> None:
        """Set the attributes and the items back."""
        for module, values in self._values.items():
            for name in _own_attributes(module).keys() - values.keys():
                del vars(module)[name]
            vars(module).update(values)
        for value, before in self._items:
            value.clear()
            value.update(before) if isinstance(value, dict | set) else value.extend(before)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module besides those that every module has."""
    return {name: value for name, value in vars(module).items() if name not in OF_EVERY_MODULE}


def _distinct_elements(tensor: Tensor) -> Tensor:
    """The tensor with one element of each axis along which it is expanded."""
    strides = zip(tensor.stride(), tensor.shape, strict=True)
    return tensor[tuple(slice(0, 1) if not stride and size else slice(None) for stride, size in strides)]


def other_entries(model: nn.Module) -> set[str]:
    """Return the names of the entries of ``model.state_dict()`` that are not plain tensors."""
    return {name for name, value in model.state_dict().items() if not _is_plain_tensor(value)}


def encoded_state(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Encode the entries of ``model.state_dict()`` that are not plain tensors.

    These are extra state and the packed weights of quantized layers.

    Returns:
        Entry name -> value that JSON can hold, and the tensors to which the values refer, by name.

    Raises:
        ValueError: an entry holds an object that only pickle could write. The message names its module.
    """
    values: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if not _is_plain_tensor(value):
            try:
                values[name] = _encoded(value, name, tensors)
            except TypeError as error:
                owner = name.rpartition(".")[0] or "the network itself"
                raise ValueError(
                    f"module {owner!r} ({type(_module(model, name)).__name__}) has state that is not a tensor "
                    f"({error}), which a file without pickle cannot hold; remove it first"
                ) from None
    return values, tensors


def _module(model: nn.Module, entry: str) -> nn.Module:
    """Return the module to which an entry of the state belongs."""
    modules, owner = dict(model.named_modules()), entry.rpartition(".")[0]
    while owner not in modules:
        owner = owner.rpartition(".")[0]
    return modules[owner]


def _encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Encode ``value`` for JSON; add its tensors to ``tensors``, under names that begin with ``name``."""

    def store(tensor: Tensor) -> str:
        key = f"{name}#{len(tensors)}"
        tensors[key] = tensor.detach().cpu().contiguous().clone()
        return key

    if isinstance(value, _JSON_TYPES):
        return value
    if isinstance(value, bytes | bytearray | io.BytesIO):
        held = value.getvalue() if isinstance(value, io.BytesIO) else bytes(value)
        return {"kind": type(value).__name__, "value": base64.b64encode(held).decode()}
    if isinstance(value, torch.dtype):
        return {"kind": "dtype", "value": str(value)}
    if _is_plain_tensor(value):
        return {"kind": "tensor", "value": store(value)}
    if isinstance(value, Tensor) and value.is_quantized:
        return _encoded_quantized(value, store)
    if type(value) in (list, tuple):
        return {"kind": type(value).__name__, "value": [_encoded(item, name, tensors) for item in value]}
    if type(value) in (dict, OrderedDict):
        items = [[_encoded(part, name, tensors) for part in item] for item in value.items()]
        return {"kind": "dict", "value": items}
    raise TypeError(f"a {type(value).__name__}")


def _encoded_quantized(tensor: Tensor, store: Any) -> dict[str, Any]:
    """Encode a quantized tensor. ``store`` takes a plain tensor and returns the name to refer to it."""
    held = {"kind": "quantized", "dtype": str(tensor.dtype), "value": store(tensor.int_repr())}
    if tensor.qscheme() == torch.per_tensor_affine:
        return held | {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    if tensor.qscheme() == torch.per_channel_affine:
        scales, points = store(tensor.q_per_channel_scales()), store(tensor.q_per_channel_zero_points())
        return held | {"scales": scales, "zero_points": points, "axis": tensor.q_per_channel_axis()}
    raise TypeError(f"a tensor quantized by {tensor.qscheme()}")


def decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Decode a value from :func:`encoded_state`.

    Args:
        value: the encoded value.
        tensors: the tensors to which encoded values refer, by name. Those that are used are removed: each has one use,
            or a small file could ask for any number of copies.

    Raises:
        ValueError: ``value`` is not one that :func:`encoded_state` writes.
    """
    if isinstance(value, _JSON_TYPES):
        return value
    try:
        kind, held = value["kind"], value["value"]
        if kind == "bytes" or kind == "bytearray" or kind == "BytesIO":
            return {"bytes": bytes, "bytearray": bytearray, "BytesIO": io.BytesIO}[kind](base64.b64decode(held))
        if kind == "dtype":
            return _DTYPES[held]
        if kind == "tensor":
            return tensors.pop(held)
        if kind == "quantized":
            return _decoded_quantized(value, tensors)
        if kind in ("list", "tuple"):
            return {"list": list, "tuple": tuple}[kind](decoded(item, tensors) for item in held)
        if kind == "dict":
            return {decoded(key, tensors): decoded(item, tensors) for key, item in held}
    except (KeyError, TypeError, RuntimeError, IndexError) as error:
        raise ValueError(f"this is not the state of a module: {error!r}") from None
    raise ValueError(f"this is not the state of a module: kind {kind!r}")


def _decoded_quantized(value: Mapping[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """Decode a tensor from :func:`_encoded_quantized`."""
    whole = tensors.pop(value["value"])
    if "axis" not in value:
        return torch._make_per_tensor_quantized_tensor(whole, float(value["scale"]), int(value["zero_point"]))
    scales, points = tensors.pop(value["scales"]), tensors.pop(value["zero_points"])
    return torch._make_per_channel_quantized_tensor(whole, scales, points, int(value["axis"]))

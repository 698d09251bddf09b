"""Find and replace modules that a network holds outside the registry of ``nn.Module``."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from common.network.closures import hooks_of

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that every module has: its registry of children, its hooks, its training mode."""
REPLACEABLE = (list, dict, tuple)
"""Container types in which a module can be replaced. Subclasses do not count."""
_LEAF_TYPES = (str, bytes, int, float, complex, torch.Tensor, type, types.ModuleType, types.CodeType, types.FrameType)
_MAX_OBJECTS = 200_000
"""Limit on the number of objects to visit. The attributes of a typical network lead to a few thousand."""


def unreplaceable_holders(model: nn.Module) -> dict[nn.Module, str]:
    """Find modules that cannot be replaced because of an object that refers to them.

    Registered children and plain attributes can be replaced, and so can items of lists and tuples and values of dicts
    in them. A reference from any other object cannot: named tuples, deques, sets, keys of dicts, partial functions,
    closures, bound methods, weak references, objects of other classes, unregistered modules.

    Returns:
        Module -> description of the object that holds it, such as ``a deque``.
    """
    registered = set(model.modules())
    found: dict[nn.Module, str] = {}
    seen: set[int] = set()
    pending: list[tuple[Any, str]] = [(module, "") for module in registered]
    while pending and len(seen) < _MAX_OBJECTS:
        value, holder = pending.pop()
        if isinstance(value, nn.Module) and holder:
            found.setdefault(value, holder)
        if not isinstance(value, _LEAF_TYPES) and id(value) not in seen:
            seen.add(id(value))
            pending += _contents(value, holder, registered)
    return found


def _contents(value: Any, holder: str, registered: set[nn.Module]) -> Iterator[tuple[Any, str]]:
    """Yield each object in ``value``, with a description of its holder; empty if it can be replaced there."""
    if isinstance(value, nn.Module):
        kind = "" if value in registered else f"a {type(value).__name__} that is not registered in the network"
        yield from ((child, kind) for child in value._modules.values())
        yield from ((hook, kind) for _, _, hook in hooks_of(value))
        yield from ((held, kind) for name, held in vars(value).items() if name not in OF_EVERY_MODULE)
    elif not holder and type(value) is dict:
        yield from ((held, "") for held in value.values())
        yield from ((key, "the keys of a dict") for key in value)
    elif not holder and type(value) in REPLACEABLE:
        yield from ((held, "") for held in value)
    else:
        kind = holder or f"a {type(value).__name__}"
        yield from ((held, kind) for held in _referents(value))


def _referents(value: Any) -> Iterable[Any]:
    """Return the objects that ``value`` refers to; for a function, its closure and defaults but not its globals."""
    if isinstance(value, types.FunctionType):
        return [*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__]
    return [value()] if isinstance(value, weakref.ref) else gc.get_referents(value)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` everywhere in ``model``, including lists, tuples and dicts in module attributes.

    A module that is used twice is replaced in both places. Containers without ``old`` are not written to.
    """
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() lists a repeated child only once
            if child is old:
                parent.set_submodule(name, new)
        for name, value in list(vars(parent).items()):
            if name not in OF_EVERY_MODULE:
                replaced = _replaced(value, old, new, set())
                if replaced is not value:
                    vars(parent)[name] = replaced


def _replaced(value: Any, old: nn.Module, new: nn.Module, seen: set[int]) -> Any:
    """Return ``value`` with ``old`` replaced by ``new`` at any depth. Lists and dicts are changed in place."""
    if value is old:
        return new
    if type(value) not in REPLACEABLE or id(value) in seen:
        return value
    seen.add(id(value))
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    changed = {key: after for key, held in items if (after := _replaced(held, old, new, seen)) is not held}
    if isinstance(value, tuple):
        return tuple(changed.get(index, held) for index, held in items) if changed else value
    for key, after in changed.items():
        value[key] = after
    return value

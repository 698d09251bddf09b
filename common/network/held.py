"""Find and replace modules that a network holds outside the registry of ``nn.Module``."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from common.network.closures import MOST_ITEMS, behind, global_variables, hooks_of

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that every module has: its registry of children, its hooks, its training mode."""
REPLACEABLE = (list, dict, tuple)
"""Container types in which a module can be replaced. Subclasses do not count."""
_LEAF_TYPES = (
    *(str, bytes, int, float, complex, type, types.ModuleType, types.CodeType, types.FrameType),
    *(torch.Tensor, torch.optim.Optimizer),
)
_NAMED = (nn.Module, types.FunctionType, types.MethodType)
"""Kinds of global variables to visit; others may lead to whole data sets."""
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
    return {held: holder for held, holder in _held(model) if isinstance(held, nn.Module) and holder}


def held_parameters(model: nn.Module) -> set[int]:
    """The ``id`` of each parameter that an object other than its module and an optimizer refers to."""
    return {id(held) for held, _ in _held(model) if isinstance(held, nn.Parameter)}


def _held(model: nn.Module) -> Iterator[tuple[Any, str]]:
    """Yield what the network holds outside the registry, and the object that holds it; empty if it can be replaced."""
    registered = set(model.modules())
    replaceable: set[int] = set()  # what was visited as a thing that can be changed in place
    seen: set[int] = set()
    pending: list[tuple[Any, str]] = [(module, "") for module in registered]
    later: list[tuple[Any, str]] = []
    while (pending or later) and len(seen) + len(replaceable) < _MAX_OBJECTS:
        value, holder = (pending or later).pop()
        if type(value) in weakref.ProxyTypes:  # a dead one raises at any question
            value = behind(value)
        yield value, holder
        known = isinstance(value, _LEAF_TYPES) or id(value) in (seen if holder else replaceable)
        if known or (id(value) in replaceable and type(value) is not tuple):
            continue
        (seen if holder else replaceable).add(id(value))
        for held, kind in _contents(value, holder, registered):
            (later if kind else pending).append((held, kind))


def _contents(value: Any, holder: str, registered: set[nn.Module]) -> Iterator[tuple[Any, str]]:
    """Yield each object in ``value``, with a description of its holder; empty if it can be replaced there."""
    if isinstance(value, nn.Module):
        kind = "" if value in registered else f"a {type(value).__name__} that is not registered in the network"
        yield from ((child, kind) for child in value._modules.values())
        yield from ((hook, kind) for hook in hooks_of(value))
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
    """Return the objects that ``value`` refers to; for a function, also the global variables that it names."""
    if isinstance(value, types.FunctionType):
        variables = [held for _, held in global_variables(value) if issubclass(type(held), _NAMED)]
        return [*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__, *variables]
    if isinstance(value, weakref.ref):
        return [value()]
    is_data = isinstance(value, (list, tuple, dict, set)) and len(value) > MOST_ITEMS
    return [] if is_data else gc.get_referents(value)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` everywhere in ``model``, including lists, tuples and dicts in module attributes.

    A module that is used twice is replaced in both places. Containers without ``old`` are not written to.
    """
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() lists a repeated child only once
            if child is old:
                parent._modules[name] = new  # a network may have a __setattr__ of its own
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

"""Where a network holds its modules besides ``nn.Module``'s own registry."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that PyTorch gives every module: its registry, its hooks, its mode."""
REPLACEABLE = (list, dict, tuple)
"""Containers, of exactly these types, in which one module can take another's place."""
_OPAQUE = (str, bytes, int, float, complex, torch.Tensor, type, types.ModuleType, types.CodeType, types.FrameType)
_MOST = 200_000  # objects that are looked at; a network's own attributes are a few thousand


def unreplaceable_holders(model: nn.Module) -> dict[nn.Module, str]:
    """Modules that something holds in which nothing can take their place, each with the kind of holder.

    Registered children, plain attributes, and lists, dicts (as values) and tuples in them can be changed. Anything
    else that a module's attributes lead to cannot: named tuples, deques, sets, keys of dicts, partial functions,
    closures, bound methods, weak references, objects of other classes, modules that are not registered.
    """
    registered = set(model.modules())
    found: dict[nn.Module, str] = {}
    seen: set[int] = set()
    todo: list[tuple[Any, str]] = [(module, "") for module in registered]
    while todo and len(seen) < _MOST:
        value, holder = todo.pop()
        if isinstance(value, nn.Module) and holder:
            found.setdefault(value, holder)
        if not isinstance(value, _OPAQUE) and id(value) not in seen:
            seen.add(id(value))
            todo += _held_by(value, holder, registered)
    return found


def _held_by(value: Any, holder: str, registered: set[nn.Module]) -> Iterator[tuple[Any, str]]:
    """What ``value`` holds, each with the kind of the holder where nothing can be replaced in it."""
    if isinstance(value, nn.Module):
        kind = "" if value in registered else f"a {type(value).__name__} that is no part of the network"
        yield from ((child, kind) for child in value._modules.values())
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
    """The objects that ``value`` refers to; of a function those of its closure and defaults, not its globals."""
    if isinstance(value, types.FunctionType):
        return [*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__]
    return [value()] if isinstance(value, weakref.ref) else gc.get_referents(value)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` stands in ``model``: in lists, tuples and dicts of its modules' attributes too.

    A module that is used twice stays one module. A container that does not hold ``old`` is not written to.
    """
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would name a repeated child once
            if child is old:
                parent.set_submodule(name, new)
        for name, value in list(vars(parent).items()):
            if name not in OF_EVERY_MODULE:
                replaced = _with_replaced(value, old, new, set())
                if replaced is not value:
                    vars(parent)[name] = replaced


def _with_replaced(value: Any, old: nn.Module, new: nn.Module, seen: set[int]) -> Any:
    """``value`` with ``new`` for ``old``, however deep in lists, tuples and dicts; lists and dicts are changed."""
    if value is old:
        return new
    if type(value) not in REPLACEABLE or id(value) in seen:
        return value
    seen.add(id(value))
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    changed = {key: after for key, held in items if (after := _with_replaced(held, old, new, seen)) is not held}
    if isinstance(value, tuple):
        return tuple(changed.get(index, held) for index, held in items) if changed else value
    for key, after in changed.items():
        value[key] = after
    return value

"""Functions that a network holds and that refer to it: hooks, or a ``forward`` that was set on an instance."""

from __future__ import annotations

import builtins
import copy
import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

MOST_ITEMS = 1000
"""Longer containers are data; they are not searched for functions and modules."""
_CONTAINERS = (list, tuple, dict, set)
_REFERRING = (types.FunctionType, types.CellType, types.MethodType, functools.partial, weakref.ref)


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """Yield each hook of a module."""
    for name, held in vars(module).items():
        if name.endswith("_hooks") and isinstance(held, dict):
            yield from list(held.values())


def rebind_functions(model: nn.Module, copied: nn.Module, memo: Mapping[int, Any]) -> None:
    """Let the functions in a copy of a network refer to the copy, where they refer to the network.

    ``copy.deepcopy`` shares functions. A hook that stores what it sees in the network would store it in the original,
    and ``net.forward = lambda x: old(x)["out"]`` would run the original's layers.

    Functions are found in the attributes of the copied objects and in copied lists and dicts. References are followed
    through closures, defaults, global variables, bound methods, ``functools.partial``, weak references, plain
    containers and attributes of plain objects. Functions that share a variable still share it in the copy.

    Args:
        model: the network.
        copied: its copy.
        memo: ``id`` of an object of the network -> its copy, as ``copy.deepcopy`` fills it.
    """
    copies = {key: value for key, value in memo.items() if id(value) != key}
    originals = dict(model.named_modules())
    for name, module in copied.named_modules():
        if name in originals:  # a __deepcopy__ of the network's own need not fill the memo
            copies.setdefault(id(originals[name]), module)
    _Rebinding(copies).run()


class _Scope(dict[str, Any]):
    """Global variables of rebound functions: their own where they refer to the network, else those of the module."""

    def __init__(self, outer: dict[str, Any]) -> None:
        super().__init__(__builtins__=outer.get("__builtins__", builtins))
        self._outer = outer

    def __missing__(self, name: str) -> Any:
        return self._outer[name]


class _Rebinding:
    """Finds the functions that lead to a network, and replaces them in its copy.

    Args:
        copies: ``id`` of an object of the network -> its copy.
    """

    def __init__(self, copies: Mapping[int, Any]) -> None:
        self._copies = copies
        self._in_copy = {id(value) for value in copies.values()}
        self._visited: dict[int, Any] = {}  # while these objects live, no other object has their id
        self._leading: set[int] = set()
        self._scopes: dict[int, _Scope] = {}
        self._replaced: dict[int, Any] = {}
        self._unfilled: list[tuple[types.CellType, types.CellType]] = []

    def run(self) -> None:
        """Replace the functions."""
        places = [place for value in self._copies.values() for place in _places(value)]
        self._find_leading([holder[key] for holder, key in places])
        for holder, key in places:
            value = holder[key]
            if id(value) in self._leading:
                holder[key] = self._replacement(value)
        for scope in self._scopes.values():
            for name, held in list(scope.items()):
                scope[name] = self._replacement(held)
        while self._unfilled:  # filled last, because a function may refer to itself
            old, new = self._unfilled.pop()
            new.cell_contents = self._replacement(old.cell_contents, in_cell=True)

    def _is_part(self, value: Any, in_cell: bool) -> bool:
        """Whether a reference to this object must become one to its copy."""
        return id(value) in self._copies and (in_cell or isinstance(value, nn.Module | Tensor))

    def _find_leading(self, roots: list[Any]) -> None:
        """Find the objects from which references lead to the network; give their global variables a scope."""
        referrers: dict[int, list[int]] = {}
        variables: list[tuple[dict[str, Any], str, Any]] = []
        leading: list[int] = []
        pending = [root for root in roots if self._is_followed(root)]
        while pending:
            value = pending.pop()
            if id(value) in self._visited:
                continue
            self._visited[id(value)] = value
            if isinstance(value, types.FunctionType):
                variables += [(value.__globals__, name, held) for name, held in global_variables(value)]
            for held in references(value):
                if self._is_part(held, isinstance(value, types.CellType)):
                    leading.append(id(value))
                elif self._is_followed(held):
                    referrers.setdefault(id(held), []).append(id(value))
                    pending.append(held)
        while leading:
            key = leading.pop()
            if key not in self._leading:
                self._leading.add(key)
                leading += referrers.get(key, ())
        for scope, name, held in variables:
            if id(held) in self._leading or self._is_part(held, in_cell=False):
                found = self._scopes.setdefault(id(scope), _Scope(scope))
                found[name] = held  # replaced at the end

    def _is_followed(self, value: Any) -> bool:
        if type(value) in weakref.ProxyTypes or isinstance(value, _REFERRING):
            return True
        if isinstance(value, Tensor | nn.Module | type | types.ModuleType):
            return False
        if id(value) in self._in_copy and not isinstance(value, tuple | set):
            return False  # what it holds is a place of its own
        return 0 < len(value) <= MOST_ITEMS if type(value) in _CONTAINERS else hasattr(value, "__dict__")

    def _replacement(self, value: Any, in_cell: bool = False) -> Any:
        """What stands for this object in the copy; the object itself if it does not lead to the network."""
        if self._is_part(value, in_cell) or (id(value) in self._copies and id(value) in self._leading):
            return self._copies[id(value)]
        if id(value) not in self._leading:
            return value
        if id(value) not in self._replaced:
            self._replaced[id(value)] = self._replaced_object(value)
        return self._replaced[id(value)]

    def _replaced_object(self, value: Any) -> Any:
        replacement = self._replacement
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(replacement(value.__func__), replacement(value.__self__, in_cell=True))
        if isinstance(value, functools.partial):
            named = {key: replacement(held) for key, held in value.keywords.items()}
            return type(value)(replacement(value.func), *map(replacement, value.args), **named)
        if type(value) in weakref.ProxyTypes:
            return weakref.proxy(replacement(_behind(value)))
        if isinstance(value, weakref.ref):
            return weakref.ref(replacement(value()))
        if type(value) in (tuple, set):
            return type(value)(map(replacement, value))
        return self._holder(value)

    def _holder(self, value: Any) -> Any:
        """Replace what a list, a dict or a plain object holds, in a shallow copy."""
        try:
            found = copy.copy(value)
        except Exception:  # copying an object of an unknown class can raise anything
            return value
        self._replaced[id(value)] = found  # what follows may lead back here
        for holder, key in list(_places(found)):
            holder[key] = self._replacement(holder[key])
        return found

    def _function(self, value: types.FunctionType) -> types.FunctionType:
        cells = tuple(map(self._cell, value.__closure__ or ()))
        names = self._scopes.get(id(value.__globals__), value.__globals__)
        found = types.FunctionType(value.__code__, names, value.__name__, None, cells or None)
        self._replaced[id(value)] = found  # what follows may lead back here
        for attribute in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(value, attribute):
                setattr(found, attribute, getattr(value, attribute))
        found.__defaults__ = self._replacement(value.__defaults__)
        found.__kwdefaults__ = self._replacement(value.__kwdefaults__)
        vars(found).update({name: self._replacement(held) for name, held in vars(value).items()})
        return found

    def _cell(self, cell: types.CellType) -> types.CellType:
        if id(cell) not in self._leading:
            return cell
        if id(cell) not in self._replaced:
            self._replaced[id(cell)] = types.CellType()
            self._unfilled.append((cell, self._replaced[id(cell)]))
        found: types.CellType = self._replaced[id(cell)]
        return found


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield where an object may hold functions: a dict (of its attributes, or itself) or list, and the key there."""
    if isinstance(value, dict):
        yield from ((value, key) for key in list(value))
    elif isinstance(value, list):
        yield from ((value, index) for index in range(len(value)))
    elif hasattr(value, "__dict__") and not isinstance(value, Tensor | type):
        compiled = isinstance(value, nn.Module) and "_orig_mod" in value._modules
        if not compiled:  # torch.compile makes its functions anew
            yield from ((vars(value), key) for key in list(vars(value)))


def references(value: Any) -> Iterator[Any]:
    """Yield the objects to which a function, a method, a container or another object refers directly."""
    if type(value) in weakref.ProxyTypes:
        yield _behind(value)
    elif isinstance(value, types.FunctionType):
        yield from value.__closure__ or ()
        yield from (held for held in (value.__defaults__, value.__kwdefaults__) if held)
        yield from vars(value).values()
        yield from (held for _, held in global_variables(value))
    elif isinstance(value, types.CellType):
        try:
            yield value.cell_contents
        except ValueError:  # the variable has no value yet
            return
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, weakref.ref):
        yield value()
    elif type(value) is dict:
        yield from value.values()
    elif type(value) in _CONTAINERS:
        yield from value
    elif hasattr(value, "__dict__"):
        yield from vars(value).values()


def _behind(proxy: Any) -> Any:
    """The module behind a ``weakref.proxy``; None if it is gone or no module."""
    try:
        return proxy.named_modules.__self__
    except (AttributeError, ReferenceError):
        return None


def global_variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield name and value of the global variables that a function names, in nested functions, too.

    A function that another file defines is left out: it would lead through whole libraries.
    """
    scope = function.__globals__
    for name in _names(function.__code__):
        held = scope.get(name)
        if type(held) is not types.FunctionType or held.__globals__ is scope:
            yield name, held


def _names(code: types.CodeType) -> set[str]:
    """The names of global variables and attributes in a code object and those within it."""
    return set(code.co_names).union(*(_names(held) for held in code.co_consts if isinstance(held, types.CodeType)))

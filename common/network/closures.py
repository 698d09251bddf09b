"""Functions that a network holds and that refer to it: hooks, or a ``forward`` that was set on an instance."""

from __future__ import annotations

import builtins
import copy
import functools
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

MOST_ITEMS = 1000
"""Longer containers are data; they are not searched for functions and modules."""
MOST_OBJECTS = 50_000
"""Limit on the number of objects to visit."""
_IN_PLACE = (list, deque, dict, OrderedDict, defaultdict)
_ATOMS = (bool, int, float, str, type(None), Tensor, type, types.ModuleType)
_REFERRING = (types.FunctionType, types.CellType, types.MethodType, functools.partial, weakref.ref)
_OWN_WAYS = ("__new__", "__copy__", "__reduce__", "__reduce_ex__", "__getattribute__", "__del__")
"""A class that defines one of these may not want a second instance, or may free what both would hold."""


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """Yield each hook of a module."""
    for name, held in vars(module).items():
        if name.endswith("_hooks") and isinstance(held, dict):
            yield from list(held.values())


def rebind_functions(model: nn.Module, copied: nn.Module, memo: Mapping[int, Any]) -> None:
    """Let the functions in a copy of a network refer to the copy, where they refer to the network.

    ``copy.deepcopy`` shares functions. A hook that stores what it sees in the network would store it in the original,
    and ``net.forward = lambda x: old(x)["out"]`` would run the original's layers.

    Functions are found in the attributes of the copied objects and in copied containers. References are followed
    through closures, defaults, global variables, bound methods, ``functools.partial``, weak references, containers,
    plain objects, and modules outside the network. Functions that share a variable still share it in the copy. No
    object outside the copy changes.

    Args:
        model: the network.
        copied: its copy.
        memo: ``id`` of an object of the network -> its copy, as ``copy.deepcopy`` fills it.
    """
    originals = dict(model.named_modules())
    copies = dict(memo)
    for name, module in copied.named_modules():
        if name in originals:  # a __deepcopy__ of the network's own need not fill the memo
            copies.setdefault(id(originals[name]), module)
    shared = {id(module) for module in originals.values()}  # by a __deepcopy__ that returns the module itself
    _Rebinding({key: value for key, value in copies.items() if id(value) != key and id(value) not in shared}).run()


class _Scope(dict[str, Any]):
    """Global variables of rebound functions: their own where they refer to the network, else those of the module."""

    def __init__(self, outer: dict[str, Any]) -> None:
        kept = (type, types.ModuleType, types.FunctionType)  # some statements do not ask __missing__
        super().__init__(
            {name: held for name, held in outer.items() if name[:2] == "__" or issubclass(type(held), kept)}
        )
        self.setdefault("__builtins__", builtins)
        self._outer = outer

    def __missing__(self, name: str) -> Any:
        return self._outer[name]


class _Link(NamedTuple):
    """A reference to an object.

    Attributes:
        held: the object.
        narrow: whether it counts as a part of the network only if it is a module or tensor. So it is for global
            variables: they may share a configuration with the network.
    """

    held: Any
    narrow: bool = False

    @property
    def key(self) -> tuple[int, bool]:
        """What tells it from other links; only containers are searched in two ways."""
        return id(self.held), self.narrow and _is_container(self.held)


class _Rebinding:
    """Finds the functions that lead to a network, and replaces them in its copy.

    Args:
        copies: ``id`` of an object of the network -> its copy.
    """

    def __init__(self, copies: Mapping[int, Any]) -> None:
        self._copies = copies
        self._in_copy = {id(value) for value in copies.values()}
        self._visited: dict[tuple[int, bool], Any] = {}  # while these objects live, no other object has their id
        self._leading: set[tuple[int, bool]] = set()
        self._scopes: dict[int, _Scope] = {}
        self._replaced: dict[tuple[int, bool], Any] = {}
        self._unfilled: list[tuple[types.CellType, types.CellType]] = []

    def run(self) -> None:
        """Replace the functions."""
        places = [
            (holder, key)
            for value in self._copies.values()
            for holder, key in _places(value)
            if self._is_followed(holder[key])
        ]
        self._find_leading([_Link(holder[key]) for holder, key in places])
        for holder, key in places:
            if _Link(holder[key]).key in self._leading:
                holder[key] = self._replacement(holder[key])
        for scope in self._scopes.values():
            for name, held in list(scope.items()):
                scope[name] = self._replacement(held, narrow=True)
        while self._unfilled:  # filled last, because a function may refer to itself
            old, new = self._unfilled.pop()
            new.cell_contents = self._replacement(old.cell_contents)

    def _is_part(self, link: _Link) -> bool:
        """Whether this reference must become one to the object's copy."""
        return id(link.held) in self._copies and (not link.narrow or isinstance(link.held, nn.Module | Tensor))

    def _find_leading(self, roots: list[_Link]) -> None:
        """Find the objects from which references lead to the network; give their global variables a scope."""
        referrers: dict[tuple[int, bool], list[tuple[int, bool]]] = {}
        variables: list[tuple[dict[str, Any], str, _Link]] = []
        leading: list[tuple[int, bool]] = []
        pending = list(roots)
        while pending and len(self._visited) < MOST_OBJECTS:
            link = pending.pop()
            if link.key in self._visited:
                continue
            self._visited[link.key] = link.held
            if isinstance(link.held, types.FunctionType):
                scope = link.held.__globals__
                variables += [(scope, name, _Link(held, True)) for name, held in global_variables(link.held)]
            for to in _links(link):
                if self._is_part(to):
                    leading.append(link.key)
                elif self._is_followed(to.held):
                    referrers.setdefault(to.key, []).append(link.key)
                    pending.append(to)
        while leading:
            key = leading.pop()
            if key not in self._leading:
                self._leading.add(key)
                leading += referrers.get(key, ())
        for scope, name, link in variables:
            if link.key in self._leading or self._is_part(link):
                if id(scope) not in self._scopes:
                    self._scopes[id(scope)] = _Scope(scope)
                self._scopes[id(scope)][name] = link.held  # replaced at the end

    def _is_followed(self, value: Any) -> bool:
        if type(value) in weakref.ProxyTypes:  # first, because a dead one raises at any question
            return id(behind(value)) in self._copies
        if isinstance(value, weakref.ref):  # a copy of anything else would have no owner
            target = value()
            return id(getattr(target, "__self__", target)) in self._copies
        if isinstance(value, _REFERRING):
            return True
        if isinstance(value, _ATOMS):
            return False
        if id(value) in self._in_copy and not isinstance(value, tuple | set):
            return False  # what it holds is a place of its own
        return 0 < len(value) <= MOST_ITEMS if _is_container(value) else _is_plain(value)

    def _replacement(self, value: Any, narrow: bool = False) -> Any:
        """What stands for this object in the copy; the object itself if it does not lead to the network."""
        link = _Link(value, narrow)
        if self._is_part(link) or (id(value) in self._copies and link.key in self._leading):
            return self._copies[id(value)]
        if link.key not in self._leading:
            return value
        if link.key not in self._replaced:
            self._replaced[link.key] = self._replaced_object(link)
        return self._replaced[link.key]

    def _replaced_object(self, link: _Link) -> Any:
        value = link.held
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return self._method(value)
        if isinstance(value, functools.partial):
            named = {key: self._replacement(held) for key, held in value.keywords.items()}
            found = type(value)(self._replacement(value.func), *map(self._replacement, value.args), **named)
            vars(found).update({name: self._replacement(held) for name, held in vars(value).items()})
            return found
        if type(value) in weakref.ProxyTypes:
            return weakref.proxy(self._replacement(behind(value)))
        if isinstance(value, weakref.WeakMethod):
            return weakref.WeakMethod(self._method(value()))
        if isinstance(value, weakref.ref):
            return weakref.ref(self._replacement(value()))
        if isinstance(value, tuple | set):
            make: Any = getattr(type(value), "_make", type(value))  # of a named tuple
            return make([self._replacement(held, link.narrow) for held in value])
        if _is_container(value):
            found = copy.copy(value)
        else:
            found = object.__new__(type(value))
            vars(found).update(vars(value))
        self._replaced[link.key] = found  # what follows may lead back here
        narrow = link.narrow and _is_container(value)
        for holder, key in list(_places(found)):
            holder[key] = self._replacement(holder[key], narrow)
        return found

    def _method(self, value: Any) -> types.MethodType:
        return types.MethodType(self._replacement(value.__func__), self._replacement(value.__self__))

    def _function(self, value: types.FunctionType) -> types.FunctionType:
        cells = tuple(map(self._cell, value.__closure__ or ()))
        names = self._scopes.get(id(value.__globals__), value.__globals__)
        found = types.FunctionType(value.__code__, names, value.__name__, None, cells or None)
        self._replaced[_Link(value).key] = found  # what follows may lead back here
        for attribute in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(value, attribute):
                setattr(found, attribute, getattr(value, attribute))
        found.__defaults__ = self._replacement(value.__defaults__)
        found.__kwdefaults__ = self._replacement(value.__kwdefaults__)
        vars(found).update({name: self._replacement(held) for name, held in vars(value).items()})
        return found

    def _cell(self, cell: types.CellType) -> types.CellType:
        key = _Link(cell).key
        if key not in self._leading:
            return cell
        if key not in self._replaced:
            self._replaced[key] = types.CellType()
            self._unfilled.append((cell, self._replaced[key]))
        found: types.CellType = self._replaced[key]
        return found


def _is_container(value: Any) -> bool:
    """Whether functions and modules are looked for among the items of ``value``."""
    kind = type(value)
    return kind in _IN_PLACE or kind in (tuple, set) or (issubclass(kind, tuple) and hasattr(kind, "_make"))


def _is_plain(value: Any) -> bool:
    """Whether ``value`` consists of its attributes, so that a copy of these is a copy of it."""
    kind = type(value)
    if not getattr(kind, "__dictoffset__", 0):
        return False
    return all(getattr(kind, name, None) in (getattr(object, name, None), None) for name in _OWN_WAYS)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield where an object may hold functions: a dict (of its attributes, or itself) or list, and the key there."""
    if isinstance(value, dict):
        yield from ((value, key) for key in list(value))
    elif isinstance(value, list | deque):
        yield from ((value, index) for index in range(len(value)))
    elif isinstance(value, nn.Module) or (not isinstance(value, (*_REFERRING, Tensor, type)) and _is_plain(value)):
        compiled = isinstance(value, nn.Module) and "_orig_mod" in value._modules
        if not compiled:  # torch.compile makes its functions anew
            yield from ((vars(value), key) for key in list(vars(value)))


def _links(link: _Link) -> Iterator[_Link]:
    """Yield the references of an object."""
    value = link.held
    if type(value) in weakref.ProxyTypes:
        yield _Link(behind(value))
    elif isinstance(value, types.FunctionType):
        yield from map(_Link, value.__closure__ or ())
        yield from map(_Link, (value.__defaults__, value.__kwdefaults__, *vars(value).values()))
        yield from (_Link(held, True) for _, held in global_variables(value))
    elif isinstance(value, types.CellType):
        try:
            yield _Link(value.cell_contents)
        except ValueError:  # the variable has no value yet
            return
    elif isinstance(value, types.MethodType):
        yield from (_Link(value.__func__), _Link(value.__self__))
    elif isinstance(value, functools.partial):
        yield from map(_Link, (value.func, *value.args, *value.keywords.values(), *vars(value).values()))
    elif isinstance(value, weakref.ref):
        known = value()
        yield from _links(_Link(known)) if isinstance(known, types.MethodType) else (_Link(known),)
    elif _is_container(value):
        yield from (_Link(held, link.narrow) for held in (value.values() if isinstance(value, dict) else value))
    else:
        yield from map(_Link, vars(value).values())


def behind(proxy: Any) -> Any:
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

"""Functions that a network holds and that refer to it: hooks, or a ``forward`` that was set on an instance."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn


def hooks_of(module: nn.Module) -> Iterator[tuple[dict[Any, Any], Any, Any]]:
    """Yield each hook of a module: the dict that holds it, its key there, and the hook."""
    for name, held in vars(module).items():
        if name.endswith("_hooks") and isinstance(held, dict):
            yield from ((held, key, hook) for key, hook in list(held.items()))


def rebind_functions(model: nn.Module, copied: nn.Module, made: Mapping[int, Any]) -> None:
    """Let the functions in a copy of a network refer to the copy, where they refer to the network.

    ``copy.deepcopy`` shares functions. A hook that stores what it sees in the network would store it in the original,
    and ``net.forward = lambda x: old(x)["out"]`` would run the original's layers.

    Args:
        model: the network.
        copied: its copy.
        made: ``id`` of an object of the network -> its copy, as ``copy.deepcopy`` fills its ``memo``.
    """
    twins = dict(copied.named_modules())
    for name, module in model.named_modules():
        twin = twins.get(name)
        if twin is None or hasattr(module, "_orig_mod"):  # torch.compile makes its functions anew
            continue
        for held, key, hook in hooks_of(twin):
            held[key] = _rebound(hook, made, set())
        for key, value in list(vars(twin).items()):
            if isinstance(value, types.FunctionType):
                twin.__dict__[key] = _rebound(value, made, set())


def _rebound(value: Any, made: Mapping[int, Any], seen: set[int]) -> Any:
    """Return the copy of what a function refers to; a function that refers to copied objects becomes a new one."""
    if id(value) in made:
        return made[id(value)]
    if id(value) in seen:
        return value
    seen = seen | {id(value)}
    if isinstance(value, types.MethodType) and id(value.__self__) in made:
        return types.MethodType(value.__func__, made[id(value.__self__)])
    if not isinstance(value, types.FunctionType):
        return value
    cells = tuple(_rebound_cell(cell, made, seen) for cell in value.__closure__ or ())
    defaults = tuple(_rebound(default, made, seen) for default in value.__defaults__ or ())
    named = {key: _rebound(default, made, seen) for key, default in (value.__kwdefaults__ or {}).items()}
    used = {key: value.__globals__[key] for key in value.__code__.co_names if key in value.__globals__}
    skipped = (type, types.FunctionType)  # following global functions would lead through whole libraries
    variables = {key: _rebound(held, made, seen) for key, held in used.items() if not isinstance(held, skipped)}
    changed = {key: held for key, held in variables.items() if held is not used[key]}
    before = [*(value.__closure__ or ()), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if not changed and all(new is old for new, old in zip([*cells, *defaults, *named.values()], before, strict=True)):
        return value
    scope = value.__globals__ | changed if changed else value.__globals__
    found = types.FunctionType(value.__code__, scope, value.__name__, defaults or None, cells or None)
    found.__kwdefaults__ = named or None
    found.__dict__.update(vars(value))
    return found


def _rebound_cell(cell: types.CellType, made: Mapping[int, Any], seen: set[int]) -> types.CellType:
    """See :func:`_rebound`; the cell itself if its content stays."""
    try:
        content = cell.cell_contents
    except ValueError:  # the variable has no value yet
        return cell
    found = _rebound(content, made, seen)
    return cell if found is content else types.CellType(found)

"""Copies of networks that hold what ``copy.deepcopy`` alone refuses or forgets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)
Copied = TypeVar("Copied")


def independent_copy(model: Module) -> Module:
    """A deep copy that shares no tensor with ``model``; every module keeps its training mode.

    Tensors with a history (outputs kept on a module, weights that a hook computes) come without it: in the copy they
    are constants, as they are for an evaluation. A ``torch.fx.GraphModule`` keeps its modes, hooks and attributes too.
    A configuration that refuses to be written to, and so to be copied, is the same object in both.

    Args:
        model: left as it was.

    Raises:
        ValueError: a module holds something that cannot be copied, such as an open file or a lock.
    """
    shared: dict[int, Any] = {}
    while True:
        try:
            made = _copied(model, dict(shared))
            break
        except Exception as error:  # whatever a value of any class raises when it is copied
            culprit = _culprit(model, shared)
            if culprit is None:
                raise
            where, value = culprit
            if id(value) in shared or not _is_configuration(value):
                raise ValueError(
                    f"the network cannot be copied because of {where}: {error}. Set it to None first, or give its "
                    "class a __deepcopy__"
                ) from error
            shared[id(value)] = value
    originals = dict(model.named_modules())
    for name, module in made.named_modules():
        if name in originals and module.training != originals[name].training:  # a __deepcopy__ that makes it anew
            module.training = originals[name].training
    return made


class _WithoutHistory(TorchFunctionMode):
    """Inside, ``copy.deepcopy`` copies tensors that have a history, without it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _copied(value: Copied, memo: dict[int, Any]) -> Copied:
    graphs = {id(found): found for found in _graph_modules(value, set()) if id(found) not in memo}
    if not graphs:
        with suppress(RuntimeError):  # of a tensor with a history; the faster way where there is none
            return copy.deepcopy(value, dict(memo))
    with _WithoutHistory():
        for key, graph in graphs.items():
            memo[key] = type(graph).__new__(type(graph))
        for key, graph in graphs.items():
            _fill(memo[key], graph, memo)
        return copy.deepcopy(value, memo)


def _graph_modules(value: object, seen: set[int]) -> Iterator[fx.GraphModule]:
    """The ``GraphModule``s in ``value``, also those that a module holds in plain lists, tuples and dicts."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, fx.GraphModule):
        yield value
    if isinstance(value, nn.Module):
        value = vars(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        for each in value:
            yield from _graph_modules(each, seen)


def _fill(made: fx.GraphModule, original: fx.GraphModule, memo: dict[int, Any]) -> None:
    """Copy all that ``original`` holds. Its own ``__deepcopy__`` keeps only what its graph calls, in training mode."""
    type(made).__name__ = type(original).__name__
    vars(made).update(copy.deepcopy(vars(original), memo))
    made.graph = vars(made)["_graph"]  # which also compiles the forward of the new class
    for hook in vars(original).get("_deepcopy_hooks", ()):
        hook(made)


def _is_configuration(value: object) -> bool:
    """Whether it is a mapping or a sequence of plain values, which two networks may share."""
    plain = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)
    if isinstance(value, Mapping):
        return all(isinstance(key, plain) and _is_configuration(held) for key, held in value.items())
    return isinstance(value, plain) or (isinstance(value, (list, tuple)) and all(map(_is_configuration, value)))


def _culprit(model: nn.Module, shared: Mapping[int, Any]) -> tuple[str, object] | None:
    """What cannot be copied, in words and itself; None where each module can by itself."""
    modules = dict(model.named_modules())
    for name, module in reversed(modules.items()):  # the inner ones first
        which = f"the network ({type(module).__name__})" if module is model else f"module {name!r}"
        if _can_be_copied(module, [*shared.values(), *(other for other in modules.values() if other is not module)]):
            continue
        for attribute, value in _attributes(module):
            if not _can_be_copied(value, [*shared.values(), *modules.values()]):
                return f"attribute {attribute!r} of {which}, a {type(value).__name__}", value
        return which if module is model else f"{which}, a {type(module).__name__}", module
    return None


def _attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            yield from value.items()
        else:
            yield name, value


def _can_be_copied(value: Any, kept: Iterable[object]) -> bool:
    """Whether ``value`` can be copied while the objects ``kept`` stay the ones that they are."""
    try:
        _copied(value, {id(each): each for each in kept})
    except Exception:  # as above
        return False
    return True

"""Copy networks that ``copy.deepcopy`` refuses to copy or copies only in part."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from common.network.closures import rebind_functions
from common.network.lowrank import LowRank
from common.network.modes import hooked
from common.network.passes import run

Module = TypeVar("Module", bound=nn.Module)
Copied = TypeVar("Copied")


def independent_copy(model: Module) -> Module:
    """Return a deep copy that shares no tensor with ``model``; every module keeps its training mode.

    A tensor with a gradient history (an output stored on a module, a weight that a hook computes) becomes a constant
    in the copy, as in an evaluation. Hooks that refer to the network refer to the copy in the copy. A
    ``torch.fx.GraphModule`` keeps its modes, hooks and attributes. Both networks share a read-only configuration that
    cannot be copied.

    Args:
        model: the network to copy. It stays unchanged.

    Raises:
        ValueError: a module holds something that cannot be copied, such as an open file or a lock.
    """
    shared: dict[int, Any] = {}
    while True:
        try:
            memo = dict(shared)
            with torch.no_grad():  # else the copied parameters of scripted modules get a gradient history
                copied = _deep_copy(model, memo)
            break
        except Exception as error:  # copying an object of an unknown class can raise anything
            uncopyable = _uncopyable_value(model, shared)
            if uncopyable is None:
                raise
            where, value = uncopyable
            if id(value) in shared or not _is_plain_data(value):
                raise ValueError(
                    f"the network cannot be copied because of {where}: {error}. Set it to None first, or give its "
                    "class a __deepcopy__"
                ) from error
            shared[id(value)] = value
    rebind_functions(model, copied, memo)
    originals = dict(model.named_modules())
    for name, module in copied.named_modules():
        if name in originals and module.training != originals[name].training:  # its __deepcopy__ builds a new module
            module.training = originals[name].training
    for (_, parameter), (_, original) in zip(_scripted_parameters(copied), _scripted_parameters(model), strict=True):
        parameter.requires_grad_(original.requires_grad)
    return copied


def _scripted_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and parameters of the scripted modules of a network."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            yield from module.named_parameters(name)


def check_copy(model: nn.Module, x: Tensor) -> None:
    """Raise unless a copy of the network runs on its own.

    Args:
        model: the network. It stays unchanged.
        x: example input ``(N, C, ...)``.

    Raises:
        ValueError: the network cannot be copied, or its copy runs modules of the network itself.
    """
    copied = independent_copy(model)
    own, ran = set(copied.modules()), list[str]()
    others = [
        (name, module)
        for name, module in model.named_modules()
        if module not in own and not isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
    ]
    with hooked([m.register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name, m in others]):
        run(copied, x)
    if ran:
        which = f"module {ran[0]!r}" if ran[0] else "the module"
        raise ValueError(
            f"a copy of the network runs {which} of the network itself, because an object that the copy shares refers "
            "to it; give the network as an argument to what uses it"
        )


def shared_by_copies(model: nn.Module) -> set[nn.Module]:
    """The modules of a network that its copies share, because a ``__deepcopy__`` returns the module itself."""
    found: set[nn.Module] = set()
    for module in model.modules():
        if hasattr(type(module), "__deepcopy__") and not isinstance(module, fx.GraphModule | torch.jit.ScriptModule):
            with suppress(Exception):  # copying an object of an unknown class can raise anything
                if copy.deepcopy(module) is module:
                    found.update(module.modules())
    return found


class _WithoutHistory(TorchFunctionMode):
    """Let ``copy.deepcopy`` copy tensors that have a gradient history; the copies have none."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _deep_copy(value: Copied, memo: dict[int, Any]) -> Copied:
    """Copy ``value``; ``memo`` gives the copies of known objects by ``id``, and gets those of the others."""
    badly_copied = {id(found): found for found in _badly_copied(value, set()) if id(found) not in memo}
    if not badly_copied:
        with suppress(RuntimeError):  # fails if a tensor has a gradient history; otherwise it is the faster way
            tried = dict(memo)  # of its own, because a copy that fails leaves halves behind
            copied = copy.deepcopy(value, tried)
            memo.update({key: made for key, made in tried.items() if key != id(tried)})
            return copied
    with _WithoutHistory():
        for key, module in badly_copied.items():
            is_graph = isinstance(module, fx.GraphModule)
            memo[key] = type(module).__new__(type(module)) if is_graph else object.__new__(type(module))
        for key, module in badly_copied.items():
            _fill(memo[key], module, memo)
        copied = copy.deepcopy(value, memo)
    memo.pop(id(memo), None)  # deepcopy's list of originals
    return copied


def _badly_copied(value: object, seen: set[int]) -> Iterator[nn.Module]:
    """Yield modules in ``value`` whose ``__deepcopy__`` loses something: ``GraphModule``s, and makers of dense ones.

    A ``__deepcopy__`` that builds a new instance gives it no factored layers. Plain lists, tuples, sets and mappings
    are searched too.
    """
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, fx.GraphModule) or _has_factored_layers(value):
        yield value
    if isinstance(value, nn.Module):
        value = vars(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        for each in value:
            yield from _badly_copied(each, seen)


def _has_factored_layers(value: object) -> TypeGuard[nn.Module]:
    """Whether a value is a module with factored layers, of a class with a ``__deepcopy__`` of its own."""
    if not isinstance(value, nn.Module) or getattr(type(value), "__deepcopy__", None) is None:
        return False
    return any(isinstance(module, LowRank) for module in value.modules())


def _fill(copied: nn.Module, original: nn.Module, memo: dict[int, Any]) -> None:
    """Copy every attribute of ``original`` into ``copied``.

    ``GraphModule.__deepcopy__`` keeps only what its graph calls, and puts it in training mode.
    """
    vars(copied).update(copy.deepcopy(vars(original), memo))
    if not isinstance(copied, fx.GraphModule):
        return
    type(copied).__name__ = type(original).__name__
    copied.graph = vars(copied)["_graph"]  # this also compiles the forward of the new class
    for hook in vars(original).get("_deepcopy_hooks", ()):
        hook(copied)


def _is_plain_data(value: object) -> bool:
    """Whether ``value`` holds only plain values, in mappings and sequences, so that two networks may share it."""
    plain = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)
    if isinstance(value, Mapping):
        return all(isinstance(key, plain) and _is_plain_data(held) for key, held in value.items())
    return isinstance(value, plain) or (isinstance(value, (list, tuple)) and all(map(_is_plain_data, value)))


def _uncopyable_value(model: nn.Module, shared: Mapping[int, Any]) -> tuple[str, object] | None:
    """Describe and return the value that cannot be copied; None if each module can be copied on its own."""
    modules = dict(model.named_modules())
    for name, module in reversed(modules.items()):  # inner modules first
        which = f"the network ({type(module).__name__})" if module is model else f"module {name!r}"
        if _can_be_copied(module, [*shared.values(), *(other for other in modules.values() if other is not module)]):
            continue
        for attribute, value in _attributes(module):
            if not _can_be_copied(value, [*shared.values(), *modules.values()]):
                return f"attribute {attribute!r} of {which}, a {type(value).__name__}", value
        return which if module is model else f"{which}, a {type(module).__name__}", module
    return None


def _attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield name and value of every attribute, parameter, buffer and child of ``module``."""
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            yield from value.items()
        else:
            yield name, value


def _can_be_copied(value: Any, shared: Iterable[object]) -> bool:
    """Whether ``value`` can be copied when the copy shares the objects in ``shared``."""
    try:
        _deep_copy(value, {id(each): each for each in shared})
    except Exception:  # copying an object of an unknown class can raise anything
        return False
    return True

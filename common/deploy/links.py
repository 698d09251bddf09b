"""Find which layer feeds which. Two layers can be merged only if the first feeds nothing but the second."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from common.deploy.observing import Link, confirmed, is_altered, is_passive
from common.network.copies import independent_copy
from common.network.kinds import LAYER_TYPES, FactorableLayer


def links(
    model: nn.Module, x: Tensor, wanted: Callable[[nn.Module, nn.Module], bool] = lambda first, second: True
) -> list[tuple[str, str]]:
    """Return the names of pairs of modules. Only the second takes the output of the first, and it takes nothing else.

    Two observations must agree. One is a symbolic trace (``torch.fx``) of the network in evaluation mode. Dropout
    between the two modules is ignored. If a ``forward`` cannot be traced because it branches on sizes or values, its
    children are traced one by one, and pairs that this ``forward`` itself connects are not found. The other
    observation is a pass of ``x``, with gradients and without, since a ``forward`` may take another branch while it is
    traced. In this pass, the second module must get the very tensor that the first returned, and nothing else may use
    that tensor.

    Args:
        model: in evaluation mode, with parameters that need no gradients. A pass may change its state.
        x: example input.
        wanted: function that decides whether a pair is of interest.
    """
    traced = independent_copy(model)  # during tracing, a forward that stores what it computes stores symbols
    modules, names = dict(model.named_modules()), {module: name for name, module in traced.named_modules()}
    parts = [[modules[names[part]] for part in (link.first, link.second, link.part)] for link in _traced_links(traced)]
    found = [Link(*each) for each in parts if wanted(each[0], each[1])]
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            found = confirmed(model, found, x) if found else []
    own = {module: name for name, module in modules.items()}
    return [(own[link.first], own[link.second]) for link in found]


def chains(model: nn.Module, x: Tensor, wanted: Callable[[nn.Module, nn.Module], bool]) -> list[list[str]]:
    """Return the names of every two or more modules that follow each other directly, see :func:`links`."""
    after = dict(links(model, x, wanted))
    found: list[list[str]] = []
    followers = set(after.values())
    for start in [name for name in after if name not in followers]:
        names = [start]
        while (following := after.get(names[-1])) is not None:
            names.append(following)
        found.append(names)
    return found


def is_plain(module: nn.Module) -> TypeGuard[FactorableLayer]:
    """Whether ``module`` is PyTorch's own convolution or Linear without a parametrization or hook."""
    return type(module) in LAYER_TYPES and "weight" in module._parameters and not is_altered(module)


def _traced_links(model: nn.Module) -> list[Link]:
    """Return the links in the graphs of the network's parts."""
    parts: dict[nn.Module, nn.Module] = {}
    before: dict[nn.Module, set[nn.Module | None]] = {}
    after: dict[nn.Module, set[nn.Module | None]] = {}
    for root, graph in _traced(model):
        for node in graph.nodes:
            if node.op == "get_attr":  # a weight that is also used directly must not change
                after.setdefault(root.get_submodule(node.target.rpartition(".")[0]), set()).add(None)
            elif (module := _called(root, node)) is not None and not is_passive(module):
                parts[module] = root
                after.setdefault(module, set()).add(_next(root, node))
                plain_call = len(node.args) == 1 and not node.kwargs
                before.setdefault(module, set()).add(_previous(root, node) if plain_call else None)
    return [
        Link(first, second, parts[first])
        for first, seconds in after.items()
        if len(seconds) == 1 and (second := next(iter(seconds))) is not None and before[second] == {first}
    ]


class _Tracer(fx.Tracer):
    """A tracer that gives all arguments but the first their defaults. Modules without children are its leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or super().is_leaf_module(m, module_qualified_name)

    def create_arg(self, a: Any) -> Any:
        return None if inspect.isroutine(a) else super().create_arg(a)  # no graph can hold a function as a default

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        traced, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        named = list(inspect.signature(inspect.unwrap(root_fn)).parameters.values())[2:]  # all but self and the input
        defaults: dict[str, Any] = {each.name: each.default for each in named if each.default is not each.empty}
        defaults |= {f"*{each.name}": () for each in named if each.kind is each.VAR_POSITIONAL}
        defaults |= {f"**{each.name}": {} for each in named if each.kind is each.VAR_KEYWORD}
        targets = [arg.node.target if isinstance(arg, fx.Proxy) else None for arg in args]
        return traced, [defaults.get(str(target), arg) for target, arg in zip(targets, args, strict=True)]


def _traced(module: nn.Module) -> Iterator[tuple[nn.Module, fx.Graph]]:
    """Yield the largest parts of ``module`` that can be traced, each with its graph."""
    if not list(module.children()):
        return
    try:
        graph = _Tracer().trace(module)
    except Exception:  # a forward that gets a symbol in place of a tensor may raise anything
        for child in module.children():
            yield from _traced(child)
    else:
        yield module, graph


def _called(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the module that ``node`` calls; None if it does something else."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _next(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the only module that takes the output of ``node``; None if there is none."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        module = _called(root, node)
        if module is None or not is_passive(module):
            return module
    return None


def _previous(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the module whose output ``node`` takes; None if there is none."""
    while node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        module = _called(root, node)
        if module is None or not is_passive(module):
            return module
    return None

"""Which layer feeds which: what has to be known before two of them may become one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from common.models.provenance import Provenance, set_provenance
from common.modes import evaluating, hooked
from common.network.copies import independent_copy
from common.network.layers import FactorableLayer

_PASSIVE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
"""Modules that do nothing in evaluation mode."""


def links(model: nn.Module, x: Tensor | None = None) -> dict[nn.Module, nn.Module]:
    """Pairs of modules: all that the first puts out goes into the second, which takes nothing else.

    Read off a symbolic trace (``torch.fx``) of the network in evaluation mode, where dropout between the two does not
    count. Where a ``forward`` cannot be traced, because it branches on sizes or values, its children are traced one by
    one. Pairs that such a ``forward`` itself joins are not found. Where it calls modules inside a child by itself,
    past the child's own ``forward``, a pass of ``x`` shows it, and nothing of that child is paired; without ``x``
    each child is taken to be used as a whole.

    Args:
        model: any network; a module that is used several times forms a pair when it does so every time.
        x: example input.
    """
    parts = list(_traced(model))
    if x is not None and any(root is not model for root, _ in parts):
        opened = _opened(model, [root for root, _ in parts], x)
        parts = [(root, graph) for root, graph in parts if root not in opened]
    before: dict[nn.Module, set[nn.Module | None]] = {}
    after: dict[nn.Module, set[nn.Module | None]] = {}
    for root, graph in parts:
        for node in graph.nodes:
            if node.op == "get_attr":  # a tensor that is also used by itself must stay what it is
                after.setdefault(root.get_submodule(node.target.rpartition(".")[0]), set()).add(None)
            elif (module := _called(root, node)) is not None and not isinstance(module, _PASSIVE):
                after.setdefault(module, set()).add(_next(root, node))
                plain_call = len(node.args) == 1 and not node.kwargs
                before.setdefault(module, set()).add(_previous(root, node) if plain_call else None)
    return {
        first: second
        for first, seconds in after.items()
        if len(seconds) == 1 and (second := next(iter(seconds))) is not None and before[second] == {first}
    }


def is_plain(module: nn.Module) -> TypeGuard[FactorableLayer]:
    """Whether it is a Conv2d, ConvTranspose2d or Linear as PyTorch makes it: no subclass, parametrization or hook."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module) in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear) and not hooked


def deployed_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, to be changed; how it came to be is forgotten, since no plan rebuilds it."""
    changed = independent_copy(model).eval()
    set_provenance(changed, Provenance())
    return changed


def _traced(module: nn.Module) -> Iterator[tuple[nn.Module, fx.Graph]]:
    """The largest parts of ``module`` that can be traced, with their graphs."""
    if not list(module.children()):
        return
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # a forward may fail in any way when it is handed a symbol in place of a tensor
        for child in module.children():
            yield from _traced(child)
    else:
        yield module, graph


def _opened(model: nn.Module, parts: Sequence[nn.Module], x: Tensor) -> set[nn.Module]:
    """The parts of which a pass of ``x`` calls a module inside while it does not call the part as a whole."""
    running: list[nn.Module] = []
    opened: set[nn.Module] = set()

    def enter(part: nn.Module, *_: object) -> None:
        running.append(part)

    def leave(*_: object) -> None:
        running.pop()

    def meet(part: nn.Module) -> None:
        if part not in running:
            opened.add(part)

    handles = []
    for part in parts:
        handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
        for module in part.modules():
            if module is not part:
                handles.append(module.register_forward_pre_hook(lambda *_, part=part: meet(part)))
    with hooked(handles), evaluating(model), torch.no_grad():
        model(x)
    return opened


def _called(root: nn.Module, node: fx.Node) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _next(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that alone takes what ``node`` puts out; None where there is none."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        module = _called(root, node)
        if not isinstance(module, _PASSIVE):
            return module
    return None


def _previous(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module whose output ``node`` takes; None where there is none."""
    while node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        module = _called(root, node)
        if not isinstance(module, _PASSIVE):
            return module
    return None

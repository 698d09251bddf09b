"""A network in evaluation mode, or with hooks, for a while; afterwards nothing is left of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the ``with`` block; afterwards every module has the mode it had, frozen ones included.

    A module with a ``train`` method of its own (which merges an update into its weight, say) is put back by it. Where
    such a method leaves modules in training mode, they are in evaluation mode inside all the same. A network that is
    in evaluation mode is not touched.
    """
    modes = {module: module.training for module in _outer_first(networks)}
    switched = any(modes.values())
    try:
        if switched:
            for network in networks:
                network.eval()
            _write(dict.fromkeys(modes, False))
        yield
    finally:
        try:
            for module, mode in modes.items():
                if switched or module.training != mode:
                    _call_own(module, mode)
        finally:
            _write(modes)


def _outer_first(networks: Iterable[nn.Module]) -> list[nn.Module]:
    """All modules, each behind every module that holds it: whose ``train`` calls its own."""
    found: dict[nn.Module, None] = {}
    entered: set[nn.Module] = set()

    def enter(module: nn.Module) -> None:
        if module not in entered:
            entered.add(module)
            for child in module.children():
                enter(child)
            found[module] = None

    for network in networks:
        enter(network)
    return list(reversed(found))


def _call_own(module: nn.Module, mode: bool) -> None:
    """Put a module whose class has a ``train`` of its own into a mode by it."""
    if _has_own(module, "train"):
        if not mode and _has_own(module, "eval"):
            module.eval()
        else:
            module.train(mode)


def _has_own(module: nn.Module, method: str) -> bool:
    return method in vars(module) or getattr(type(module), method) is not getattr(nn.Module, method)


def _write(modes: Mapping[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        if module.training != mode:
            module.training = mode


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are there inside the ``with`` block and removed at its end, whatever ends it."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

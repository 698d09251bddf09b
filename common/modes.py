"""A network in evaluation mode, or with hooks, for a while; afterwards nothing is left of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the ``with`` block; afterwards every module has the mode it had, frozen ones included."""
    modes = {module: module.training for network in networks for module in network.modules()}
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, mode in modes.items():
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

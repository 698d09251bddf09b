"""Unfoldings of a layer's weight, by TensorLy."""

from __future__ import annotations

from tensorly.backend import backend_context
from tensorly.base import partial_unfold
from torch import Tensor


def by_output(tensor: Tensor) -> Tensor:
    """The unfolding ``(G, O, I*kh*kw)`` of ``(G, O, I, kh, kw)``."""
    return _unfolded(tensor, 0)


def by_input(tensor: Tensor) -> Tensor:
    """The unfolding ``(G, I, O*kh*kw)`` of ``(G, O, I, kh, kw)``."""
    return _unfolded(tensor, 1)


def _unfolded(tensor: Tensor, mode: int) -> Tensor:
    """Each group's unfolding along one mode; TensorLy's own choice of a backend is left as it is."""
    with backend_context("pytorch", local_threadsafe=True):
        unfolded: Tensor = partial_unfold(tensor, mode, skip_begin=1)
    return unfolded

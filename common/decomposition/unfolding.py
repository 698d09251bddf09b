"""Unfold a layer's weight with TensorLy."""

from __future__ import annotations

from tensorly.backend import backend_context
from tensorly.base import partial_unfold
from torch import Tensor


def by_output(tensor: Tensor) -> Tensor:
    """Unfold ``(G, O, I, kh, kw)`` along the output channels, to ``(G, O, I*kh*kw)``."""
    return _unfold(tensor, 0)


def by_input(tensor: Tensor) -> Tensor:
    """Unfold ``(G, O, I, kh, kw)`` along the input channels, to ``(G, I, O*kh*kw)``."""
    return _unfold(tensor, 1)


def _unfold(tensor: Tensor, mode: int) -> Tensor:
    """Unfold each group along one mode, without changing TensorLy's global backend."""
    with backend_context("pytorch", local_threadsafe=True):
        unfolded: Tensor = partial_unfold(tensor, mode, skip_begin=1)
    return unfolded

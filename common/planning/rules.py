"""Rank rules: from a layer's singular values to the rank that is kept."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-12
"""Relative slack of the thresholds, so that a sum that reaches one on paper also reaches it in floating point."""


def entropy_rank(spectrum: Tensor, tau: float, exponent: int = 1) -> int:
    """ARSVD's adaptive rank: the least k whose partial entropy reaches ``tau`` of the whole.

    With ``p_i = s_i^exponent / sum_j s_j^exponent`` and ``H = -sum_i p_i log p_i``, the least k with
    ``-sum_{i<=k} p_i log p_i >= tau * H`` (Cherukuri and Lala 2025).

    Args:
        spectrum: singular values, ``(n,)``, descending and not negative.
        tau: in [0, 1]. At 0 the rank is 1, at 1 every value that is not zero is kept.
        exponent: 1 as in the paper, or 2, the distribution of the energy.

    Returns:
        A rank in 1..n; 1 for a spectrum that is zero or has one value that is not.

    Raises:
        ValueError: ``tau`` or ``exponent`` is not allowed, or the spectrum is empty.
    """
    if exponent not in (1, 2):
        raise ValueError(f"exponent={exponent!r}: it must be 1 or 2")
    weights = _checked(spectrum, "tau", tau) ** exponent
    if not weights.sum():
        return 1
    shares = weights / weights.sum()
    partial = torch.special.entr(shares).cumsum(0)
    return _first_reaching(partial, tau * partial[-1])


def energy_rank(spectrum: Tensor, threshold: float) -> int:
    """The least k with ``sum_{i<=k} s_i^2 >= threshold * sum_i s_i^2``.

    Args:
        spectrum: singular values, ``(n,)``, descending and not negative.
        threshold: in [0, 1]; the share of the energy to keep.

    Returns:
        A rank in 1..n.

    Raises:
        ValueError: ``threshold`` is outside [0, 1], or the spectrum is empty.
    """
    energy = _checked(spectrum, "threshold", threshold).square().cumsum(0)
    return _first_reaching(energy, threshold * energy[-1])


def _checked(spectrum: Tensor, name: str, share: float) -> Tensor:
    if not 0 <= share <= 1:
        raise ValueError(f"{name}={share!r}: it must be in [0, 1]")
    if spectrum.dim() != 1 or not len(spectrum):
        raise ValueError(f"the spectrum has shape {tuple(spectrum.shape)}; it must be (n,) with n >= 1")
    values = spectrum.double()
    return torch.where(values > values.max() * torch.finfo(values.dtype).eps, values, 0.0)


def _first_reaching(partial_sums: Tensor, goal: Tensor) -> int:
    """1-based index of the first partial sum that is at least ``goal``, up to rounding."""
    return int((partial_sums < goal * (1 - ROUNDING)).sum()) + 1

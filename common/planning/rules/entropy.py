"""Rank rule ``entropy``: keep a fraction of the spectral entropy (ARSVD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.planning.rules.base import RULES
from common.planning.rules.spectrum import SpectrumRule, check_share, cleaned, first_reaching


@RULES.add
@dataclass(frozen=True)
class Entropy(SpectrumRule):
    """The adaptive ranks of ARSVD (Cherukuri and Lala 2025), with the same tau in every layer.

    Args:
        tau: the fraction of the spectral entropy to keep, in [0, 1].
        exponent: 1, as in the paper, or 2, for the distribution of the energy.

    Raises:
        ValueError: ``tau`` is outside [0, 1], or ``exponent`` is neither 1 nor 2.
    """

    name = "entropy"
    tau: float = 0.9
    exponent: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("tau", self.tau)
        if self.exponent not in (1, 2):
            raise ValueError(f"exponent={self.exponent!r}: it must be 1 or 2")

    @property
    def settings(self) -> dict[str, Any]:
        """Tau and the exponent, as plain values."""
        return {"tau": self.tau, "exponent": self.exponent}

    def rank(self, spectrum: Tensor, columns: int) -> int:
        """See :func:`entropy_rank`."""
        return entropy_rank(spectrum, self.tau, self.exponent)


def entropy_rank(spectrum: Tensor, tau: float, exponent: int = 1) -> int:
    """The least k whose partial entropy reaches the fraction ``tau`` of the whole (ARSVD).

    With ``p_i = s_i^exponent / sum_j s_j^exponent`` and ``H = -sum_i p_i log p_i``, it is the least k with
    ``-sum_{i<=k} p_i log p_i >= tau * H`` (Cherukuri and Lala 2025).

    Args:
        spectrum: singular values, ``(n,)``, descending and not negative.
        tau: in [0, 1]. At 0 the rank is 1; at 1 all nonzero values are kept.
        exponent: 1, as in the paper, or 2, for the distribution of the energy.

    Returns:
        A rank in 1..n; 1 for a spectrum with at most one nonzero value.

    Raises:
        ValueError: ``tau`` or ``exponent`` is not allowed, or the spectrum is empty.
    """
    if exponent not in (1, 2):
        raise ValueError(f"exponent={exponent!r}: it must be 1 or 2")
    check_share("tau", tau)
    weights = cleaned(spectrum) ** exponent
    if not weights.sum():
        return 1
    shares = weights / weights.sum()
    partial = torch.special.entr(shares).cumsum(0)
    return first_reaching(partial, tau * partial[-1])

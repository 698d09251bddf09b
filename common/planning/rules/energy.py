"""Rank rule ``energy``: keep a fraction of the sum of the squared singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from common.planning.rules.base import RULES
from common.planning.rules.spectrum import SpectrumRule, check_share, cleaned, first_reaching


@RULES.add
@dataclass(frozen=True)
class Energy(SpectrumRule):
    """The least ranks that keep a given fraction of the energy, the same in every layer.

    Args:
        threshold: the fraction of the sum of the squared singular values to keep, in [0, 1].

    Raises:
        ValueError: ``threshold`` is outside [0, 1].
    """

    name = "energy"
    threshold: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("threshold", self.threshold)

    @property
    def settings(self) -> dict[str, Any]:
        """The threshold, as a plain value."""
        return {"threshold": self.threshold}

    def rank(self, spectrum: Tensor, columns: int) -> int:
        """See :func:`energy_rank`."""
        return energy_rank(spectrum, self.threshold)


def energy_rank(spectrum: Tensor, threshold: float) -> int:
    """The least k with ``sum_{i<=k} s_i^2 >= threshold * sum_i s_i^2``.

    Args:
        spectrum: singular values, ``(n,)``, descending and not negative.
        threshold: the fraction of the energy to keep, in [0, 1].

    Returns:
        A rank in 1..n.

    Raises:
        ValueError: ``threshold`` is outside [0, 1], or the spectrum is empty.
    """
    check_share("threshold", threshold)
    energy = cleaned(spectrum).square().cumsum(0)
    return first_reaching(energy, threshold * energy[-1])

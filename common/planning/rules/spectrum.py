"""The base class of rules that read spectra, and thresholds on partial sums."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from common.network.shapes import dense_reason
from common.planning.costs import kept_shares
from common.planning.decompositions import Decompositions, layer_methods
from common.planning.plan import LayerPlan
from common.planning.rules.base import Network, PerLayerRule
from common.validation import is_number

THRESHOLD_TOLERANCE = 1e-12
"""Relative slack of a threshold; a sum that reaches it exactly on paper also reaches it in floating point."""


@dataclass(frozen=True)
class SpectrumRule(PerLayerRule):
    """A rule that chooses each rank from the singular values of one unfolding of a layer's weight or outputs."""

    @abstractmethod
    def rank(self, spectrum: Tensor, columns: int) -> int:
        """Choose the rank of one matrix.

        Args:
            spectrum: the matrix's singular values, ``(n,)``, descending.
            columns: the matrix's longer side.
        """

    def choose(self, network: Network) -> dict[str, LayerPlan]:
        """Choose the ranks by :meth:`rank`; of several methods, each layer takes the one that keeps least of it."""
        return self.select(network, network.decompositions)

    def select(self, network: Network, decompositions: Decompositions) -> dict[str, LayerPlan]:
        """Do the work of :meth:`choose` on the spectra of the given decompositions."""
        layers: dict[str, LayerPlan] = {}
        for name, shape in network.shapes.items():
            if reason := dense_reason(shape):
                layers[name] = LayerPlan(reason=reason)
                continue
            methods = layer_methods(network.methods, shape)
            plans = [
                decompositions.plan(name, method, decompositions.get(name, method).select_ranks(self.rank))
                for method in methods
            ]
            layers[name] = min(plans, key=lambda plan: sum(kept_shares(shape, plan)))
        return layers


def check_share(name: str, share: float) -> None:
    """Raise a ValueError unless ``share`` is a number in [0, 1]."""
    if not (is_number(share) and 0 <= share <= 1):
        raise ValueError(f"{name}={share!r}: it must be in [0, 1]")


def cleaned(spectrum: Tensor) -> Tensor:
    """Convert ``spectrum`` to float64 and set the values that are only rounding to 0.

    Raises:
        ValueError: the spectrum is empty, or its shape is not ``(n,)``.
    """
    if spectrum.dim() != 1 or not len(spectrum):
        raise ValueError(f"the spectrum has shape {tuple(spectrum.shape)}; it must be (n,) with n >= 1")
    values = spectrum.double()
    return torch.where(values > values.max() * torch.finfo(values.dtype).eps, values, 0.0)


def first_reaching(partial_sums: Tensor, goal: Tensor) -> int:
    """1-based index of the first partial sum that reaches ``goal``, up to rounding."""
    return int((partial_sums < goal * (1 - THRESHOLD_TOLERANCE)).sum()) + 1

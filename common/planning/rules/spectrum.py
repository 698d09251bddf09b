"""What the rules that read spectra share: thresholds on partial sums, and a plan from a rank for each spectrum."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from common.network.shapes import dense_reason
from common.planning.costs import kept_shares
from common.planning.decompositions import Decompositions, layer_method
from common.planning.plan import LayerPlan
from common.planning.rules.base import Network, PerLayerRule

ROUNDING = 1e-12
"""Relative slack of the thresholds, so that a sum that reaches one on paper also reaches it in floating point."""


@dataclass(frozen=True)
class SpectrumRule(PerLayerRule):
    """A rule that reads a rank off the singular values of each unfolding of a layer's weight, or of its outputs."""

    @abstractmethod
    def rank(self, spectrum: Tensor, columns: int) -> int:
        """The rank to keep.

        Args:
            spectrum: singular values of a matrix, ``(n,)``, descending.
            columns: the matrix's greater side.
        """

    def choose(self, network: Network) -> dict[str, LayerPlan]:
        """The ranks that :meth:`rank` finds; of several methods, the one that keeps least of the layer."""
        return self.select(network, network.decompositions)

    def select(self, network: Network, decompositions: Decompositions) -> dict[str, LayerPlan]:
        """As :meth:`choose`, on the spectra of these decompositions."""
        layers: dict[str, LayerPlan] = {}
        for name, shape in network.shapes.items():
            if reason := dense_reason(shape):
                layers[name] = LayerPlan(reason=reason)
                continue
            fitting = dict.fromkeys(layer_method(method, shape) for method in network.methods)
            plans = [
                decompositions.plan(name, method, decompositions.get(name, method).select_ranks(self.rank))
                for method in fitting
            ]
            layers[name] = min(plans, key=lambda plan: sum(kept_shares(shape, plan)))
        return layers


def check_share(name: str, share: float) -> None:
    """Raise a ValueError unless ``share`` is in [0, 1]."""
    if not 0 <= share <= 1:
        raise ValueError(f"{name}={share!r}: it must be in [0, 1]")


def cleaned(spectrum: Tensor) -> Tensor:
    """``spectrum`` in float64, with values that are no more than rounding set to 0.

    Raises:
        ValueError: it is empty or has another shape than ``(n,)``.
    """
    if spectrum.dim() != 1 or not len(spectrum):
        raise ValueError(f"the spectrum has shape {tuple(spectrum.shape)}; it must be (n,) with n >= 1")
    values = spectrum.double()
    return torch.where(values > values.max() * torch.finfo(values.dtype).eps, values, 0.0)


def first_reaching(partial_sums: Tensor, goal: Tensor) -> int:
    """1-based index of the first partial sum that is at least ``goal``, up to rounding."""
    return int((partial_sums < goal * (1 - ROUNDING)).sum()) + 1

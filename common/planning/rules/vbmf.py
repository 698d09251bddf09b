"""Rank rule ``vbmf``: the rank that variational Bayes finds.

The global analytic solution of empirical variational Bayes matrix factorization.

Source: Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed variational Bayesian
matrix factorization", JMLR 14 (2013). Written from the paper's equations; no code was taken over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from common.planning.decompositions import Decompositions
from common.planning.plan import LayerPlan
from common.planning.rules.base import RULES, Network
from common.planning.rules.spectrum import SpectrumRule


@RULES.add
@dataclass(frozen=True)
class VBMF(SpectrumRule):
    """The ranks of variational Bayes, which models a weight as signal and noise: it reads the weights' spectra."""

    name = "vbmf"

    def rank(self, spectrum: Tensor, columns: int) -> int:
        """See :func:`vbmf_rank`."""
        return vbmf_rank(spectrum, columns)

    def choose(self, network: Network) -> dict[str, LayerPlan]:
        """The ranks on the weights' spectra, whatever the network was calibrated on."""
        measured = network.decompositions.moments
        weights = Decompositions(network.model) if measured else network.decompositions
        return {
            name: replace(plan, shift=name in measured) if plan.method else plan
            for name, plan in self.select(network, weights).items()
        }


def vbmf_rank(spectrum: Tensor, columns: int) -> int:
    """How many singular values stand out of noise whose variance is estimated from the spectrum itself.

    Args:
        spectrum: singular values of an L x M matrix, ``(L,)`` with L the smaller side, descending.
        columns: M, the larger side.

    Returns:
        A rank in 1..L; 1 also where no value stands out, because a layer has to keep one.

    Raises:
        ValueError: the spectrum is empty, or ``columns`` is smaller than its length.
    """
    if spectrum.dim() != 1 or not len(spectrum) or columns < len(spectrum):
        shape = tuple(spectrum.shape)
        raise ValueError(f"a spectrum of shape {shape} with columns={columns}: it must be (L,) with 1 <= L <= columns")
    squares = spectrum.double().square() / columns
    if not squares.sum():
        return 1
    alpha = len(spectrum) / columns
    edge = least_outlier(alpha)
    variance = _noise_variance(squares, alpha, edge)
    return max(1, int((squares > edge * variance).sum()))


def least_outlier(alpha: float) -> float:
    """The least ``gamma^2 / (M sigma^2)`` of a singular value gamma that is signal, not noise of variance sigma^2.

    Args:
        alpha: L / M in (0, 1].

    Returns:
        ``(1 + t)(1 + alpha / t)`` with t the zero of ``log(t + 1) + alpha log(t / alpha + 1) - t``; t is 2.5129 for
        a square matrix. It lies above the edge of pure noise, ``(1 + sqrt(alpha))^2``.
    """

    def evidence(t: float) -> float:
        return math.log(t + 1) + alpha * math.log(t / alpha + 1) - t

    t = brentq(evidence, math.sqrt(alpha), 10.0)
    return float((1 + t) * (1 + alpha / t))


def _noise_variance(squares: Tensor, alpha: float, edge: float) -> float:
    """The variance that minimises the free energy, between the bounds that the paper gives for it."""
    length = len(squares)
    most = min(length - 1, math.ceil(length / (1 + alpha)) - 1)
    upper = float(squares.mean())
    lower = max(float(squares[most] / edge), float(squares[most:].mean()))
    floor = upper * 1e-12  # a spectrum with exact zeros has no noise at all
    lower, upper = max(lower, floor), max(upper, 2 * floor)
    if lower >= upper:
        return upper

    logarithms = squares.clamp(min=1e-300).log()

    def free_energy(log_variance: float) -> float:
        x = squares / math.exp(log_variance)
        energy = x - (logarithms - log_variance)
        signal = x[x > edge]
        spread = signal - (1 + alpha)
        t = (spread + (spread.square() - 4 * alpha).sqrt()) / 2
        return float(energy.sum() + ((t + 1).log() + alpha * (t / alpha + 1).log() - t).sum())

    bounds = (math.log(lower), math.log(upper))
    return math.exp(minimize_scalar(free_energy, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)

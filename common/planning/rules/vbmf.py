"""Rank rule ``vbmf``: the global analytic solution of empirical variational Bayes matrix factorization.

Source: Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed variational Bayesian
matrix factorization", JMLR 14 (2013). This code follows the paper's equations; it copies no other code.
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
    """The ranks of variational Bayes, which models a weight as signal plus noise and reads the weights' spectra."""

    name = "vbmf"

    def rank(self, spectrum: Tensor, columns: int) -> int:
        """See :func:`vbmf_rank`."""
        return vbmf_rank(spectrum, columns)

    def choose(self, network: Network) -> dict[str, LayerPlan]:
        """Choose the ranks on the weights' spectra, even if the network's decompositions have moments."""
        moments = network.decompositions.moments
        weight_only = network.decompositions
        if moments:
            weight_only = weight_only.cached("weights alone", lambda: Decompositions(network.model))
        return {
            name: replace(plan, shift=name in moments) if plan.method else plan
            for name, plan in self.select(network, weight_only).items()
        }


def vbmf_rank(spectrum: Tensor, columns: int) -> int:
    """Count the singular values above the noise, whose variance is estimated from the spectrum itself.

    Args:
        spectrum: singular values of an L x M matrix, ``(L,)`` with L the shorter side, descending.
        columns: M, the longer side.

    Returns:
        A rank in 1..L; 1 if no value is above the noise, because a layer must keep one.

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
    """The least ``gamma^2 / (M sigma^2)`` at which a singular value gamma is signal, given noise of variance sigma^2.

    Args:
        alpha: L / M in (0, 1].

    Returns:
        ``(1 + t)(1 + alpha / t)``, with t the zero of ``log(t + 1) + alpha log(t / alpha + 1) - t``. For a square
        matrix, t is 2.5129. The value lies above the edge of pure noise, ``(1 + sqrt(alpha))^2``.
    """

    def evidence(t: float) -> float:
        return math.log(t + 1) + alpha * math.log(t / alpha + 1) - t

    t = brentq(evidence, math.sqrt(alpha), 10.0)
    return float((1 + t) * (1 + alpha / t))


def _noise_variance(squares: Tensor, alpha: float, edge: float) -> float:
    """Find the noise variance that minimises the free energy, within the paper's bounds."""
    length = len(squares)
    max_rank = min(length - 1, math.ceil(length / (1 + alpha)) - 1)
    upper = float(squares.mean())
    lower = max(float(squares[max_rank] / edge), float(squares[max_rank:].mean()))
    floor = upper * 1e-12  # a spectrum with exact zeros has no noise
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

"""Hierarchical Tucker-2: a Tucker-2 whose core is split between the kernel's height and its width."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from torch import Tensor

from common.decomposition.base import (
    DECOMPOSITIONS,
    Decomposition,
    Floats,
    Ranks,
    RankSelector,
    RankSteps,
    rank_ladder,
)
from common.decomposition.metric import pooled_spectrum
from common.decomposition.tucker import Tucker2

OUTER_PAIRS = 24
"""Number of pairs of outer ranks in a table of errors."""
CACHED_ROOTS = 12
"""Number of split cores in the cache: a few more than a policy has candidates for a layer."""


@DECOMPOSITIONS.add
class HTD(Decomposition):
    """Tucker-2 over the tree ``{I, kh} | {O, kw}``, without spatial leaf matrices (Gabor and Zdunek 2023).

    The leaves are the channel bases of Tucker-2. The root splits the core, unfolded to ``(r_in*kh, kw*r_out)``, by a
    truncated SVD of rank ``r_mid`` (leaf-to-root truncation). Factors, with G groups: 1x1 ``(G*r_in, I/G, 1, 1)``,
    ``(G*r_mid, r_in, kh, 1)``, ``(G*r_out, r_mid, 1, kw)`` and 1x1 ``(O, r_out, 1, 1)``, which takes the bias. Each
    spatial factor takes the stride, padding and dilation of its own axis. Ranks: ``(r_in, r_mid, r_out)`` with
    ``r_mid <= min(r_in*kh, r_out*kw)``.
    """

    method = "htd"
    title = "HTD"
    otherwise = "tucker2"
    rank_names = ("r_in", "r_mid", "r_out")
    axes = ((False, False), (True, False), (False, True), (False, False))
    has_sweeps = True
    has_own_sweeps = True

    @cached_property
    def _tucker(self) -> Tucker2:
        return Tucker2(self.original, self.groups, self.moments, self.sweeps, self.metric)

    @cached_property
    def _roots(self) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """Cache of :meth:`_root`, oldest entry first."""
        return {}

    @classmethod
    def greatest_ranks(cls, inputs: int, outputs: int, kernel: tuple[int, ...]) -> Ranks:
        """Those of Tucker-2, and the lesser side of the core unfolded between height and width."""
        r_in, r_out = Tucker2.greatest_ranks(inputs, outputs, kernel)
        return r_in, min(r_in * kernel[0], r_out * kernel[1]), r_out

    @property
    def max_ranks(self) -> Ranks:
        """The maxima of Tucker-2, and the rank of the core at those."""
        r_in, r_out = self._tucker.max_ranks
        return r_in, self._max_middle_rank(r_in, r_out), r_out

    @property
    def spectrum(self) -> Tensor:
        """See :attr:`Decomposition.spectrum`."""
        return self._tucker.spectrum

    def _max_middle_rank(self, r_in: int, r_out: int) -> int:
        """The shorter side of the unfolded core."""
        return min(r_in * self.kernel[0], r_out * self.kernel[1])

    def fraction(self, share: float) -> Ranks:
        """The fraction ``share`` of each leaf's maximum and, for ``r_mid``, of the maximum at those leaf ranks."""
        r_in, r_out = self._tucker.fraction(share)
        return r_in, max(1, round(share * self._max_middle_rank(r_in, r_out))), r_out

    def fit(self, ranks: Ranks) -> Ranks:
        """See :meth:`Decomposition.fit`."""
        r_in, r_mid, r_out = ranks
        r_in, r_out = self._tucker.fit((r_in, r_out))
        return r_in, min(r_mid, self._max_middle_rank(r_in, r_out)), r_out

    def _root(self, r_in: int, r_out: int) -> tuple[Tensor, Tensor]:
        """Basis of the unfolded core, ``(G, r_in*kh, R)``, and the core in it, ``(G, R, kw*r_out)``; cached."""
        if (r_in, r_out) not in self._roots:
            if len(self._roots) == CACHED_ROOTS:
                self._roots.pop(next(iter(self._roots)))  # the oldest
            matrix = _unfolded(self._tucker.parts(r_in, r_out)[2])
            basis = self.metric.leading_basis(matrix)
            self._roots[r_in, r_out] = basis, basis.mT @ matrix
        return self._roots[r_in, r_out]

    def factors(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """``(G*r_in, I/G, 1, 1)``, ``(G*r_mid, r_in, kh, 1)``, ``(G*r_out, r_mid, 1, kw)``, ``(O, r_out, 1, 1)``."""
        r_in, r_mid, r_out = self.check(ranks)
        height, width = self.kernel
        basis, projected = self._root(r_in, r_out)
        reduce, expand = self._tucker.pointwise_factors(r_in, r_out)
        vertical = self.metric.restore(basis[:, :, :r_mid].mT.unflatten(2, (r_in, height)), "gmsh,hk->gmsk", "height")
        horizontal = projected[:, :r_mid].unflatten(2, (width, r_out)).permute(0, 3, 1, 2)  # (G, r_out, r_mid, kw)
        horizontal = self.metric.restore(horizontal, "grmw,wl->grml", "width")
        horizontal = horizontal.reshape(-1, r_mid, 1, width)
        vertical = vertical.reshape(-1, r_in, height, 1)
        return reduce, vertical.to(self.dtype), horizontal.to(self.dtype), expand

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The weight that the truncated core represents, in the shape of the original."""
        r_in, r_mid, r_out = self.check(ranks)
        basis, projected = self._root(r_in, r_out)
        matrix = basis[:, :, :r_mid] @ projected[:, :r_mid]
        core = matrix.unflatten(1, (r_in, -1)).unflatten(3, (-1, r_out))  # (G, r_in, kh, kw, r_out)
        return self._tucker.expand_core(core.permute(0, 4, 1, 2, 3))

    def lost_energy(self, ranks: Ranks) -> float:
        """The energy that Tucker-2 loses, plus the energy that the truncation of its core to ``r_mid`` loses."""
        r_in, r_mid, r_out = ranks
        truncated = self._root(r_in, r_out)[1][:, r_mid:]
        return self._tucker.lost_energy((r_in, r_out)) + float(truncated.double().square().sum())

    def error_table(self, round_to: RankSteps = 1) -> tuple[Floats, Floats]:
        """All allowed middle ranks for a selection of outer ranks, and their errors.

        The outer ranks are at most ``OUTER_PAIRS`` pairs from Tucker-2's table, evenly spread over its Pareto front of
        error against ``r_in * r_out``.
        """
        pairs, errors = self._tucker.error_table(round_to)
        order = np.lexsort((errors, pairs.prod(axis=1)))
        least_errors = np.minimum.accumulate(errors[order])
        front = order[np.concatenate([[True], least_errors[1:] < least_errors[:-1]])]
        selected = front[np.unique(np.linspace(0, len(front) - 1, OUTER_PAIRS).round().astype(int))]
        rank_tables, error_tables = [], []
        for r_in, r_out in pairs[selected].astype(int).tolist():
            energy = self.metric.energies(_unfolded(self._tucker.corner(r_in, r_out))).sum(0)
            lost = self._tucker.hosvd_loss(r_in, r_out) + energy.sum() - energy.cumsum(0)
            middle = rank_ladder(len(energy), round_to)
            outer = [np.full(len(middle), rank) for rank in (r_in, r_out)]
            rank_tables.append(np.stack([outer[0], middle.numpy(), outer[1]], axis=1))
            error_tables.append(self.errors_of(lost[middle - 1]))
        return np.concatenate(rank_tables).astype(np.float64), np.concatenate(error_tables)

    def select_ranks(self, select: RankSelector) -> Ranks:
        """Choose the leaf ranks on their own spectra, then the root's rank on the spectrum of their core."""
        r_in, r_out = self._tucker.select_ranks(select)
        height, width = self.kernel
        columns = max(r_in * height, r_out * width)
        return r_in, select(pooled_spectrum(self._root(r_in, r_out)[1]), columns), r_out


def _unfolded(core: Tensor) -> Tensor:
    """Unfold a core ``(G, r_out, r_in, kh, kw)`` between height and width, to ``(G, r_in*kh, kw*r_out)``."""
    return core.permute(0, 2, 3, 4, 1).flatten(3).flatten(1, 2)

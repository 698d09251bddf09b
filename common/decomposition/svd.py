"""Truncated SVD of the weight unfolded along its output channels (channel scheme)."""

from __future__ import annotations

from torch import Tensor

from common.decomposition.base import Decomposition, Ranks, RankSelector, leading_basis, pooled_spectrum


class SVD(Decomposition):
    """``M = W reshaped (O, I*kh*kw) ~ U_r (U_r^T M)``, the best rank-r approximation (Eckart and Young 1936).

    Factors, with G groups: ``(G*r, I/G, kh, kw)``, which takes the layer's stride, padding and dilation, then
    ``(O, r, 1, 1)``, which takes its bias. Ranks: ``(r,)``.
    """

    method = "svd"
    rank_names = ("rank",)

    def __init__(self, weight: Tensor, groups: int = 1) -> None:
        super().__init__(weight, groups)
        matrix = self.weight.flatten(2)
        self._basis = leading_basis(matrix)
        self._projected = self._basis.mT @ matrix
        self._spectrum = pooled_spectrum(self._projected)
        self._energy = self._projected.square().sum(dim=(0, 2)).cumsum(0)
        self.max_ranks = (self._basis.shape[-1],)

    @property
    def spectrum(self) -> Tensor:
        """Singular values of M, descending."""
        return self._spectrum

    def factors(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """``(G*r, I/G, kh, kw)`` and ``(O, r, 1, 1)``; for a Linear ``(r, I)`` and ``(O, r)``."""
        (rank,) = self.check(ranks)
        inner = self._projected[:, :rank].reshape(-1, *self.shape[1:])
        pointwise = [1] * len(self.shape[2:])
        outer = self._basis[:, :, :rank].reshape(self.shape[0], rank, *pointwise)
        return inner.to(self.dtype), outer.to(self.dtype)

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The rank-r weight, in the shape of the original."""
        (rank,) = self.check(ranks)
        low_rank = self._basis[:, :, :rank] @ self._projected[:, :rank]
        return low_rank.reshape(self.shape).to(self.dtype)

    def kept_energy(self, ranks: Ranks) -> float:
        """Sum of the first r squared singular values."""
        return float(self._energy[ranks[0] - 1])

    def select_ranks(self, select: RankSelector) -> Ranks:
        """One rank, chosen on the singular values of M."""
        return (select(self._spectrum),)

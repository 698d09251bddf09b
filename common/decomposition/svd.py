"""Truncated SVD of the weight unfolded along its output channels (channel scheme)."""

from __future__ import annotations

from torch import Tensor

from common.decomposition.base import Decomposition, Floats, Ranks, RankSelector
from common.decomposition.metric import LayerMoments, Metric, pooled_spectrum


class SVD(Decomposition):
    """``M = W reshaped (O, I*kh*kw) ~ B_r (B_r^T M)``, the best rank-r approximation.

    B holds the left singular vectors of M (Eckart and Young 1936) or, with moments, the eigenvectors of the covariance
    of the outputs (Zhang et al. 2015). Factors, with G groups: ``(G*r, I/G, kh, kw)``, which takes the layer's stride,
    padding and dilation, then ``(O, r, 1, 1)``, which takes its bias. Ranks: ``(r,)``.
    """

    method = "svd"
    rank_names = ("rank",)
    axes = ((True, True), (False, False))

    def __init__(
        self,
        weight: Tensor,
        groups: int = 1,
        moments: LayerMoments | None = None,
        sweeps: int = 0,
        metric: Metric | None = None,
    ) -> None:
        super().__init__(weight, groups, moments, sweeps, metric)
        weighted = self._metric.weighted.flatten(2)
        self._spectrum = pooled_spectrum(weighted)
        self._energy = weighted.square().sum(dim=(0, 2)).cumsum(0)
        self._columns = max(self.weight.shape[1], weighted.shape[2])
        self.max_ranks = (weighted.shape[1],)

    @property
    def spectrum(self) -> Tensor:
        """Singular values of M, or the deviations of the output along B; descending."""
        return self._spectrum

    def factors(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """``(G*r, I/G, kh, kw)`` and ``(O, r, 1, 1)``; for a Linear ``(r, I)`` and ``(O, r)``."""
        (rank,) = self.check(ranks)
        pointwise = [1] * len(self.shape[2:])
        inner = self._metric.projected[:, :rank].reshape(-1, *self.shape[1:])
        outer = self._metric.output_basis[:, :, :rank].reshape(self.shape[0], rank, *pointwise)
        return inner.to(self.dtype), outer.to(self.dtype)

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The rank-r weight, in the shape of the original."""
        (rank,) = self.check(ranks)
        low_rank = self._metric.output_basis[:, :, :rank] @ self._metric.projected[:, :rank].flatten(2)
        return low_rank.reshape(self.shape).to(self.dtype)

    def kept_energy(self, ranks: Ranks) -> float:
        """Sum of the first r squared singular values."""
        return float(self._energy[ranks[0] - 1])

    def error_table(self, round_to: int = 1) -> tuple[Floats, Floats]:
        """Every rank, and its error."""
        ranks = self.ladder(0, round_to)
        return ranks.unsqueeze(1).double().numpy(), self.errors_of(self._energy[ranks - 1])

    def select_ranks(self, select: RankSelector) -> Ranks:
        """One rank, chosen on the spectrum."""
        return (select(self._spectrum, self._columns),)

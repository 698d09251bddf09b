"""Truncated SVD of the weight, unfolded along its output channels (channel scheme)."""

from __future__ import annotations

import math

from torch import Tensor

from common.decomposition.base import DECOMPOSITIONS, OneRank, Ranks


@DECOMPOSITIONS.add
class SVD(OneRank):
    """The best rank-r approximation ``B_r (B_r^T M)`` of ``M``, which is W reshaped to ``(O, I*kh*kw)``.

    B holds the left singular vectors of M (Eckart and Young 1936) or, with moments, the eigenvectors of the output
    covariance (Zhang et al. 2015). Factors, with G groups: ``(G*r, I/G, kh, kw)`` takes the layer's stride, padding
    and dilation; ``(O, r, 1, 1)`` takes its bias. Ranks: ``(r,)``.
    """

    method = "svd"
    title = "SVD"
    needs_kernel = False
    serves_transposed = True
    axes = ((True, True), (False, False))

    @classmethod
    def greatest_ranks(cls, inputs: int, outputs: int, kernel: tuple[int, ...]) -> Ranks:
        """The lesser side of the matrix."""
        return (min(outputs, inputs * math.prod(kernel)),)

    @property
    def sides(self) -> tuple[int, int]:
        """A group's output channels, and the elements of one of its filters."""
        return self.shape[0] // self.groups, math.prod(self.shape[1:])

    @property
    def rows(self) -> Tensor:
        """See :attr:`OneRank.rows`."""
        return self.metric.weighted.flatten(2)

    def factors(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """``(G*r, I/G, kh, kw)`` and ``(O, r, 1, 1)``; for a Linear ``(r, I)`` and ``(O, r)``."""
        (rank,) = self.check(ranks)
        pointwise = [1] * len(self.shape[2:])
        inner = self.metric.projected[:, :rank].reshape(-1, *self.shape[1:])
        outer = self.metric.output_basis[:, :, :rank].reshape(self.shape[0], rank, *pointwise)
        return inner.to(self.dtype), outer.to(self.dtype)

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The rank-r weight, in the shape of the original."""
        (rank,) = self.check(ranks)
        low_rank = self.metric.output_basis[:, :, :rank] @ self.metric.projected[:, :rank].flatten(2)
        return low_rank.reshape(self.shape).to(self.dtype)

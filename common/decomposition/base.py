"""What every decomposition offers, and the orthonormal bases that all of them are made of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

Ranks = tuple[int, ...]
RankSelector = Callable[[Tensor], int]
"""Takes a spectrum (singular values, descending, 1-D) and returns a rank between 1 and its length."""


class Decomposition(ABC):
    """One weight, decomposed once; any ranks are then a slice of what was computed.

    Args:
        weight: ``(O, I/groups, kh, kw)`` or ``(O, I)``; it is not changed.
        groups: as in ``torch.nn.Conv2d``; every group is factored by itself, all with the same ranks.

    All computation is in float64; factors come back in the weight's own dtype.

    Attributes:
        weight: ``(G, O/G, I/G, kh, kw)`` in float64.
        max_ranks: the ranks at which the decomposition is exact.
    """

    method: ClassVar[str]
    rank_names: ClassVar[tuple[str, ...]]
    max_ranks: Ranks

    def __init__(self, weight: Tensor, groups: int = 1) -> None:
        if weight.dim() not in (2, 4):
            raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be (O, I) or (O, I/groups, kh, kw)")
        self.dtype = weight.dtype
        self.shape = tuple(weight.shape)
        kernel = self.shape[2:] or (1, 1)
        self.weight = weight.detach().double().reshape(groups, -1, self.shape[1], *kernel)
        self.total = float(self.weight.square().sum())

    @abstractmethod
    def factors(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """The weights of the layers that replace this one, in the order in which the input meets them."""

    @abstractmethod
    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The weight that the factors stand for, in the shape and dtype of the original."""

    @abstractmethod
    def kept_energy(self, ranks: Ranks) -> float:
        """``||W'||^2``; as W' is an orthogonal projection of W, the squared error is the rest of ``||W||^2``."""

    @abstractmethod
    def select_ranks(self, select: RankSelector) -> Ranks:
        """Ranks chosen by applying ``select`` to the spectrum of each unfolding."""

    @property
    @abstractmethod
    def spectrum(self) -> Tensor:
        """Singular values of the weight unfolded along its output channels, descending, 1-D."""

    def relative_error(self, ranks: Ranks) -> float:
        """``||W - W'|| / ||W||`` in the Frobenius norm, without building W'; 0 for a weight that is zero."""
        ranks = self.check(ranks)
        return math.sqrt(max(0.0, 1 - self.kept_energy(ranks) / self.total)) if self.total else 0.0

    def cap(self, rank: int) -> Ranks:
        """``rank`` in every mode, or the mode's maximum where that is less."""
        return self.fit(tuple(min(rank, most) for most in self.max_ranks))

    def fraction(self, share: float) -> Ranks:
        """``share`` of the maximum in every mode, at least 1."""
        return self.fit(tuple(max(1, round(share * most)) for most in self.max_ranks))

    def fit(self, ranks: Ranks) -> Ranks:
        """``ranks`` lowered where a mode's bound depends on the other modes' ranks."""
        return ranks

    def check(self, ranks: Ranks) -> Ranks:
        """``ranks`` unchanged.

        Raises:
            ValueError: not as many as the method has, or one outside 1..maximum.
        """
        ranks = tuple(ranks)
        if len(ranks) != len(self.max_ranks):
            raise ValueError(f"ranks={ranks}: {self.method} takes {len(self.max_ranks)}, {self.rank_names}")
        for name, rank, most in zip(self.rank_names, ranks, self.max_ranks, strict=True):
            if not 1 <= rank <= most:
                raise ValueError(f"{name}={rank} for a weight of shape {self.shape}: it must be in 1..{most}")
        if self.fit(ranks) != ranks:
            raise ValueError(
                f"ranks={ranks} for a weight of shape {self.shape}: at most {self.fit(ranks)} can be used"
            )
        return ranks


def leading_basis(unfolding: Tensor) -> Tensor:
    """Left singular vectors of a batch of matrices, leading first.

    Args:
        unfolding: ``(G, n, m)``.

    Returns:
        ``(G, n, min(n, m))`` with orthonormal columns that span the matrix's columns to machine precision. They come
        from the Gram matrix, many times cheaper than a full SVD; where n > m a QR comes first, because the
        eigenvectors of a rank-deficient n x n Gram matrix would lose the smallest singular directions.
    """
    rows, columns = unfolding.shape[-2:]
    if rows > columns:
        q, r = torch.linalg.qr(unfolding)
        return q @ leading_basis(r)
    return torch.linalg.eigh(unfolding @ unfolding.mT).eigenvectors.flip(-1)


def pooled_spectrum(projected: Tensor) -> Tensor:
    """Singular values from ``basis.T @ matrix``: the norms of its rows, pooled over groups.

    Args:
        projected: ``(G, R, m)``.

    Returns:
        ``(R,)``, made descending: eigenvectors of values that are equal to rounding may come in any order.
    """
    return projected.square().sum(dim=(0, 2)).sqrt().cummin(0).values

"""What every decomposition offers."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

from common.decomposition.metric import DataMetric, Metric, pooled_spectrum
from common.decomposition.moments import LayerMoments
from common.validation import Registry

Ranks = tuple[int, ...]
Floats = NDArray[np.float64]
RankSelector = Callable[[Tensor, int], int]
"""Takes a spectrum (singular values of a matrix, descending, 1-D) and the matrix's greater side; returns a rank."""
RankSteps = int | tuple[int, ...]
"""Ranks that may be taken: the multiples of a number, or those listed."""


def rank_ladder(most: int, steps: RankSteps) -> Tensor:
    """Ranks up to ``most``, ascending, 1-D: the multiples of ``steps`` or those listed there, and ``most``."""
    listed = range(steps, most + 1, steps) if isinstance(steps, int) else [rank for rank in steps if rank <= most]
    return torch.tensor(sorted({*listed, most}))


def outputs_of(factors: Sequence[Tensor], patches: Tensor, groups: int) -> Tensor:
    """What layers with these weights, one behind the other, make of patches.

    Args:
        factors: weights ``(O, I/groups, kh, kw)`` or ``(O, I)``, whose kernels together are as large as the patches.
        patches: ``(N, I, kh, kw)``; all is computed in their dtype.
        groups: of all of the layers.

    Returns:
        ``(N, O)``.
    """
    for factor in factors:
        kernel, factor = factor.shape[2:] or (1, 1), factor.to(patches.dtype)
        if kernel == patches.shape[2:]:  # a product, which is faster as such
            rows = patches.reshape(len(patches), groups, -1).transpose(0, 1)
            patches = (
                (rows @ factor.reshape(groups, -1, rows.shape[2]).mT).transpose(0, 1).reshape(-1, len(factor), 1, 1)
            )
        else:
            patches = conv2d(patches, factor.reshape(*factor.shape[:2], *kernel), groups=groups)
    return patches.flatten(1)


class Decomposition(ABC):
    """One weight, decomposed once; any ranks are then a slice of what was computed.

    Args:
        weight: ``(O, I/groups, kh, kw)`` or ``(O, I)``; it is not changed.
        groups: as in ``torch.nn.Conv2d``; every group is factored by itself, all with the same ranks.
        moments: of the layer's data; with them the error that is made small is that of the layer's output, and all
            errors are relative to its variance. Without them it is the error of the weight.
        sweeps: of alternating improvement at the ranks that are asked for, where a method has any to make (Tucker-2
            and HTD; the SVDs are optimal as they are). With moments the output basis stays the one that was measured.
        metric: that of this weight and these moments, where another decomposition has made it already.

    Nothing is computed before it is asked for. Bases for all ranks are computed in float64, sweeps at given ranks in
    the weight's own dtype, float32 at least; factors come back in that.

    What a subclass says of itself:
        method: its name, by which it is registered.
        title: its name in reports.
        rank_names: of its ranks.
        axes: for each factor, whether it takes over the (height, width) of the layer's kernel, stride, padding and
            dilation; one that takes over neither is a 1x1 convolution. Between factors i and i+1 lie
            ``ranks[i] * groups`` channels.
        has_sweeps: whether sweeps change anything.
        needs_kernel: whether it has nothing to split in a Linear or a 1x1 convolution.
        serves_transposed: whether it factors transposed convolutions.
        otherwise: the method that serves the layers which this one does not.

    Attributes:
        grouped: the weight as ``(G, O/G, I/G, kh, kw)``.
        metric: the norm in which it is best; other methods for the same weight can share it.
    """

    method: str
    title: str
    rank_names: tuple[str, ...]
    axes: tuple[tuple[bool, bool], ...]
    has_sweeps: bool = False
    needs_kernel: bool = True
    serves_transposed: bool = False
    otherwise: str = "svd"

    def __init__(
        self,
        weight: Tensor,
        groups: int = 1,
        moments: LayerMoments | None = None,
        sweeps: int = 0,
        metric: Metric | None = None,
    ) -> None:
        if weight.dim() not in (2, 4):
            raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be (O, I) or (O, I/groups, kh, kw)")
        self.original, self.groups = weight.detach(), groups
        self.dtype, self.shape = weight.dtype, tuple(weight.shape)
        self.kernel = self.shape[2:] or (1, 1)
        self.moments, self.sweeps = moments, sweeps
        self.grouped = self.original.reshape(groups, -1, self.shape[1], *self.kernel)
        self.metric = metric or (Metric(self.grouped) if moments is None else DataMetric(self.grouped, moments))

    @property
    def working_dtype(self) -> torch.dtype:
        """Of factors at given ranks: float64 with moments, whose variances span many orders; else float32 or more."""
        return torch.float64 if self.moments is not None else torch.promote_types(self.dtype, torch.float32)

    @cached_property
    def _total(self) -> float:
        """Squared norm of the weight in the metric."""
        tensor = self.metric.weight if self.moments is None else self.metric.weighted
        return float(tensor.square().sum())

    @classmethod
    @abstractmethod
    def greatest_ranks(cls, inputs: int, outputs: int, kernel: tuple[int, int]) -> Ranks:
        """The ranks at which the decomposition of any weight of this shape is exact.

        Args:
            inputs: channels of one group.
            outputs: channels of one group.
            kernel: ``(kh, kw)``.
        """

    @property
    @abstractmethod
    def max_ranks(self) -> Ranks:
        """The ranks at which the decomposition is exact."""

    @abstractmethod
    def factors(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """The weights of the layers that replace this one, in the order in which the input meets them."""

    @abstractmethod
    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The weight that the factors stand for, in the shape and dtype of the original."""

    @abstractmethod
    def lost_energy(self, ranks: Ranks) -> float:
        """``||W - W'||^2`` in the metric, where W' is an orthogonal projection of W."""

    @abstractmethod
    def select_ranks(self, select: RankSelector) -> Ranks:
        """Ranks chosen by applying ``select`` to the spectrum of each unfolding."""

    @abstractmethod
    def error_table(self, round_to: RankSteps = 1) -> tuple[Floats, Floats]:
        """The relative error of many ranks at once, none of them built.

        Args:
            round_to: ranks are multiples of it, or among these where several are given, or the mode's maximum.

        Returns:
            Ranks ``(K, modes)`` and their errors ``(K,)``. Every rank of a method with one or two modes is there; of
            the three of HTD, all middle ranks at a choice of the outer ones.
        """

    @property
    @abstractmethod
    def spectrum(self) -> Tensor:
        """Singular values along the output channels, descending, 1-D: of the weight, or of the output on data."""

    def relative_error(self, ranks: Ranks) -> float:
        """``||W - W'|| / ||W||`` in the metric, without building W'; 0 for a weight that is zero."""
        ranks = self.check(ranks)
        return math.sqrt(max(0.0, self.lost_energy(ranks)) / self._total) if self._total else 0.0

    def errors_of(self, lost_energy: Tensor) -> Floats:
        """Relative errors from what is lost of the energy, any shape."""
        share = lost_energy / self._total if self._total else torch.zeros_like(lost_energy)
        return share.clamp(min=0).sqrt().cpu().numpy()

    def bias_shift(self, ranks: Ranks) -> Tensor | None:
        """``E[(W - W')p]``, ``(O,)``: what the bias must gain to keep the output's mean; None without moments."""
        if self.moments is None:
            return None
        mean = self.moments.patch_mean.double().reshape(1, -1, *self.kernel)
        kept = outputs_of(self.factors(ranks), mean, self.groups)  # to build W' for it takes many times as long
        return (self._output_mean - kept.flatten()).to(self.dtype)

    @cached_property
    def _output_mean(self) -> Tensor:
        """``E[Wp]``, ``(O,)``."""
        assert self.moments is not None
        return torch.einsum("goihw,gihw->go", self.metric.weight, self.moments.patch_mean).flatten()

    def cap(self, rank: int) -> Ranks:
        """``rank`` in every mode, or the mode's maximum where that is less."""
        return self.fit(tuple(min(rank, most) for most in self.max_ranks))

    def fraction(self, share: float) -> Ranks:
        """``share`` of the maximum in every mode, at least 1."""
        return self.fit(tuple(max(1, round(share * most)) for most in self.max_ranks))

    def fit(self, ranks: Ranks) -> Ranks:
        """``ranks`` lowered where a mode's bound depends on the other modes' ranks."""
        return ranks

    def ladder(self, mode: int, round_to: RankSteps) -> Tensor:
        """The ranks of one mode: see :func:`rank_ladder`."""
        return rank_ladder(self.max_ranks[mode], round_to)

    def round_up(self, ranks: Ranks, multiple: int) -> Ranks:
        """``ranks`` raised to multiples of ``multiple``, or to the mode's maximum where that is less."""
        raised = (-(-rank // multiple) * multiple for rank in ranks)
        return self.fit(tuple(min(rank, most) for rank, most in zip(raised, self.max_ranks, strict=True)))

    def check(self, ranks: Ranks) -> Ranks:
        """``ranks`` unchanged, as plain numbers.

        Raises:
            ValueError: not as many as the method has, one that is no whole number, or one outside 1..maximum.
        """
        try:
            ranks = tuple(operator.index(rank) for rank in ranks)
        except TypeError:
            raise ValueError(f"ranks={tuple(ranks)}: they must be whole numbers") from None
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


DECOMPOSITIONS: Registry[type[Decomposition]] = Registry("method", lambda kind: kind.method)
"""Every decomposition by name."""


def serving_method(method: str, kernel: tuple[int, int], transposed: bool) -> str:
    """The method that serves a layer where ``method`` is asked for: itself, or the first ``otherwise`` that does.

    A Linear or a 1x1 convolution has no kernel to split, so it takes SVD. A transposed convolution's kernel is not
    split between its axes: it takes Tucker-2 for ``htd`` and SVD for ``spatial_svd``.

    Args:
        method: name of a decomposition.
        kernel: ``(kh, kw)`` of the layer; ``(1, 1)`` for a Linear.
        transposed: whether the layer is a transposed convolution.
    """
    kind = DECOMPOSITIONS[method]
    while (kind.needs_kernel and kernel == (1, 1)) or (transposed and not kind.serves_transposed):
        kind = DECOMPOSITIONS[kind.otherwise]
    return kind.method


class OneRank(Decomposition):
    """A decomposition by the singular values of one matrix that the weight is reshaped to."""

    rank_names = ("rank",)

    @property
    @abstractmethod
    def rows(self) -> Tensor:
        """The matrix in its own left basis, ``(G, R, m)``, leading first, in float64."""

    @property
    @abstractmethod
    def sides(self) -> tuple[int, int]:
        """Height and width of the matrix."""

    @property
    def max_ranks(self) -> Ranks:
        """The lesser side of the matrix."""
        return (min(self.sides),)

    @cached_property
    def spectrum(self) -> Tensor:
        """Singular values of the matrix, descending."""
        return pooled_spectrum(self.rows)

    @cached_property
    def _lost(self) -> Tensor:
        """What is lost at the ranks 1, 2, ...: the sum of the squared singular values behind, 0 at full rank."""
        energy = self.rows.square().sum(dim=(0, 2))
        return torch.cat([energy.flip(0).cumsum(0).flip(0)[1:], energy.new_zeros(1)])

    def lost_energy(self, ranks: Ranks) -> float:
        """Sum of the squared singular values behind the first r."""
        return float(self._lost[ranks[0] - 1])

    def error_table(self, round_to: RankSteps = 1) -> tuple[Floats, Floats]:
        """Every rank, and its error."""
        ranks = self.ladder(0, round_to)
        return ranks.unsqueeze(1).double().numpy(), self.errors_of(self._lost[ranks - 1])

    def select_ranks(self, select: RankSelector) -> Ranks:
        """One rank, chosen on the spectrum."""
        return (select(self.spectrum, max(self.sides)),)

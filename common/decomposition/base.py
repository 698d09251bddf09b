"""The interface of every decomposition, their registry, and a base class for those with a single rank."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.decomposition.chain import outputs_of
from common.decomposition.metric import DataMetric, Metric, fits_single_precision, pooled_spectrum
from common.decomposition.moments import LayerMoments
from common.validation import Registry

Ranks = tuple[int, ...]
Floats = NDArray[np.float64]
RankSelector = Callable[[Tensor, int], int]
"""Maps the singular values of a matrix, ``(n,)``, descending, and the size of its longer side to a rank."""
Width = Any
"""A number of channels, or an array of such numbers."""
RankSteps = int | tuple[int, ...]
"""The ranks allowed: the multiples of a number, or a list."""


def rank_ladder(max_rank: int, steps: RankSteps) -> Tensor:
    """List the allowed ranks up to ``max_rank``, and ``max_rank`` itself; ascending, 1-D."""
    allowed = range(steps, max_rank + 1, steps) if isinstance(steps, int) else [r for r in steps if r <= max_rank]
    return torch.tensor(sorted({*allowed, max_rank}))


class Decomposition(ABC):
    """A weight, decomposed once; the factors at any ranks are slices of that result.

    Everything is computed lazily. The bases for all ranks are computed in float64. Sweeps at given ranks use the
    weight's own dtype, at least float32. Factors have the weight's dtype.

    Args:
        weight: ``(O, I/groups, kh, kw)`` or ``(O, I)``. It is not changed. A kernel of one axis has width 1, and the
            width of a kernel of three axes is the product of the last two.
        groups: as in ``torch.nn.Conv2d``. Each group is factored separately, all at the same ranks.
        moments: the layer's moments. With them, the decomposition minimises the error of the layer's output, and
            errors are relative to the output's variance. Without them, it minimises the error of the weight.
        sweeps: number of alternating improvements at the ranks asked for, by methods that have any (all but SVD, which
            is optimal already). With moments, the output basis stays the measured one.
        metric: the metric of this weight and these moments, if another decomposition has already built it.

    A subclass sets these class attributes:
        method: name in the registry.
        title: name in reports.
        rank_names: a name for each rank.
        axes: for each factor, whether it takes over the (height, width) of the layer's kernel, stride, padding and
            dilation. A factor that takes over neither is a 1x1 convolution.
        gap_ranks: for each gap between two factors, the index of the rank that gives its channels in each group; None
            for each rank in turn.
        depthwise: for each factor, whether it is a depthwise convolution; None if none is.
        interpolates: whether the errors in a table lie between those at a few ranks.
        most_elements: the largest weight of one group on which the method is tried beside others; None for any. A
            method that iterates takes minutes on larger ones.
        has_sweeps: whether sweeps change the factors.
        has_own_sweeps: whether the method itself has sweeps (HOOI), besides the least squares on data.
        needs_kernel: whether the method needs a kernel larger than 1x1 to split.
        serves_transposed: whether it factors transposed convolutions.
        otherwise: the method for the layers that this one does not serve.

    Attributes:
        grouped: the weight as ``(G, O/G, I/G, kh, kw)``.
        metric: the norm that the decomposition minimises. Other methods for the same weight can share it.

    Raises:
        ValueError: the weight has neither two nor four dimensions.
    """

    method: str
    title: str
    rank_names: tuple[str, ...]
    axes: tuple[tuple[bool, bool], ...]
    gap_ranks: tuple[int, ...] | None = None
    depthwise: tuple[bool, ...] | None = None
    interpolates: bool = False
    most_elements: int | None = None
    has_sweeps: bool = False
    has_own_sweeps: bool = False
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

    def with_sweeps(self, sweeps: int) -> Decomposition:
        """Return the decomposition of the same weight with another number of sweeps; both share the metric."""
        return type(self)(self.original, self.groups, self.moments, sweeps, self.metric)

    @cached_property
    def working_dtype(self) -> torch.dtype:
        """Dtype at given ranks: float64 with moments, whose variances span many orders; else at least float32."""
        wide = self.moments is not None or not fits_single_precision(self.original)
        return torch.float64 if wide else torch.promote_types(self.dtype, torch.float32)

    @cached_property
    def _total(self) -> float:
        """The squared norm of the weight in the metric."""
        tensor = self.metric.weight if self.moments is None else self.metric.weighted
        return float(tensor.square().sum(dtype=torch.float64))

    @classmethod
    @abstractmethod
    def greatest_ranks(cls, inputs: int, outputs: int, kernel: tuple[int, ...]) -> Ranks:
        """The ranks at which the decomposition of any weight of this shape is exact.

        Args:
            inputs: channels of one group.
            outputs: channels of one group.
            kernel: ``(kh, kw)``; one or three numbers for a method that serves such kernels.
        """

    @classmethod
    def factor_channels(
        cls, inputs: int, outputs: int, ranks: Sequence[Width], groups: int
    ) -> list[tuple[Width, Width, Width]]:
        """Input channels, output channels and groups of each factor.

        Args:
            inputs: channels of the layer.
            outputs: channels of the layer.
            ranks: one for each of ``rank_names``, or an array for many sets of ranks.
            groups: of the layer.
        """
        gaps = range(len(ranks)) if cls.gap_ranks is None else cls.gap_ranks
        widths = (inputs, *(ranks[index] * groups for index in gaps), outputs)
        depthwise = cls.depthwise or (False,) * len(cls.axes)
        return [
            (before, after, before if own else groups)
            for (before, after), own in zip(pairwise(widths), depthwise, strict=True)
        ]

    @classmethod
    def serves(cls, dimensions: int, transposed: bool) -> bool:
        """Whether the method factors convolutions of this kind.

        Args:
            dimensions: number of axes of the kernel. A method whose factors split the kernel serves only two.
            transposed: whether the convolution is transposed.
        """
        splits = any(height != width for height, width in cls.axes)
        return (dimensions == 2 or not splits) and (cls.serves_transposed or not transposed)

    @property
    @abstractmethod
    def max_ranks(self) -> Ranks:
        """The ranks at which the decomposition is exact; no rank may be higher."""

    @abstractmethod
    def factors(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """The weights of the layers that replace this one, from input to output."""

    @abstractmethod
    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The weight that the factors represent, in the shape and dtype of the original."""

    @abstractmethod
    def lost_energy(self, ranks: Ranks) -> float:
        """``||W - W'||^2`` in the metric, with W' the orthogonal projection of W at these ranks."""

    @abstractmethod
    def select_ranks(self, select: RankSelector) -> Ranks:
        """Choose the ranks by applying ``select`` to the spectrum of each unfolding."""

    @abstractmethod
    def error_table(self, round_to: RankSteps = 1) -> tuple[Floats, Floats]:
        """Compute the relative errors at many ranks at once, without building any factors.

        Args:
            round_to: the ranks are its multiples, or come from it if it is a list; each mode's maximum is always in.

        Returns:
            Ranks ``(K, modes)`` and their errors ``(K,)``. A method with one or two modes lists all its ranks. HTD,
            with three, lists all middle ranks for a selection of the outer ones.
        """

    @property
    @abstractmethod
    def spectrum(self) -> Tensor:
        """Singular values along the output channels, descending, 1-D: of the weight or, with moments, the output."""

    def relative_error(self, ranks: Ranks) -> float:
        """``||W - W'|| / ||W||`` in the metric, without building W'; 0 for a zero weight."""
        ranks = self.check(ranks)
        return math.sqrt(max(0.0, self.lost_energy(ranks)) / self._total) if self._total else 0.0

    def measured_error(self, ranks: Ranks) -> float:
        """The error of :meth:`factors`, measured on held-out data where there are any; else :meth:`relative_error`."""
        return self.relative_error(ranks)

    def errors_of(self, lost_energy: Tensor) -> Floats:
        """Convert lost energies of any shape to relative errors."""
        share = lost_energy / self._total if self._total else torch.zeros_like(lost_energy)
        return share.clamp(min=0).sqrt().cpu().numpy()

    def bias_shift(self, ranks: Ranks) -> Tensor | None:
        """``E[(W - W')p]``, ``(O,)``: the change of the bias that keeps the output's mean; None without moments."""
        if self.moments is None:
            return None
        mean = self.moments.patch_mean.double().reshape(1, -1, *self.kernel)
        factored_mean = outputs_of(self.factors(ranks), mean, self.groups)  # many times faster than building W'
        return (self._output_mean - factored_mean.flatten()).to(self.dtype)

    @cached_property
    def _output_mean(self) -> Tensor:
        """The mean output without the bias, ``E[Wp]``, ``(O,)``."""
        assert self.moments is not None
        weight = self.metric.weight
        return torch.einsum("goihw,gihw->go", weight, self.moments.patch_mean.to(weight.dtype)).double().flatten()

    def cap(self, rank: int) -> Ranks:
        """``rank`` in every mode, at most the mode's maximum."""
        return self.fit(tuple(min(rank, max_rank) for max_rank in self.max_ranks))

    def fraction(self, share: float) -> Ranks:
        """The fraction ``share`` of the maximum in every mode, at least 1."""
        return self.fit(tuple(max(1, round(share * max_rank)) for max_rank in self.max_ranks))

    def near(self, share: float) -> Ranks:
        """Ranks near :meth:`fraction` whose errors the table is made of; all are, unless it interpolates."""
        return self.fraction(share)

    def fit(self, ranks: Ranks) -> Ranks:
        """Lower the ranks that exceed the bound set by the ranks of the other modes."""
        return ranks

    def ladder(self, mode: int, round_to: RankSteps) -> Tensor:
        """The ranks of one mode, see :func:`rank_ladder`."""
        return rank_ladder(self.max_ranks[mode], round_to)

    def round_up(self, ranks: Ranks, multiple: int) -> Ranks:
        """Raise ``ranks`` to multiples of ``multiple``, at most to each mode's maximum."""
        raised = (-(-rank // multiple) * multiple for rank in ranks)
        return self.fit(tuple(min(rank, max_rank) for rank, max_rank in zip(raised, self.max_ranks, strict=True)))

    def check(self, ranks: Ranks) -> Ranks:
        """Check ``ranks`` and return them as plain integers.

        Raises:
            ValueError: the number of ranks is wrong, or a rank is not a whole number or is outside 1..maximum.
        """
        try:
            ranks = tuple(operator.index(rank) for rank in ranks)
        except TypeError:
            raise ValueError(f"ranks={tuple(ranks)}: they must be whole numbers") from None
        if len(ranks) != len(self.max_ranks):
            names = ", ".join(self.rank_names)
            raise ValueError(f"ranks={ranks}: {self.method} takes {len(self.max_ranks)} ranks: {names}")
        for name, rank, max_rank in zip(self.rank_names, ranks, self.max_ranks, strict=True):
            if not 1 <= rank <= max_rank:
                raise ValueError(f"{name}={rank} for a weight of shape {self.shape}: it must be in 1..{max_rank}")
        if self.fit(ranks) != ranks:
            raise ValueError(
                f"ranks={ranks} for a weight of shape {self.shape}: they must be at most {self.fit(ranks)}"
            )
        return ranks


DECOMPOSITIONS: Registry[type[Decomposition]] = Registry("method", lambda kind: kind.method)
"""The decompositions by name."""


def own_axes(axes: tuple[bool, bool], dimensions: int) -> tuple[bool, ...]:
    """Whether a factor takes over each axis of a kernel with so many axes, from its entry in ``axes``."""
    return axes if dimensions == 2 else (all(axes),) * dimensions


def serving_method(method: str, kernel: tuple[int, ...], transposed: bool) -> str:
    """Find the method for a layer: ``method`` if it serves the layer, else the first ``otherwise`` that does.

    A Linear or a 1x1 convolution has no kernel to split; it takes SVD. The kernel of a transposed convolution, and one
    of one or three axes, is not split by axis; such a layer takes Tucker-2 instead of ``htd`` and SVD instead of
    ``spatial_svd``.

    Args:
        method: name of the decomposition asked for.
        kernel: the layer's kernel, a number for each axis; ``(1, 1)`` for a Linear.
        transposed: whether the layer is a transposed convolution.
    """
    kind = DECOMPOSITIONS[method]
    while (kind.needs_kernel and math.prod(kernel) == 1) or not kind.serves(len(kernel), transposed):
        kind = DECOMPOSITIONS[kind.otherwise]
    return kind.method


class OneRank(Decomposition):
    """Base class of the truncated SVDs: the weight is reshaped to one matrix, which has one rank."""

    rank_names = ("rank",)

    @property
    @abstractmethod
    def rows(self) -> Tensor:
        """The matrix in its own left basis, ``(G, R, m)``, leading row first, in float64."""

    @property
    @abstractmethod
    def sides(self) -> tuple[int, int]:
        """Height and width of one group's matrix."""

    @property
    def max_ranks(self) -> Ranks:
        """The shorter side of the matrix."""
        return (min(self.sides),)

    @cached_property
    def spectrum(self) -> Tensor:
        """Singular values of the matrix, descending."""
        return pooled_spectrum(self.rows)

    @cached_property
    def _lost(self) -> Tensor:
        """The energy lost at ranks 1, 2, ...: the sum of the squared singular values cut off, 0 at full rank."""
        energy = self.rows.square().sum(dim=(0, 2), dtype=torch.float64)
        return torch.cat([energy.flip(0).cumsum(0).flip(0)[1:], energy.new_zeros(1)])

    def lost_energy(self, ranks: Ranks) -> float:
        """Sum of the squared singular values after the first r."""
        return float(self._lost[ranks[0] - 1])

    def error_table(self, round_to: RankSteps = 1) -> tuple[Floats, Floats]:
        """All allowed ranks, and their errors."""
        ranks = self.ladder(0, round_to)
        return ranks.unsqueeze(1).double().numpy(), self.errors_of(self._lost[ranks - 1])

    def select_ranks(self, select: RankSelector) -> Ranks:
        """The rank chosen on the spectrum."""
        return (select(self.spectrum, max(self.sides)),)

"""Which factors of a layer err least on data that they were not made from: measured, not taken from a model."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from common.decomposition.base import Decomposition, Floats, Ranks, RankSelector, RankSteps, outputs_of
from common.decomposition.metric import Metric
from common.decomposition.moments import LayerMoments

SHARES = (0.25, 0.75)
"""Of the ranks: where the factors with data and those without are compared."""
CLEAR = 1.25
"""One side is better at all ranks where its squared error is so many times smaller at both ``SHARES``."""
NOTHING = 1e-10
"""A squared relative error that is no more than rounding."""


class HeldOut:
    """Held-out patches of a layer, and what its weight makes of them.

    Args:
        weight: ``(O, I/groups, kh, kw)`` or ``(O, I)``.
        groups: as in ``torch.nn.Conv2d``.
        moments: of the layer, with patches held out.
    """

    def __init__(self, weight: Tensor, groups: int, moments: LayerMoments) -> None:
        assert moments.held_out is not None
        self._weight, self._groups, self._moments = weight.detach(), groups, moments

    @property
    def _patches(self) -> Tensor:
        """``(N, I, kh, kw)``, less the mean that the bias makes up for; cheaper to make than to keep."""
        patches = self._moments.held_out
        assert patches is not None
        patches = patches.to(torch.promote_types(self._weight.dtype, torch.float32))
        return patches - self._moments.patch_mean.to(patches.dtype).flatten(0, 1)

    @cached_property
    def _outputs(self) -> Tensor:
        """``(N, O)``."""
        return outputs_of((self._weight,), self._patches, self._groups)

    @cached_property
    def rough_metric(self) -> Metric:
        """That of the weight alone, in single precision: enough to see whether data helps."""
        shape = (self._groups, -1, *self._weight.shape[1:], *[1] * (4 - self._weight.dim()))
        return Metric(self._weight.reshape(shape), torch.float32)

    def errors(self, decomposition: Decomposition, ranks: Ranks) -> Tensor:
        """``||(W - W')p||^2`` of each patch for the factors at these ranks, in units of the mean of ``||Wp||^2``.

        All are 0 where the weight makes nothing of any patch.
        """
        whole = self._outputs.square().sum(1).mean()
        lost = self._outputs - outputs_of(decomposition.factors(ranks), self._patches, self._groups)
        return lost.square().sum(1) / torch.where(whole > 0, whole, 1.0)

    def error(self, decomposition: Decomposition, ranks: Ranks) -> float:
        """The mean of :meth:`errors`, ``E||(W - W')p||^2 / E||Wp||^2``."""
        return float(self.errors(decomposition, ranks).mean())


class Chosen(Decomposition):
    """A decomposition by one method that follows the data only as far as held-out patches bear it out.

    At any ranks its factors are those with the least error on held-out patches, among the ones that are best for the
    moments and the ones that are best for the weight alone, each with and without sweeps where there are any. Where
    one of both sides is clearly better at a quarter and at three quarters of the ranks, the other is not looked at
    again. Tables, spectra and plans are of the side that is better at these two together; where that is the weight
    alone, its errors are brought to the scale of the outputs'.

    Args:
        kind: the method's own class.
        weight: as for any decomposition.
        groups: as for any.
        moments: with patches held out.
        sweeps: as for any.
        like: the choice by another method for the same weight and moments, whose metrics this one shares.
    """

    def __init__(
        self,
        kind: type[Decomposition],
        weight: Tensor,
        groups: int,
        moments: LayerMoments,
        sweeps: int = 0,
        like: Decomposition | None = None,
    ) -> None:
        super().__init__(weight, groups, moments, sweeps, None if like is None else like.metric)
        self.method, self.rank_names, self.axes = kind.method, kind.rank_names, kind.axes
        self._kind, self.has_sweeps = kind, kind.has_sweeps
        self.held_out: HeldOut = like.held_out if isinstance(like, Chosen) else HeldOut(weight, groups, moments)
        self._best: dict[Ranks, Decomposition] = {}

    @classmethod
    def greatest_ranks(cls, inputs: int, outputs: int, kernel: tuple[int, int]) -> Ranks:
        """Only the method's own class knows them.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("ask the method's own class")

    @cached_property
    def _aware(self) -> Decomposition:
        """Best for the moments."""
        return self._kind(self.original, self.groups, self.moments, metric=self.metric)

    @cached_property
    def _plain(self) -> Decomposition:
        """Best for the weight alone."""
        return self._kind(self.original, self.groups)

    @cached_property
    def _swept(self) -> tuple[Decomposition, Decomposition]:
        """Both again, with sweeps."""
        aware = self._kind(self.original, self.groups, self.moments, self.sweeps, self.metric)
        return aware, self._kind(self.original, self.groups, None, self.sweeps)

    @cached_property
    def _measured(self) -> Floats:
        """``(2, 2)``: squared errors with data and without, each at both ``SHARES``."""
        rough = self._kind(self.original, self.groups, metric=self.held_out.rough_metric)
        ranks = [self.fraction(share) for share in SHARES]
        return np.array([[self.held_out.error(side, r) for r in ranks] for side in (self._aware, rough)]) + NOTHING

    @cached_property
    def _sides(self) -> tuple[int, ...]:
        """0 with data, 1 by the weight alone: the better one first, the other only where that is not clear."""
        ratios = self._measured[0] / self._measured[1]
        order = (0, 1) if ratios.prod() <= 1 else (1, 0)
        clear = ratios.max() * CLEAR < 1 or ratios.min() > CLEAR
        return order[:1] if clear else order

    @cached_property
    def _planned(self) -> Decomposition:
        return self._plain if self._sides[0] else self._aware

    def best(self, ranks: Ranks) -> Decomposition:
        """The decomposition whose factors at these ranks err least on the held-out patches.

        Sweeps must be better than none by more than the standard error of the difference.
        """
        if ranks not in self._best:
            self._best[ranks] = self._planned if ranks == self.max_ranks else self._least(ranks)
        return self._best[ranks]

    def _least(self, ranks: Ranks) -> Decomposition:
        without = [self._plain if side else self._aware for side in self._sides]
        swept = [self._swept[side] for side in self._sides] if self.sweeps and self.has_sweeps else []
        if len(without) + len(swept) == 1:
            return without[0]
        measured = [(self.held_out.errors(each, ranks), each) for each in without]
        errors, best = min(measured, key=lambda pair: float(pair[0].mean()))
        measured = [(self.held_out.errors(each, ranks) - errors, each) for each in swept]
        gains = [
            (float(change.mean()), each)
            for change, each in measured
            if float(change.mean() + change.std() / len(change) ** 0.5) < 0
        ]
        return min(gains, key=lambda pair: pair[0])[1] if gains else best

    @cached_property
    def _knots(self) -> tuple[Floats, Floats]:
        """The weight's own errors at both ``SHARES``, ascending, and the logarithms of the outputs' as multiples."""
        weights = np.array([self._plain.relative_error(self.fraction(share)) for share in SHARES])
        outputs = np.sqrt(self._measured[list(self._sides)].min(axis=0))
        known = (outputs**2 > 2 * NOTHING) & (weights**2 > NOTHING)
        order = np.argsort(weights[known])
        factors = np.log(outputs[known] / weights[known])[order]
        if np.any(np.diff(outputs[known][order]) < 0):  # more rank and more error is noise
            factors[:] = factors.mean()
        return weights[known][order], factors

    def _of_outputs(self, errors: Floats) -> Floats:
        """Predicted errors as those of the layer's output on data, which those of the weight alone are not.

        They are brought to what was measured at both ``SHARES``; between these the logarithms are interpolated.
        """
        if not self._sides[0] or not len(self._knots[0]):
            return errors
        weights, factors = self._knots
        with np.errstate(divide="ignore"):
            return errors * np.exp(np.interp(np.log(errors), np.log(weights), factors))

    @property
    def max_ranks(self) -> Ranks:
        """Those of the method."""
        return self._aware.max_ranks

    def fraction(self, share: float) -> Ranks:
        """See :meth:`Decomposition.fraction`."""
        return self._aware.fraction(share)

    def fit(self, ranks: Ranks) -> Ranks:
        """See :meth:`Decomposition.fit`."""
        return self._aware.fit(ranks)

    def factors(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """Those with the least error on held-out patches."""
        ranks = self.check(ranks)
        return self.best(ranks).factors(ranks)

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The weight that these factors stand for."""
        ranks = self.check(ranks)
        return self.best(ranks).reconstruct(ranks)

    def relative_error(self, ranks: Ranks) -> float:
        """The error of the layer's output without sweeps, as a share of its deviation, without building W'."""
        return float(self._of_outputs(np.array([self._planned.relative_error(ranks)]))[0])

    def lost_energy(self, ranks: Ranks) -> float:
        """The square of :meth:`relative_error`, times the output's variance."""
        return self._total * self.relative_error(ranks) ** 2

    def error_table(self, round_to: RankSteps = 1) -> tuple[Floats, Floats]:
        """See :meth:`Decomposition.error_table`; the errors are those of :meth:`relative_error`."""
        ranks, errors = self._planned.error_table(round_to)
        return ranks, self._of_outputs(errors)

    def select_ranks(self, select: RankSelector) -> Ranks:
        """Ranks chosen on the spectra of the better side."""
        return self._planned.select_ranks(select)

    @property
    def spectrum(self) -> Tensor:
        """Singular values along the output channels of the better side, descending."""
        return self._planned.spectrum


def decompose(
    kind: type[Decomposition],
    weight: Tensor,
    groups: int,
    moments: LayerMoments | None,
    sweeps: int,
    like: Decomposition | None = None,
) -> Decomposition:
    """The decomposition of a weight by one method, as far with the data as held-out patches bear it out.

    Args:
        kind: the method's class.
        weight: ``(O, I/groups, kh, kw)`` or ``(O, I)``.
        groups: as in ``torch.nn.Conv2d``.
        moments: of the layer; without patches held out they are trusted, without any the weight alone counts.
        sweeps: see :class:`Decomposition`.
        like: a decomposition of the same weight and moments by another method, to share what can be.
    """
    if moments is not None and moments.held_out is not None:
        return Chosen(kind, weight, groups, moments, sweeps, like)
    return kind(weight, groups, moments, sweeps, None if like is None else like.metric)

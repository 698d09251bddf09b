"""Select the factors of a layer by their measured error on held-out data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from common.decomposition.als import ridge_candidates
from common.decomposition.base import Decomposition, Floats, Ranks, RankSelector, RankSteps
from common.decomposition.chain import by_group, compose, outputs_of
from common.decomposition.metric import Metric
from common.decomposition.moments import LayerMoments

SHARES = (0.25, 0.75)
"""About the fractions of the ranks at which data-aware and weight-only factors are compared."""
CLEAR_RATIO = 1.25
"""A variant is clearly better if its squared error is smaller by more than this factor at both ``SHARES``."""
ROUNDING_ERROR = 1e-10
"""A squared relative error of this size is only rounding."""


RIDGES = (1e-3, 1e-1)
"""Ridges to try on the second moment of patches, relative to the mean variance. A higher one trusts the data less."""


def rescaled(errors: Floats, predicted: Floats, measured: Floats) -> Floats:
    """Multiply predicted errors by the ratio of measured to predicted ones, which is known at a few points.

    Logarithms of ratios are interpolated over those of predicted errors. Where measured errors do not grow with
    predicted ones, all get the geometric mean of the ratios.

    Args:
        errors: predicted errors, of any shape.
        predicted: ``(K,)``, ascending and positive; without a point, the errors stay as they are.
        measured: ``(K,)``, positive.
    """
    if not len(predicted):
        return errors
    logarithms = np.log(measured / predicted)
    if np.any(np.diff(measured) < 0):  # an error that grows with the rank is noise
        logarithms[:] = logarithms.mean()
    with np.errstate(divide="ignore"):
        return errors * np.exp(np.interp(np.log(errors), np.log(predicted), logarithms))


class Factored(Protocol):
    """What gives the factors of a weight at some ranks, and the weight that they represent."""

    def factors(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """The weights of the layers, from input to output."""

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The weight that they represent, in the shape and dtype of the original."""


class FixedFactors:
    """Factors that were fitted at one selection of ranks.

    Args:
        factors: the weights of the layers, from input to output.
        groups: the number of groups of each.
        original: the weight that they approximate.
    """

    def __init__(self, factors: tuple[Tensor, ...], groups: int, original: Tensor) -> None:
        self._factors, self._groups, self._original = factors, groups, original

    def factors(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """The factors; ``ranks`` must be those of the fit."""
        return self._factors

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """Their product."""
        blocks = [by_group(factor, self._groups).double() for factor in self._factors]
        return compose(blocks).reshape(self._original.shape).to(self._original.dtype)


class HeldOut:
    """Measures the error of a layer's factors on its held-out patches.

    Args:
        weight: ``(O, I/groups, kh, kw)`` or ``(O, I)``.
        groups: as in ``torch.nn.Conv2d``.
        moments: the layer's moments, with held-out patches.
    """

    def __init__(self, weight: Tensor, groups: int, moments: LayerMoments) -> None:
        assert moments.held_out is not None
        self._weight, self._groups, self._moments = weight.detach(), groups, moments

    @property
    def _patches(self) -> Tensor:
        """The patches ``(N, I, kh, kw)``, centred since the bias corrects the mean; not cached, to save memory."""
        patches = self._moments.held_out
        assert patches is not None
        patches = patches.to(torch.promote_types(self._weight.dtype, torch.float32))
        return patches - self._moments.patch_mean.to(patches.dtype).flatten(0, 1)

    @cached_property
    def _outputs(self) -> Tensor:
        """The dense layer's outputs for the centred patches, without the bias, ``(N, O)``."""
        return outputs_of((self._weight,), self._patches, self._groups)

    @cached_property
    def cross(self) -> Tensor:
        """The moment ``E[Wp p^T]`` of the dense layer's outputs and its patches, ``(G, O/G, m)``, in float64."""
        assert self._moments.patch_covariance is not None
        weight = self._weight.reshape(self._groups, -1, self._moments.patch_covariance.shape[-1])
        return weight.double() @ self._moments.patch_covariance.double()

    @cached_property
    def rough_metric(self) -> Metric:
        """The weight-only metric in single precision, which is enough to see whether data helps."""
        shape = (self._groups, -1, *self._weight.shape[1:], *[1] * (4 - self._weight.dim()))
        return Metric(self._weight.reshape(shape), torch.float32)

    def errors(self, decomposition: Factored, ranks: Ranks) -> Tensor:
        """Squared errors of the factors at these ranks: ``||(W - W')p||^2`` of each patch, over ``E||Wp||^2``.

        Returns:
            ``(N,)``; all 0 if the weight maps every patch to zero.
        """
        energy = self._outputs.double().square().sum(1).mean()
        lost = self._outputs - outputs_of(decomposition.factors(ranks), self._patches, self._groups)
        return lost.double().square().sum(1) / torch.where(energy > 0, energy, 1.0)

    def fitted_error(self, decomposition: Factored, ranks: Ranks) -> float:
        """The squared error on the moment of whole patches, ``E||(W - W')p||^2``, up to a factor of the layer."""
        covariance, greatest = self._moments.patch_covariance, self._weight.abs().amax()
        assert covariance is not None
        lost = (self._weight - decomposition.reconstruct(ranks)) / torch.where(greatest > 0, greatest, 1.0)
        lost = lost.reshape(len(covariance), -1, covariance.shape[-1]).to(covariance.dtype)
        return float(((lost @ covariance) * lost).sum(dtype=torch.float64))

    def error(self, decomposition: Factored, ranks: Ranks) -> float:
        """The mean of :meth:`errors`, ``E||(W - W')p||^2 / E||Wp||^2``."""
        return float(self.errors(decomposition, ranks).mean())


class SelectedDecomposition(Decomposition):
    """A decomposition by one method that uses the data only where this lowers the error on held-out patches.

    There are two variants: data-aware, best for the moments, and weight-only, best for the weight. Each comes with and
    without the method's own sweeps, if it has any. The better one without is also improved by least squares on the
    moment of whole patches. Held-out patches choose among these, see :meth:`best`. If one variant is clearly better at
    both ``SHARES`` of the ranks, the other is not tried again. Tables, spectra and plans come from the preferred
    variant: the one with the smaller product of errors at both ``SHARES``. Its errors are rescaled to those measured
    there.

    Args:
        kind: the method's class.
        weight: see :class:`Decomposition`.
        groups: see :class:`Decomposition`.
        moments: the layer's moments, with held-out patches.
        sweeps: see :class:`Decomposition`.
        like: a decomposition of the same weight and moments by another method; this one shares its metric.
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
        self.gap_ranks, self.depthwise = kind.gap_ranks, kind.depthwise
        self._kind, self.has_sweeps = kind, kind.has_sweeps
        self.held_out: HeldOut = (
            like.held_out if isinstance(like, SelectedDecomposition) else HeldOut(weight, groups, moments)
        )
        self._best: dict[Ranks, Factored] = {}
        self._of_weight: list[Decomposition] = []

    def with_sweeps(self, sweeps: int) -> SelectedDecomposition:
        """Return a copy with another number of sweeps; both share what is computed already."""
        found = copy.copy(self)
        found.sweeps, found._best = sweeps, {}
        vars(found).pop("_swept", None)
        return found

    @classmethod
    def greatest_ranks(cls, inputs: int, outputs: int, kernel: tuple[int, ...]) -> Ranks:
        """Only the method's own class knows them.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("ask the method's own class")

    @cached_property
    def _data_aware(self) -> Decomposition:
        """The variant that is best for the moments."""
        return self._kind(self.original, self.groups, self.moments, metric=self.metric)

    @property
    def _weight_only(self) -> Decomposition:
        """The variant that is best for the weight; made once for all copies with other numbers of sweeps."""
        if not self._of_weight:
            self._of_weight.append(self._kind(self.original, self.groups))
        return self._of_weight[0]

    @cached_property
    def _swept(self) -> tuple[Decomposition, Decomposition]:
        """The data-aware and the weight-only variant, with sweeps."""
        data_aware = self._kind(self.original, self.groups, self.moments, self.sweeps, self.metric)
        return data_aware, self._kind(self.original, self.groups, None, self.sweeps)

    @cached_property
    def _measured(self) -> Floats:
        """Squared errors ``(2, 2)`` of the data-aware and the weight-only variant, at both ``SHARES``."""
        rough = self._kind(self.original, self.groups, metric=self.held_out.rough_metric)
        ranks = [self.near(share) for share in SHARES]
        errors = [[self.held_out.error(variant, r) for r in ranks] for variant in (self._data_aware, rough)]
        return np.array(errors) + ROUNDING_ERROR

    @cached_property
    def _variants(self) -> tuple[int, ...]:
        """0 (data-aware), 1 (weight-only) or both: the preferred one first, alone if it is clearly better."""
        ratios = self._measured[0] / self._measured[1]
        order = (0, 1) if ratios.prod() <= 1 else (1, 0)
        clear = ratios.max() * CLEAR_RATIO < 1 or ratios.min() > CLEAR_RATIO
        return order[:1] if clear else order

    @cached_property
    def _preferred(self) -> Decomposition:
        """The variant behind tables, spectra and plans."""
        return self._weight_only if self._variants[0] else self._data_aware

    def best(self, ranks: Ranks) -> Factored:
        """Find the best factors at these ranks by their errors on the held-out patches.

        Of swept and improved factors, those are best whose gain less its standard error is greatest, if it is a gain.
        """
        if ranks not in self._best:
            self._best[ranks] = self._preferred if ranks == self.max_ranks else self._measure_best(ranks)
        return self._best[ranks]

    def _measure_best(self, ranks: Ranks) -> Factored:
        """See :meth:`best`; nothing is measured if there is only one candidate."""
        unswept: list[Factored] = [self._weight_only if variant else self._data_aware for variant in self._variants]
        if len(unswept) == 1 and not (self.sweeps and self.has_sweeps):
            return unswept[0]
        measured = [(self.held_out.errors(candidate, ranks), candidate) for candidate in unswept]
        errors, best = min(measured, key=lambda pair: float(pair[0].mean()))
        bounds = []
        for candidate in (*self._with_own_sweeps(), *self._improved(best, ranks)):
            change = self.held_out.errors(candidate, ranks) - errors
            bounds.append((float(change.mean() + change.std() / len(change) ** 0.5), candidate))
        better = [candidate for bound, candidate in sorted(bounds, key=lambda pair: pair[0]) if bound < 0]
        # A ridge can raise the error even on the moment that was fitted. If what is held out does not show that, it is
        # only too few images.
        fitted = [candidate for candidate in better if isinstance(candidate, FixedFactors)]
        allowed = self.held_out.fitted_error(best, ranks) if fitted else 0.0
        for candidate in better:
            if candidate not in fitted or self.held_out.fitted_error(candidate, ranks) <= allowed:
                return candidate
        return best

    def _with_own_sweeps(self) -> Iterator[Factored]:
        """Yield the variants with sweeps of the method itself, if it has any."""
        if self.sweeps and self._kind.has_own_sweeps:
            yield from (self._swept[variant] for variant in self._variants)

    def _improved(self, start: Factored, ranks: Ranks) -> Iterator[Factored]:
        """Yield factors that were improved by least squares on the full second moment of patches, if it is known."""
        assert self.moments is not None
        if not (self.sweeps and self.has_sweeps) or self.moments.patch_covariance is None:
            return
        covariance, weight = self.moments.patch_covariance, self.metric.weight.double().flatten(2)
        ridges = [max(ridge, self.moments.shrinkage) for ridge in RIDGES]
        for factors in ridge_candidates(
            start.factors(ranks), covariance, self.held_out.cross, weight, ridges, self.sweeps
        ):
            yield FixedFactors(factors, self.groups, self.original)

    @cached_property
    def _knots(self) -> tuple[Floats, Floats]:
        """Predicted errors at both ``SHARES``, ascending, and the measured ones."""
        predicted = np.array([self._preferred.relative_error(self.near(share)) for share in SHARES])
        measured = np.sqrt(self._measured[list(self._variants)].min(axis=0))
        known = (measured**2 > 2 * ROUNDING_ERROR) & (predicted**2 > ROUNDING_ERROR)
        order = np.argsort(predicted[known])
        return predicted[known][order], measured[known][order]

    def _to_output_errors(self, errors: Floats) -> Floats:
        """Rescale predicted errors of the preferred variant to errors of the layer's output on data.

        Weight-only errors are those of the weight, and the metric of data-aware ones is only a model.
        """
        return rescaled(errors, *self._knots)

    @property
    def max_ranks(self) -> Ranks:
        """The method's maxima."""
        return self._data_aware.max_ranks

    def fraction(self, share: float) -> Ranks:
        """See :meth:`Decomposition.fraction`."""
        return self._data_aware.fraction(share)

    def near(self, share: float) -> Ranks:
        """See :meth:`Decomposition.near`."""
        return self._data_aware.near(share)

    def fit(self, ranks: Ranks) -> Ranks:
        """See :meth:`Decomposition.fit`."""
        return self._data_aware.fit(ranks)

    def factors(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """The factors with the least error on held-out patches."""
        ranks = self.check(ranks)
        return self.best(ranks).factors(ranks)

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The weight that :meth:`factors` represent."""
        ranks = self.check(ranks)
        return self.best(ranks).reconstruct(ranks)

    def relative_error(self, ranks: Ranks) -> float:
        """The predicted error of the layer's output without sweeps, as a fraction of its standard deviation."""
        return float(self._to_output_errors(np.array([self._preferred.relative_error(ranks)]))[0])

    def measured_error(self, ranks: Ranks) -> float:
        """The error of the layer's output on the held-out patches, as a fraction of its standard deviation."""
        ranks = self.check(ranks)
        return self.held_out.error(self.best(ranks), ranks) ** 0.5

    def lost_energy(self, ranks: Ranks) -> float:
        """The square of :meth:`relative_error`, times the output's variance."""
        return self._total * self.relative_error(ranks) ** 2

    def error_table(self, round_to: RankSteps = 1) -> tuple[Floats, Floats]:
        """See :meth:`Decomposition.error_table`; the errors are those of :meth:`relative_error`."""
        ranks, errors = self._preferred.error_table(round_to)
        return ranks, self._to_output_errors(errors)

    def select_ranks(self, select: RankSelector) -> Ranks:
        """Choose the ranks on the spectra of the preferred variant."""
        return self._preferred.select_ranks(select)

    @property
    def spectrum(self) -> Tensor:
        """The spectrum of the preferred variant, see :attr:`Decomposition.spectrum`."""
        return self._preferred.spectrum


def decompose(
    kind: type[Decomposition],
    weight: Tensor,
    groups: int,
    moments: LayerMoments | None,
    sweeps: int,
    like: Decomposition | None = None,
) -> Decomposition:
    """Decompose a weight by one method, with the data only where this lowers the error on held-out patches.

    Args:
        kind: the method's class.
        weight: ``(O, I/groups, kh, kw)`` or ``(O, I)``.
        groups: as in ``torch.nn.Conv2d``.
        moments: the layer's moments, or None to use the weight only. Moments without held-out patches are trusted.
        sweeps: see :class:`Decomposition`.
        like: a decomposition of the same weight and moments by another method; the new one shares its metric.
    """
    if moments is not None and moments.held_out is not None:
        return SelectedDecomposition(kind, weight, groups, moments, sweeps, like)
    return kind(weight, groups, moments, sweeps, None if like is None else like.metric)

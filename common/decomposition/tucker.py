"""Tucker-2: a small core between two channel bases."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from common.decomposition.base import DECOMPOSITIONS, Decomposition, Floats, Ranks, RankSelector, RankSteps
from common.decomposition.metric import pooled_spectrum
from common.decomposition.subspace import leading_subspace
from common.decomposition.unfolding import by_input, by_output

Parts = tuple[Tensor, Tensor, Tensor]


@DECOMPOSITIONS.add
class Tucker2(Decomposition):
    """``W ~ core x_O U_O x_I U_I`` by HOSVD (De Lathauwer 2000; Kim 2016 for CNNs), optionally with HOOI sweeps.

    The bases of the HOSVD are nested. The core at any ranks is therefore a corner of the full core, and one table
    holds the errors at all ranks. Sweeps of the higher-order orthogonal iteration (HOOI) find better bases at given
    ranks, without the bases for all ranks; swept bases serve those ranks only. With moments, sweeps leave the output
    basis as measured and only replace the input basis, by the best one for the leading output directions.

    Factors, with G groups: ``(G*r_in, I/G, 1, 1)``; the core ``(G*r_out, r_in, kh, kw)``, which takes the layer's
    stride, padding and dilation; ``(O, r_out, 1, 1)``, which takes its bias. Ranks: ``(r_in, r_out)``.
    """

    method = "tucker2"
    title = "Tucker-2"
    serves_transposed = True
    rank_names = ("r_in", "r_out")
    axes = ((False, False), (True, True), (False, False))
    has_sweeps = True
    has_own_sweeps = True
    _swept: tuple[Ranks, Parts] | None = None

    @classmethod
    def greatest_ranks(cls, inputs: int, outputs: int, kernel: tuple[int, ...]) -> Ranks:
        """The lesser side of each unfolding."""
        elements = math.prod(kernel)
        return min(inputs, outputs * elements), min(outputs, inputs * elements)

    @cached_property
    def max_ranks(self) -> Ranks:
        """Each mode's channels, at most the other mode's channels times the elements of the kernel."""
        outputs, inputs = self.grouped.shape[1:3]
        return self.fit((inputs, outputs))

    @cached_property
    def _input_basis(self) -> Tensor:
        """Input basis of the HOSVD, ``(G, I/G, R_in)``."""
        return self.metric.leading_basis(by_input(self.metric.weighted))

    @cached_property
    def _core(self) -> Tensor:
        """The core of the HOSVD at full ranks, ``(G, R_out, R_in, kh, kw)``."""
        return torch.einsum("grihw,gis->grshw", self.metric.weighted, self._input_basis)

    @cached_property
    def _corner_energies(self) -> Tensor:
        """The energy in each corner of the core, ``(R_out, R_in)``."""
        return self._core.square().sum(dim=(0, 3, 4), dtype=torch.float64).cumsum(0).cumsum(1)

    @property
    def spectrum(self) -> Tensor:
        """See :attr:`Decomposition.spectrum`."""
        return pooled_spectrum(by_output(self.metric.weighted))

    def parts(self, r_in: int, r_out: int) -> Parts:
        """The outer factors ``(G, O/G, r_out)`` and ``(G, r_in, I/G)``, and the core ``(G, r_out, r_in, kh, kw)``.

        The core is in the coordinates of the metric. Swept parts are cached until other ranks are asked for.
        """
        if not self.sweeps or (r_in, r_out) == self.max_ranks:
            core = self.corner(r_in, r_out)
            expand = self.metric.leading_rows(r_out)
            reduce = self._restore_inputs(self._input_basis[:, :, :r_in])
            return expand.to(self.working_dtype), reduce.to(self.working_dtype), core.to(self.working_dtype)
        if self._swept is None or self._swept[0] != (r_in, r_out):
            self._swept = (r_in, r_out), self._sweep(r_in, r_out)
        return self._swept[1]

    def corner(self, r_in: int, r_out: int) -> Tensor:
        """The core of the HOSVD at these ranks, ``(G, r_out, r_in, kh, kw)``."""
        return self._core[:, :r_out, :r_in]

    def _sweep(self, r_in: int, r_out: int) -> Parts:
        """Start from a sequentially truncated HOSVD (Vannieuwenhoven 2012), then optimise each basis for the other.

        The iteration is that of De Lathauwer, De Moor and Vandewalle (2000b). A weight without moments is swept in its
        own precision, at least single. Bases for all ranks are never computed.
        """
        if self.moments is not None:
            return self._fit_input_basis(r_in, r_out)
        tensor = self.grouped.to(self.working_dtype)

        def in_rows(full: Tensor) -> Tensor:
            return torch.einsum("goihw,gor->grihw", full, rows.to(full.dtype))

        def in_inputs(full: Tensor) -> Tensor:
            return torch.einsum("goihw,gis->goshw", full, inputs.to(full.dtype))

        rows = leading_subspace(tensor, by_output, r_out)
        inputs = leading_subspace(tensor, lambda full: by_input(in_rows(full)), r_in)
        for _ in range(self.sweeps):
            rows = leading_subspace(tensor, lambda full: by_output(in_inputs(full)), r_out, rows)
            reduced = in_rows(tensor)
            inputs = leading_subspace(reduced, by_input, r_in, inputs)
        core = torch.einsum("grihw,gis->grshw", reduced, inputs)
        return rows, self._restore_inputs(inputs), core

    def _fit_input_basis(self, r_in: int, r_out: int) -> Parts:
        """The leading rows of the metric, and the best input basis for them.

        The rows lie in the eigenbasis of the output covariance, which is exact. Sweeping them would minimise the norm
        of the metric, which is only a model; that loses more than it gains.
        """
        rows = self.metric.weighted[:, :r_out]
        inputs = self.metric.leading_basis(by_input(rows))[:, :, :r_in]
        core = torch.einsum("grihw,gis->grshw", rows, inputs)
        return self.metric.leading_rows(r_out), self._restore_inputs(inputs), core

    def _restore_inputs(self, basis: Tensor) -> Tensor:
        """Return an input basis ``(G, I/G, r_in)`` to the weight's coordinates, as a factor ``(G, r_in, I/G)``."""
        return self.metric.restore(basis.mT, "gri,gij->grj", "input")

    def pointwise_factors(self, r_in: int, r_out: int) -> tuple[Tensor, Tensor]:
        """The outer factors as 1x1 convolutions, ``(G*r_in, I/G, 1, 1)`` and ``(O, r_out, 1, 1)``."""
        expand, reduce, _ = self.parts(r_in, r_out)
        return (
            reduce.reshape(-1, self.shape[1], 1, 1).to(self.dtype),
            expand.reshape(self.shape[0], r_out, 1, 1).to(self.dtype),
        )

    def restore_core(self, core: Tensor) -> Tensor:
        """Return the spatial modes of a core ``(G, r_out, r_in, kh, kw)`` to the weight's coordinates."""
        core = self.metric.restore(core, "grshw,hk->grskw", "height")
        return self.metric.restore(core, "grshw,wl->grshl", "width")

    def expand_core(self, core: Tensor) -> Tensor:
        """Expand a core in the coordinates of the metric to a weight in the shape of the original."""
        expand, reduce, _ = self.parts(core.shape[2], core.shape[1])
        weight = torch.einsum("gor,grshw,gsi->goihw", expand, self.restore_core(core), reduce)
        return weight.reshape(self.shape).to(self.dtype)

    def factors(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """``(G*r_in, I/G, 1, 1)``, ``(G*r_out, r_in, kh, kw)`` and ``(O, r_out, 1, 1)``."""
        r_in, r_out = self.check(ranks)
        reduce, expand = self.pointwise_factors(r_in, r_out)
        core = self.restore_core(self.parts(r_in, r_out)[2])
        return reduce, core.flatten(0, 1).to(self.dtype), expand

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The weight projected on both bases, in the shape of the original."""
        return self.expand_core(self.parts(*self.check(ranks))[2])

    def lost_energy(self, ranks: Ranks) -> float:
        """The energy that the core does not hold at these ranks."""
        if not self.sweeps:
            return self.hosvd_loss(*ranks)
        if self.moments is None:  # in single precision, a difference of energies cannot resolve a small loss
            return float((self.original - self.reconstruct(ranks)).double().square().sum())
        return self._total - float(self.parts(*ranks)[2].square().sum(dtype=torch.float64))

    def hosvd_loss(self, r_in: int, r_out: int) -> float:
        """The energy lost at these ranks without sweeps."""
        return self._total - float(self._corner_energies[r_out - 1, r_in - 1])

    def fit(self, ranks: Ranks) -> Ranks:
        """Lower each rank to at most the other rank times the kernel's elements; a higher one adds nothing."""
        r_in, r_out = ranks
        elements = math.prod(self.kernel)
        return min(r_in, r_out * elements), min(r_out, r_in * elements)

    def error_table(self, round_to: RankSteps = 1) -> tuple[Floats, Floats]:
        """All pairs of allowed ranks, and their errors by HOSVD, which sweeps can only lower."""
        inputs, outputs = self.ladder(0, round_to), self.ladder(1, round_to)
        errors = self.errors_of(self._total - self._corner_energies[outputs - 1][:, inputs - 1].T)
        pairs = torch.cartesian_prod(inputs, outputs)
        elements = math.prod(self.kernel)
        usable = (pairs[:, 0] <= pairs[:, 1] * elements) & (pairs[:, 1] <= pairs[:, 0] * elements)
        return pairs[usable].double().numpy(), errors.flatten()[usable.numpy()]

    def select_ranks(self, select: RankSelector) -> Ranks:
        """Choose ``r_in`` and ``r_out``, each on the singular values of its own unfolding."""
        outputs, inputs = self.grouped.shape[1:3]
        elements = math.prod(self.kernel)
        r_in = select(pooled_spectrum(by_input(self._core)), max(inputs, outputs * elements))
        return self.fit((r_in, select(self.spectrum, max(outputs, inputs * elements))))

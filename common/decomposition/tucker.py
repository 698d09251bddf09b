"""Tucker-2: a small core between two channel bases."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.decomposition.base import Decomposition, Floats, Ranks, RankSelector
from common.decomposition.metric import leading_basis, pooled_spectrum


class Tucker2(Decomposition):
    """``W ~ core x_O U_O x_I U_I``: HOSVD (De Lathauwer 2000; Kim 2016 for CNNs), and HOOI sweeps when asked.

    The bases of the HOSVD are nested, so the core at any ranks is a corner of the full core, and the error at all
    ranks is one table. At given ranks, sweeps of the higher-order orthogonal iteration improve them further; those
    bases serve these ranks alone.

    Factors, with G groups: ``(G*r_in, I/G, 1, 1)``, the core ``(G*r_out, r_in, kh, kw)``, which takes the layer's
    stride, padding and dilation, and ``(O, r_out, 1, 1)`` with its bias. Ranks: ``(r_in, r_out)``.
    """

    method = "tucker2"
    rank_names = ("r_in", "r_out")
    axes = ((False, False), (True, True), (False, False))

    def _decompose(self) -> None:
        weighted = self.metric.weighted
        self._output_spectrum = pooled_spectrum(weighted.flatten(2))
        by_input = weighted.transpose(1, 2).flatten(2)
        self._input_basis = leading_basis(by_input)  # (G, I/G, R_in)
        self._input_spectrum = pooled_spectrum(self._input_basis.mT @ by_input)
        self._core = torch.einsum("grihw,gis->grshw", weighted, self._input_basis)  # (G, R_out, R_in, kh, kw)
        self._energy = self._core.square().sum(dim=(0, 3, 4)).cumsum(0).cumsum(1)
        self._swept: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self.max_ranks = (self._input_basis.shape[-1], self._core.shape[1])

    @property
    def spectrum(self) -> Tensor:
        """Singular values along the output channels, descending."""
        return self._output_spectrum

    def parts(self, r_in: int, r_out: int) -> tuple[Tensor, Tensor, Tensor]:
        """Both bases ``(G, R_out, r_out)`` and ``(G, I/G, r_in)`` and the core ``(G, r_out, r_in, kh, kw)``.

        All are in the coordinates of the metric. Those of the HOSVD are slices; swept ones are kept once made.
        """
        if not self.sweeps or (r_in, r_out) == self.max_ranks:
            core = self.corner(r_in, r_out)
            rows = torch.eye(self._core.shape[1], r_out, dtype=core.dtype, device=core.device)
            return rows.expand(len(core), -1, -1), self._input_basis[:, :, :r_in], core
        if (r_in, r_out) not in self._swept:
            self._swept.clear()  # swept bases serve one pair of ranks; the factors of one network are made in turn
            self._swept[r_in, r_out] = self._sweep(r_in, r_out)
        return self._swept[r_in, r_out]

    def corner(self, r_in: int, r_out: int) -> Tensor:
        """The core of the HOSVD at these ranks, ``(G, r_out, r_in, kh, kw)``."""
        return self._core[:, :r_out, :r_in]

    def _sweep(self, r_in: int, r_out: int) -> tuple[Tensor, Tensor, Tensor]:
        """Each basis in turn is made the best one given the other (De Lathauwer, De Moor and Vandewalle 2000b)."""
        weighted = self.metric.weighted
        by_rows = weighted[:, :r_out]
        for _ in range(self.sweeps):
            inputs = leading_basis(by_rows.transpose(1, 2).flatten(2))[:, :, :r_in]
            by_inputs = torch.einsum("grihw,gis->grshw", weighted, inputs)
            rows = leading_basis(by_inputs.flatten(2))[:, :, :r_out]
            by_rows = torch.einsum("grihw,grs->gsihw", weighted, rows)
        return rows, inputs, torch.einsum("grshw,grt->gtshw", by_inputs, rows)

    def outer_factors(self, r_in: int, r_out: int) -> tuple[Tensor, Tensor]:
        """The two channel factors in the coordinates of the weight, ``(G, r_in, I/G)`` and ``(G, O/G, r_out)``."""
        rows, inputs, _ = self.parts(r_in, r_out)
        return self.metric.restore(inputs.mT, "gri,gij->grj", "input"), self.metric.expand_rows(rows)

    def pointwise_factors(self, r_in: int, r_out: int) -> tuple[Tensor, Tensor]:
        """The same as 1x1 convolutions, ``(G*r_in, I/G, 1, 1)`` and ``(O, r_out, 1, 1)``."""
        reduce, expand = self.outer_factors(r_in, r_out)
        return (
            reduce.reshape(-1, self.shape[1], 1, 1).to(self.dtype),
            expand.reshape(self.shape[0], r_out, 1, 1).to(self.dtype),
        )

    def restore_core(self, core: Tensor) -> Tensor:
        """A core ``(G, r_out, r_in, kh, kw)`` with its spatial modes in the coordinates of the weight."""
        core = self.metric.restore(core, "grshw,hk->grskw", "height")
        return self.metric.restore(core, "grshw,wl->grshl", "width")

    def expand_core(self, core: Tensor) -> Tensor:
        """The weight behind a core that is in the coordinates of the metric, in the shape of the original."""
        r_out, r_in = core.shape[1:3]
        reduce, expand = self.outer_factors(r_in, r_out)
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

    def kept_energy(self, ranks: Ranks) -> float:
        """``||core||^2`` at these ranks."""
        r_in, r_out = ranks
        if self.sweeps:
            return float(self.parts(r_in, r_out)[2].square().sum())
        return float(self._energy[r_out - 1, r_in - 1])

    def fit(self, ranks: Ranks) -> Ranks:
        """A rank that is more than the other times the kernel's elements carries nothing: it is lowered to that."""
        r_in, r_out = ranks
        elements = self.weight.shape[3] * self.weight.shape[4]
        return min(r_in, r_out * elements), min(r_out, r_in * elements)

    def error_table(self, round_to: int = 1) -> tuple[Floats, Floats]:
        """Every pair of ranks, and its error by HOSVD, which sweeps can only lower."""
        inputs, outputs = self.ladder(0, round_to), self.ladder(1, round_to)
        errors = self.errors_of(self._energy[outputs - 1][:, inputs - 1].T)
        pairs = torch.cartesian_prod(inputs, outputs)
        elements = self.weight.shape[3] * self.weight.shape[4]
        usable = (pairs[:, 0] <= pairs[:, 1] * elements) & (pairs[:, 1] <= pairs[:, 0] * elements)
        return pairs[usable].double().numpy(), errors.flatten()[usable.numpy()]

    def select_ranks(self, select: RankSelector) -> Ranks:
        """``r_in`` and ``r_out``, each chosen on the singular values of its own unfolding."""
        outputs, inputs, *kernel = self.weight.shape[1:]
        elements = math.prod(kernel)
        r_in = select(self._input_spectrum, max(inputs, outputs * elements))
        return self.fit((r_in, select(self._output_spectrum, max(outputs, inputs * elements))))

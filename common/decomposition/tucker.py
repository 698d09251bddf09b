"""Tucker-2: a small core between two channel bases."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.decomposition.base import Decomposition, Floats, Ranks, RankSelector
from common.decomposition.metric import LayerMoments, leading_basis, pooled_spectrum


class Tucker2(Decomposition):
    """``W ~ core x_O U_O x_I U_I`` with the bases of a truncated HOSVD (De Lathauwer 2000; Kim 2016 for CNNs).

    The bases of the HOSVD are nested, so the core at any ranks is a corner of the full core, and the error at all
    ranks is one table. Factors, with G groups: ``(G*r_in, I/G, 1, 1)``, the core ``(G*r_out, r_in, kh, kw)``, which
    takes the layer's stride, padding and dilation, and ``(O, r_out, 1, 1)`` with its bias. Ranks: ``(r_in, r_out)``.
    """

    method = "tucker2"
    rank_names = ("r_in", "r_out")
    axes = ((False, False), (True, True), (False, False))

    def __init__(self, weight: Tensor, groups: int = 1, moments: LayerMoments | None = None) -> None:
        super().__init__(weight, groups, moments)
        weighted = self._metric.weighted
        self._output_spectrum = pooled_spectrum(weighted.flatten(2))
        by_input = weighted.transpose(1, 2).flatten(2)
        self._input_basis = leading_basis(by_input)  # (G, I/G, R_in)
        self._input_spectrum = pooled_spectrum(self._input_basis.mT @ by_input)
        self._core = torch.einsum("grihw,gis->grshw", weighted, self._input_basis)  # (G, R_out, R_in, kh, kw)
        self._energy = self._core.square().sum(dim=(0, 3, 4)).cumsum(0).cumsum(1)
        self.max_ranks = (self._input_basis.shape[-1], self._core.shape[1])

    @property
    def spectrum(self) -> Tensor:
        """Singular values along the output channels, descending."""
        return self._output_spectrum

    def core(self, r_in: int, r_out: int) -> Tensor:
        """``(G, r_out, r_in, kh, kw)``, in the coordinates of the metric."""
        return self._core[:, :r_out, :r_in]

    def outer_factors(self, r_in: int, r_out: int) -> tuple[Tensor, Tensor]:
        """The two 1x1 factors ``(G*r_in, I/G, 1, 1)`` and ``(O, r_out, 1, 1)``."""
        reduce = self._metric.restore(self._input_basis[:, :, :r_in].mT, "gri,gij->grj", "input")
        expand = self._metric.output_basis[:, :, :r_out]
        return (
            reduce.reshape(-1, self.shape[1], 1, 1).to(self.dtype),
            expand.reshape(self.shape[0], r_out, 1, 1).to(self.dtype),
        )

    def restore_core(self, core: Tensor) -> Tensor:
        """A core ``(G, r_out, r_in, kh, kw)`` in the coordinates of the weight."""
        core = self._metric.restore(core, "grshw,hk->grskw", "height")
        return self._metric.restore_rows(self._metric.restore(core, "grshw,wl->grshl", "width"))

    def expand_core(self, core: Tensor) -> Tensor:
        """The weight behind a core that is in the coordinates of the metric, in the shape of the original."""
        r_out, r_in = core.shape[1:3]
        reduce = self._metric.restore(self._input_basis[:, :, :r_in].mT, "gri,gij->grj", "input")
        expand = self._metric.output_basis[:, :, :r_out]
        weight = torch.einsum("gor,grshw,gsi->goihw", expand, self.restore_core(core), reduce)
        return weight.reshape(self.shape).to(self.dtype)

    def factors(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """``(G*r_in, I/G, 1, 1)``, ``(G*r_out, r_in, kh, kw)`` and ``(O, r_out, 1, 1)``."""
        r_in, r_out = self.check(ranks)
        reduce, expand = self.outer_factors(r_in, r_out)
        return reduce, self.restore_core(self.core(r_in, r_out)).flatten(0, 1).to(self.dtype), expand

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The weight projected on both bases, in the shape of the original."""
        return self.expand_core(self.core(*self.check(ranks)))

    def kept_energy(self, ranks: Ranks) -> float:
        """``||core||^2`` at these ranks."""
        r_in, r_out = ranks
        return float(self._energy[r_out - 1, r_in - 1])

    def error_table(self, round_to: int = 1) -> tuple[Floats, Floats]:
        """Every pair of ranks, and its error."""
        inputs, outputs = self.ladder(0, round_to), self.ladder(1, round_to)
        errors = self.errors_of(self._energy[outputs - 1][:, inputs - 1].T)
        return torch.cartesian_prod(inputs, outputs).double().numpy(), errors.flatten()

    def select_ranks(self, select: RankSelector) -> Ranks:
        """``r_in`` and ``r_out``, each chosen on the singular values of its own unfolding."""
        outputs, inputs, *kernel = self.weight.shape[1:]
        elements = math.prod(kernel)
        return (
            select(self._input_spectrum, max(inputs, outputs * elements)),
            select(self._output_spectrum, max(outputs, inputs * elements)),
        )

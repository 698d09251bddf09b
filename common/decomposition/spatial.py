"""Spatial SVD: split a kernel between its height and its width."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from common.decomposition.base import DECOMPOSITIONS, OneRank, Ranks


@DECOMPOSITIONS.add
class SpatialSVD(OneRank):
    """Truncated SVD of W, reshaped to ``(I*kh, kw*O)`` (Jaderberg, Vedaldi and Zisserman 2014, scheme 2).

    Factors, with G groups: ``(G*r, I/G, kh, 1)``, then ``(O, r, 1, kw)``, which takes the bias. Each takes the stride,
    padding and dilation of its own axis. Ranks: ``(r,)``.
    """

    method = "spatial_svd"
    title = "Spatial SVD"
    axes = ((True, False), (False, True))
    has_sweeps = True

    @classmethod
    def greatest_ranks(cls, inputs: int, outputs: int, kernel: tuple[int, ...]) -> Ranks:
        """The lesser side of the matrix."""
        return (min(inputs * kernel[0], outputs * kernel[1]),)

    @property
    def sides(self) -> tuple[int, int]:
        """A group's input channels times the kernel's height, and its output channels times the kernel's width."""
        return self.shape[1] * self.kernel[0], self.shape[0] // self.groups * self.kernel[1]

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor]:
        """Left basis of the matrix, ``(G, I*kh, R)``, and the matrix in that basis."""
        matrix = self.metric.weighted.permute(0, 2, 3, 4, 1).flatten(3).flatten(1, 2)  # (G, I*kh, kw*R_out)
        basis = self.metric.leading_basis(matrix)
        return basis, basis.mT @ matrix

    @property
    def rows(self) -> Tensor:
        """See :attr:`OneRank.rows`."""
        return self._split[1]

    def _grouped_factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """The factors as ``(G, r, I/G, kh)`` and ``(G, O/G, r, kw)``, in float64."""
        inputs, (height, width) = self.shape[1], self.kernel
        vertical = self._split[0][:, :, :rank].mT.unflatten(2, (inputs, height))
        vertical = self.metric.restore(vertical, "grih,gij->grjh", "input")
        vertical = self.metric.restore(vertical, "grih,hk->grik", "height")
        horizontal = self.rows[:, :rank].unflatten(2, (width, -1)).permute(0, 3, 1, 2)  # (G, R_out, r, kw)
        horizontal = self.metric.restore(horizontal, "gsrw,wl->gsrl", "width")
        horizontal = self.metric.restore_rows(horizontal.unsqueeze(3)).squeeze(3)
        return vertical, torch.einsum("gos,gsrw->gorw", self.metric.output_basis, horizontal)

    def factors(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """``(G*r, I/G, kh, 1)`` and ``(O, r, 1, kw)``."""
        vertical, horizontal = self._grouped_factors(*self.check(ranks))
        return vertical.flatten(0, 1).unsqueeze(3).to(self.dtype), horizontal.flatten(0, 1).unsqueeze(2).to(self.dtype)

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The rank-r weight, in the shape of the original."""
        vertical, horizontal = self._grouped_factors(*self.check(ranks))
        return torch.einsum("grih,gorw->goihw", vertical, horizontal).reshape(self.shape).to(self.dtype)

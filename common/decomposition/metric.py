"""In which norm a decomposition is best: of the weight alone, or of what the layer puts out on data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-6
"""Share of the mean variance that is added to every variance, so that directions the data never takes stay exact."""


@dataclass(frozen=True)
class LayerMoments:
    """What a layer sees and puts out on calibration data; covariances are centred, all in float64, for G groups.

    The covariance of an input patch is taken as the product of those of its channels, rows and columns: the joint one
    of a 3x3 layer with 512 channels would be 4608 x 4608, and only the product lets every factor keep its shape.

    Attributes:
        output_covariance: ``(G, O/G, O/G)``.
        patch_mean: ``(G, I/G, kh, kw)``, mean of the input that each element of the kernel meets.
        input_covariance: ``(G, I/G, I/G)`` of the channels; None for a layer without a kernel, whose SVD needs none.
        height_covariance: ``(kh, kh)`` of a patch's rows, up to a factor, or None.
        width_covariance: ``(kw, kw)`` of its columns, up to a factor, or None.
    """

    output_covariance: Tensor
    patch_mean: Tensor
    input_covariance: Tensor | None = None
    height_covariance: Tensor | None = None
    width_covariance: Tensor | None = None


class Metric:
    """The weight in coordinates in which the plain Frobenius norm is the error that is to be small.

    Without moments that is the norm of the weight itself. With them it is ``E||(W - W')p||^2`` over centred patches p:
    output rows lie in the eigenbasis of the covariance of the outputs, each scaled to the variance that was measured
    along it (for the SVD this alone is optimal, Zhang et al. 2015, section 3.1), and the other modes are multiplied
    by the roots of their covariances.

    Args:
        weight: ``(G, O, I, kh, kw)``, O and I those of one group.
        moments: of the layer, or None.

    Attributes:
        output_basis: ``(G, O, R)``, orthonormal, leading first; it spans the weight's rows.
        projected: the weight in that basis, ``(G, R, I, kh, kw)``.
        weighted: ``projected`` in the coordinates of the norm, of the same shape.
    """

    def __init__(self, weight: Tensor, moments: LayerMoments | None) -> None:
        self._inverse: dict[str, Tensor] = {}
        if moments is None:
            self.output_basis = leading_basis(weight.flatten(2))
            self.projected = self.weighted = self._project(weight)
            return
        self.output_basis, variances = _output_basis(weight, moments.output_covariance)
        self.projected = self._project(weight)
        weighted = self.projected
        for mode, covariance, equation in (
            ("input", moments.input_covariance, "grihw,gij->grjhw"),
            ("height", moments.height_covariance, "grihw,hk->grikw"),
            ("width", moments.width_covariance, "grihw,wl->grihl"),
        ):
            if covariance is not None:
                root, self._inverse[mode] = _roots(covariance)
                weighted = torch.einsum(equation, weighted, root)
        energy = weighted.square().sum(dim=(2, 3, 4))
        scale = (variances / energy).sqrt()
        scale = torch.where(energy > 0, scale, 1.0)[:, :, None, None, None]
        self._inverse["output"] = 1 / scale
        self.weighted = weighted * scale

    def _project(self, weight: Tensor) -> Tensor:
        return torch.einsum("gor,goihw->grihw", self.output_basis, weight)

    def restore(self, tensor: Tensor, equation: str, mode: str) -> Tensor:
        """``tensor`` with one of its modes back in the weight's own coordinates.

        Args:
            tensor: a factor in the coordinates of the norm.
            equation: of ``torch.einsum``, whose second operand is the inverse root, ``(G, I, I)`` for ``input``,
                ``(kh, kh)`` for ``height`` and ``(kw, kw)`` for ``width``.
            mode: ``input``, ``height`` or ``width``.
        """
        return torch.einsum(equation, tensor, self._inverse[mode]) if mode in self._inverse else tensor

    def expand_rows(self, rows: Tensor) -> Tensor:
        """``(G, R, r)`` of combinations of the weighted rows to channels of the output, ``(G, O, r)``."""
        scaled = rows * self._inverse["output"][:, :, :, 0, 0] if "output" in self._inverse else rows
        return self.output_basis @ scaled

    def restore_rows(self, core: Tensor) -> Tensor:
        """``(G, r, a, b, c)`` with its rows, the first r of the output basis, back in their own scale."""
        return core * self._inverse["output"][:, : core.shape[1]] if "output" in self._inverse else core


def _output_basis(weight: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors ``(G, O, R)`` of the outputs' covariance, and the variances along them ``(G, R)``.

    They are looked for in the span of the weight's rows, which holds all outputs. A trace of the weight's own Gram
    matrix is mixed in: it orders the directions in which the data does not vary (dead channels, constant inputs, fewer
    samples than channels).
    """
    matrix = weight.flatten(2)
    span = leading_basis(matrix)
    gram, covariance = (span.mT @ m @ span for m in (matrix @ matrix.mT, covariance))
    total, own = (m.diagonal(dim1=1, dim2=2).sum() for m in (covariance, gram))
    total, own = (torch.where(trace > 0, trace, 1.0) for trace in (total, own))
    variances, vectors = torch.linalg.eigh(covariance / total + RIDGE * gram / own)
    # Rounding can turn what is nothing negative; it must stay small beside the rest, or its rows would count as much.
    return span @ vectors.flip(-1), variances.flip(-1).clamp(min=RIDGE**2) * total


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a covariance of unit mean variance, with the ridge, and its inverse."""
    variances, vectors = torch.linalg.eigh(covariance)
    mean = variances.clamp(min=0).mean(-1, keepdim=True)
    relative = torch.where(mean > 0, variances.clamp(min=0) / mean.clamp(min=1e-300), 1.0) + RIDGE
    root = (vectors * relative.sqrt().unsqueeze(-2)) @ vectors.mT
    inverse = (vectors * relative.rsqrt().unsqueeze(-2)) @ vectors.mT
    return root, inverse


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

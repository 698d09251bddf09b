"""In which norm a decomposition is best: of the weight alone, or of what the layer puts out on data."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

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

    def to(self, device: torch.device) -> LayerMoments:
        """The same on ``device``."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: tensor.to(device) for name, tensor in held.items() if tensor is not None})


class Metric:
    """The weight in coordinates in which the plain Frobenius norm is the error that is to be small.

    This one is for a weight without data: the norm is that of the weight itself, and only its rows are turned, into
    their leading basis. Nothing is computed before it is asked for.

    Args:
        weight: ``(G, O, I, kh, kw)``, O and I those of one group.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    @cached_property
    def weight(self) -> Tensor:
        """The weight in float64."""
        return self._weight.double()

    @cached_property
    def output_basis(self) -> Tensor:
        """``(G, O, R)``, orthonormal, leading first; it spans the weight's rows."""
        return leading_basis(self.weight.flatten(2))

    @cached_property
    def projected(self) -> Tensor:
        """The weight in that basis, ``(G, R, I, kh, kw)``."""
        return torch.einsum("gor,goihw->grihw", self.output_basis, self.weight)

    @property
    def weighted(self) -> Tensor:
        """``projected`` in the coordinates of the norm, of the same shape."""
        return self.projected

    def restore(self, tensor: Tensor, equation: str, mode: str) -> Tensor:
        """``tensor`` with one of its modes back in the weight's own coordinates.

        Args:
            tensor: a factor in the coordinates of the norm.
            equation: of ``torch.einsum``, whose second operand is the inverse root, ``(G, I, I)`` for ``input``,
                ``(kh, kh)`` for ``height`` and ``(kw, kw)`` for ``width``.
            mode: ``input``, ``height`` or ``width``.
        """
        return tensor

    def expand_rows(self, rows: Tensor) -> Tensor:
        """``(G, R, r)`` of combinations of the weighted rows to channels of the output, ``(G, O, r)``."""
        return self.output_basis @ rows

    def leading_rows(self, count: int) -> Tensor:
        """What :meth:`expand_rows` makes of the first ``count`` weighted rows themselves, ``(G, O, count)``."""
        return self.output_basis[:, :, :count]

    def restore_rows(self, core: Tensor) -> Tensor:
        """``(G, r, a, b, c)`` with its rows, the first r of the output basis, back in their own scale."""
        return core


class DataMetric(Metric):
    """The norm is ``E||(W - W')p||^2`` over centred patches p of the layer's data.

    Output rows lie in the eigenbasis of the covariance of the outputs, each scaled to the variance that was measured
    along it (for the SVD this alone is optimal, Zhang et al. 2015, section 3.1), and the other modes are multiplied
    by the roots of their covariances.

    Args:
        weight: ``(G, O, I, kh, kw)``, O and I those of one group.
        moments: of the layer.
    """

    def __init__(self, weight: Tensor, moments: LayerMoments) -> None:
        super().__init__(weight)
        self._moments = moments

    @cached_property
    def _output(self) -> tuple[Tensor, Tensor]:
        return _output_basis(self.weight, self._moments.output_covariance)

    @cached_property
    def output_basis(self) -> Tensor:
        """``(G, O, R)``, orthonormal, leading first; it spans the weight's rows."""
        return self._output[0]

    @cached_property
    def _roots(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mode -> the root of its covariance and the root's inverse."""
        moments = self._moments
        covariances = {
            "input": moments.input_covariance,
            "height": moments.height_covariance,
            "width": moments.width_covariance,
        }
        return {mode: _root(covariance) for mode, covariance in covariances.items() if covariance is not None}

    @cached_property
    def _scaled(self) -> tuple[Tensor, Tensor]:
        """The weighted tensor, and the scale of each of its rows, ``(G, R, 1, 1, 1)``."""
        weighted = self.projected
        equations = {"input": "grihw,gij->grjhw", "height": "grihw,hk->grikw", "width": "grihw,wl->grihl"}
        for mode, (root, _) in self._roots.items():
            weighted = torch.einsum(equations[mode], weighted, root)
        energy = weighted.square().sum(dim=(2, 3, 4))
        scale = torch.where(energy > 0, (self._output[1] / energy).sqrt(), 1.0)[:, :, None, None, None]
        return weighted * scale, scale

    @property
    def weighted(self) -> Tensor:
        """``projected`` in the coordinates of the norm, of the same shape."""
        return self._scaled[0]

    def restore(self, tensor: Tensor, equation: str, mode: str) -> Tensor:
        """See :meth:`Metric.restore`."""
        return torch.einsum(equation, tensor, self._roots[mode][1]) if mode in self._roots else tensor

    def expand_rows(self, rows: Tensor) -> Tensor:
        """See :meth:`Metric.expand_rows`."""
        return self.output_basis @ (rows / self._scaled[1][:, :, :, 0, 0])

    def leading_rows(self, count: int) -> Tensor:
        """See :meth:`Metric.leading_rows`."""
        return self.output_basis[:, :, :count] / self._scaled[1][:, None, :count, 0, 0, 0]

    def restore_rows(self, core: Tensor) -> Tensor:
        """See :meth:`Metric.restore_rows`."""
        return core / self._scaled[1][:, : core.shape[1]]


def _output_basis(weight: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors ``(G, O, R)`` of the outputs' covariance, and the variances along them ``(G, R)``.

    They are looked for in the span of the weight's rows, which holds all outputs. A trace of the weight's own Gram
    matrix is mixed in: it orders the directions in which the data does not vary (dead channels, constant inputs, fewer
    samples than channels).
    """
    matrix = weight.flatten(2)
    total = _trace(covariance)
    if matrix.shape[1] > matrix.shape[2]:
        span = leading_basis(matrix)
        basis, variances = _output_basis((span.mT @ matrix)[:, :, :, None, None], span.mT @ covariance @ span)
        return span @ basis, variances
    single = matrix.float()  # enough for a trace of it
    gram = (single @ single.mT).double()
    variances, vectors = torch.linalg.eigh(covariance / total + RIDGE * gram / _trace(gram))
    # Rounding can turn what is nothing negative; it must stay small beside the rest, or its rows would count as much.
    return vectors.flip(-1), variances.flip(-1).clamp(min=RIDGE**2) * total


def _trace(matrices: Tensor) -> Tensor:
    """That of all groups together, or 1 where it is 0."""
    trace = matrices.diagonal(dim1=1, dim2=2).sum()
    return torch.where(trace > 0, trace, 1.0)


def _root(covariance: Tensor) -> tuple[Tensor, Tensor]:
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

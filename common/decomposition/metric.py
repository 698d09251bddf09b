"""In which norm a decomposition is best: of the weight alone, or of what the layer puts out on data."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from common.decomposition.moments import RIDGE, LayerMoments


class Metric:
    """The weight in coordinates in which the plain Frobenius norm is the error that is to be small.

    This one is for a weight without data: the norm is that of the weight itself, and only its rows are turned, into
    their leading basis. Nothing is computed before it is asked for.

    Args:
        weight: ``(G, O, I, kh, kw)``, O and I those of one group.
        dtype: of all that is computed.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype = torch.float64) -> None:
        self._weight, self._dtype = weight, dtype

    @cached_property
    def weight(self) -> Tensor:
        """The weight in the metric's dtype."""
        return self._weight.to(self._dtype)

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

    def leading_rows(self, count: int) -> Tensor:
        """What turns the first ``count`` weighted rows back into channels of the output, ``(G, O, count)``."""
        return self.output_basis[:, :, :count]

    def restore_rows(self, core: Tensor) -> Tensor:
        """``(G, r, a, b, c)`` with its rows, the first r of the output basis, back in their own scale."""
        return core


class DataMetric(Metric):
    """The norm is ``E||(W - W')p||^2`` over centred patches p of the layer's data.

    Output rows lie in the eigenbasis of the covariance of the outputs, each scaled to the variance that was measured
    along it (for the SVD this alone is optimal, Zhang et al. 2015, section 3.1), and the other modes are multiplied
    by the roots of their covariances. The fewer patches were seen, the more the covariances of outputs and input
    channels are shrunk toward those of isotropic inputs, under which the norm is that of the weight.

    Args:
        weight: ``(G, O, I, kh, kw)``, O and I those of one group.
        moments: of the layer.
    """

    def __init__(self, weight: Tensor, moments: LayerMoments) -> None:
        super().__init__(weight)
        self._moments = moments

    @cached_property
    def _output(self) -> tuple[Tensor, Tensor]:
        return _output_basis(self.weight, self._moments.output_covariance, self._moments.shrinkage)

    @cached_property
    def output_basis(self) -> Tensor:
        """``(G, O, R)``, orthonormal, leading first; it spans the weight's rows."""
        return self._output[0]

    @cached_property
    def _roots(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mode -> the root of its covariance and the root's inverse."""
        moments = self._moments
        covariances = {
            "input": (moments.input_covariance, moments.shrinkage),
            "height": (moments.height_covariance, RIDGE),
            "width": (moments.width_covariance, RIDGE),
        }
        return {mode: _root(found, share) for mode, (found, share) in covariances.items() if found is not None}

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

    def leading_rows(self, count: int) -> Tensor:
        """See :meth:`Metric.leading_rows`."""
        return self.output_basis[:, :, :count] / self._scaled[1][:, None, :count, 0, 0, 0]

    def restore_rows(self, core: Tensor) -> Tensor:
        """See :meth:`Metric.restore_rows`."""
        return core / self._scaled[1][:, : core.shape[1]]


def _output_basis(weight: Tensor, covariance: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors ``(G, O, R)`` of the outputs' covariance, and the variances along them ``(G, R)``.

    They are looked for in the span of the weight's rows, which holds all outputs. A share of the weight's own Gram
    matrix, the covariance of the outputs of isotropic inputs, is mixed in: where there are many samples it only orders
    the directions in which the data does not vary (dead channels, constant inputs).
    """
    matrix = weight.flatten(2)
    total = _trace(covariance)
    if matrix.shape[1] > matrix.shape[2]:
        span = leading_basis(matrix)
        basis, variances = _output_basis((span.mT @ matrix)[:, :, :, None, None], span.mT @ covariance @ span, share)
        return span @ basis, variances
    single = matrix.float()  # enough for a trace of it
    gram = (single @ single.mT).double()
    variances, vectors = torch.linalg.eigh((1 - share) * covariance / total + share * gram / _trace(gram))
    # Rounding can turn what is nothing negative; it must stay small beside the rest, or its rows would count as much.
    return vectors.flip(-1), variances.flip(-1).clamp(min=RIDGE**2) * total


def _trace(matrices: Tensor) -> Tensor:
    """That of all groups together, or 1 where it is 0."""
    trace = matrices.diagonal(dim1=1, dim2=2).sum()
    return torch.where(trace > 0, trace, 1.0)


def _root(covariance: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The symmetric root of a covariance, of unit mean variance and with a share of the identity, and its inverse."""
    variances, vectors = torch.linalg.eigh(covariance)
    mean = variances.clamp(min=0).mean(-1, keepdim=True)
    relative = torch.where(mean > 0, variances.clamp(min=0) / mean.clamp(min=1e-300), 1.0)
    relative = (1 - share) * relative + share
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

"""The norm that a decomposition minimises: of the weight itself, or of the layer's output on data."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from common.decomposition.moments import RIDGE, LayerMoments

LARGE = 2**20
"""From this many elements of one group's weight, eigenvectors are computed in single precision."""
WIDE = 2048
"""With data, weights take single precision from so many input and output channels only, to save memory."""
SINGLE_RANGE = 1e-6, 1e6
"""The greatest element of a weight whose squares single precision holds, with room for sums and small directions."""


def fits_single_precision(weight: Tensor) -> bool:
    """Whether single precision holds the squares of a weight; see `SINGLE_RANGE`."""
    greatest = max(map(abs, map(float, weight.aminmax())))
    return greatest == 0 or SINGLE_RANGE[0] <= greatest <= SINGLE_RANGE[1]


def solver_dtype(weight: Tensor) -> torch.dtype:
    """Dtype in which the eigenvectors of a weight's unfoldings are computed.

    A large weight takes single precision, which is faster and needs less memory, unless it is in double precision
    itself or its squares leave the range of single precision. The basis is then orthonormal to about 2e-6, and
    directions whose energy is below 1e-7 of the greatest are not told apart. Energies are measured in the basis found,
    so predicted errors are those of the factors.

    Args:
        weight: ``(G, O, I, kh, kw)``.
    """
    large = weight.dtype != torch.float64 and weight[0].numel() >= LARGE
    return torch.float32 if large and fits_single_precision(weight) else torch.float64


class Metric:
    """A weight in coordinates whose Frobenius norm is the error to minimise.

    This class serves a weight without data. Its norm is that of the weight; only the output channels are rotated, into
    their leading basis. Everything is computed lazily.

    Args:
        weight: ``(G, O, I, kh, kw)``, with O and I the channels of one group.
        dtype: the dtype of all results; None takes that of the solver, see :func:`solver_dtype`.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype | None = None) -> None:
        self._weight, self._solver_dtype = weight, solver_dtype(weight)
        self._dtype = dtype or self._solver_dtype
        if self._dtype != torch.float64 and not fits_single_precision(weight):
            self._dtype = torch.float64

    @cached_property
    def weight(self) -> Tensor:
        """The weight in the metric's dtype."""
        return self._weight.to(self._dtype)

    @cached_property
    def output_basis(self) -> Tensor:
        """Orthonormal basis ``(G, O, R)`` of the weight's output space, leading direction first."""
        return self.leading_basis(self.weight.flatten(2))

    def leading_basis(self, unfolding: Tensor) -> Tensor:
        """See :func:`leading_basis`; in the solver's precision if that is lower than the unfolding's."""
        return leading_basis(self._for_solver(unfolding)).to(unfolding.dtype)

    def _for_solver(self, unfolding: Tensor) -> Tensor:
        """The unfolding in the solver's precision, or in double where single precision does not hold it."""
        return unfolding.to(self._solver_dtype) if fits_single_precision(unfolding) else unfolding.double()

    def energies(self, unfolding: Tensor) -> Tensor:
        """Squared singular values ``(G, min(n, m))`` of matrices ``(G, n, m)``, descending, in float64."""
        matrix = self._for_solver(unfolding)
        gram = matrix @ matrix.mT if matrix.shape[1] <= matrix.shape[2] else matrix.mT @ matrix
        return eigh(gram, vectors=False)[0].flip(-1).double().clamp(min=0)

    @cached_property
    def projected(self) -> Tensor:
        """The weight in the output basis, ``(G, R, I, kh, kw)``."""
        return torch.einsum("gor,goihw->grihw", self.output_basis, self.weight)

    @property
    def weighted(self) -> Tensor:
        """``projected`` in the coordinates of the norm, ``(G, R, I, kh, kw)``."""
        return self.projected

    def restore(self, tensor: Tensor, equation: str, mode: str) -> Tensor:
        """Return one mode of ``tensor`` to the weight's own coordinates.

        Args:
            tensor: a factor in the coordinates of the norm.
            equation: a ``torch.einsum`` equation. Its second operand is the inverse root: ``(G, I, I)`` for
                ``input``, ``(kh, kh)`` for ``height``, ``(kw, kw)`` for ``width``.
            mode: ``input``, ``height`` or ``width``.
        """
        return tensor

    def leading_rows(self, count: int) -> Tensor:
        """The map ``(G, O, count)`` from the first ``count`` weighted rows to the output channels."""
        return self.output_basis[:, :, :count]

    def restore_rows(self, core: Tensor) -> Tensor:
        """Return the rows of ``core`` to their own scale.

        Args:
            core: ``(G, r, a, b, c)``; its rows belong to the first r directions of the output basis.
        """
        return core


class DataMetric(Metric):
    """The metric whose norm is ``E||(W - W')p||^2`` over centred patches p of the layer's data.

    The output rows lie in the eigenbasis of the output covariance. Each is scaled to the variance measured along it;
    for the SVD this alone is optimal (Zhang et al. 2015, section 3.1). The other modes are multiplied by the roots of
    their covariances. The covariances of outputs and input channels are shrunk toward those of isotropic inputs, under
    which the norm is that of the weight; fewer patches mean more shrinkage.

    Args:
        weight: ``(G, O, I, kh, kw)``, with O and I the channels of one group.
        moments: the layer's moments.
    """

    def __init__(self, weight: Tensor, moments: LayerMoments) -> None:
        # Roots of covariances span many orders: only a layer without them can do with less than double precision.
        single = moments.input_covariance is None and fits_single_precision(moments.output_covariance)
        super().__init__(weight, None if single else torch.float64)
        if min(weight.shape[1:3]) < WIDE:
            self._dtype = self._solver_dtype = torch.float64
        self._moments = moments

    @cached_property
    def _output(self) -> tuple[Tensor, Tensor]:
        """See :func:`_output_eigenbasis`."""
        found = _output_eigenbasis(self.weight, self._moments.output_covariance, self._moments.shrinkage)
        return found[0].to(self._dtype), found[1].to(self._dtype)

    @cached_property
    def output_basis(self) -> Tensor:
        """See :attr:`Metric.output_basis`."""
        return self._output[0]

    @cached_property
    def _roots(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mode -> the root of its covariance, and the inverse of that root."""
        moments = self._moments
        covariances = {
            "input": (moments.input_covariance, moments.shrinkage),
            "height": (moments.height_covariance, RIDGE),
            "width": (moments.width_covariance, RIDGE),
        }
        return {
            mode: _root_and_inverse(covariance, share)
            for mode, (covariance, share) in covariances.items()
            if covariance is not None
        }

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
        """See :attr:`Metric.weighted`."""
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


def _output_eigenbasis(weight: Tensor, covariance: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors ``(G, O, R)`` of the output covariance, and the variances along them ``(G, R)``.

    They span the weight's output space, which holds all outputs. The Gram matrix of the weight is mixed in at
    ``share``; it is the output covariance for isotropic inputs. With many samples, it only orders the directions in
    which the data does not vary (dead channels, constant inputs). Variances span many orders of magnitude, so the
    solver works in double precision whatever the weight's size.
    """
    matrix = weight.flatten(2)
    total = _total_trace(covariance)
    if matrix.shape[1] > matrix.shape[2]:
        span = leading_basis(matrix).double()
        projected = (span.mT @ matrix.double())[:, :, :, None, None]
        basis, variances = _output_eigenbasis(projected, span.mT @ covariance @ span, share)
        return span @ basis, variances
    if fits_single_precision(matrix):
        matrix = matrix.float()  # precise enough for the mixed-in Gram matrix
    gram = (matrix @ matrix.mT).double()
    mixed = (1 - share) * covariance / total + share * gram / _total_trace(gram)
    variances, vectors = eigh(mixed)
    # Rounding can make a zero variance negative. The floor must stay small, or such rows would count like the others.
    return vectors.flip(-1), variances.flip(-1).clamp(min=RIDGE**2) * total


def _total_trace(matrices: Tensor) -> Tensor:
    """Sum of the traces of all groups; 1 if the sum is 0."""
    trace = matrices.diagonal(dim1=1, dim2=2).sum()
    return torch.where(trace > 0, trace, 1.0)


def _root_and_inverse(covariance: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Symmetric root of a covariance, and the inverse of that root.

    The covariance is first scaled to a mean variance of 1, then mixed with the identity at ``share``.
    """
    variances, vectors = torch.linalg.eigh(covariance)
    mean = variances.clamp(min=0).mean(-1, keepdim=True)
    relative = torch.where(mean > 0, variances.clamp(min=0) / mean.clamp(min=1e-300), 1.0)
    relative = (1 - share) * relative + share
    root = (vectors * relative.sqrt().unsqueeze(-2)) @ vectors.mT
    inverse = (vectors * relative.rsqrt().unsqueeze(-2)) @ vectors.mT
    return root, inverse


def leading_basis(unfolding: Tensor) -> Tensor:
    """Left singular vectors of a batch of matrices, leading vector first.

    They come from the Gram matrix, which is many times cheaper than a full SVD. If n > m, a QR factorization comes
    first, because the eigenvectors of a rank-deficient n x n Gram matrix would lose the smallest singular directions.

    Args:
        unfolding: ``(G, n, m)``.

    Returns:
        ``(G, n, min(n, m))``, with orthonormal columns that span the matrix's columns to machine precision.
    """
    rows, columns = unfolding.shape[-2:]
    if rows > columns:
        q, r = torch.linalg.qr(unfolding)
        return q @ leading_basis(r)
    return eigh(unfolding @ unfolding.mT)[1].flip(-1)


def eigh(symmetric: Tensor, vectors: bool = True) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors, ascending; in double precision if the algorithm does not converge in single.

    Args:
        symmetric: ``(G, n, n)``.
        vectors: whether to compute the eigenvectors, else they are empty.
    """

    def solve(matrix: Tensor) -> tuple[Tensor, Tensor]:
        if vectors:
            return tuple(torch.linalg.eigh(matrix))
        return torch.linalg.eigvalsh(matrix), matrix.new_empty(0)

    try:
        values, basis = solve(symmetric)
        if symmetric.dtype == torch.float64 or bool(basis.isfinite().all() & values.isfinite().all()):
            return values, basis
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch documents it
        if symmetric.dtype == torch.float64:
            raise
    values, basis = solve(symmetric.double())
    return values.to(symmetric.dtype), basis.to(symmetric.dtype)


def pooled_spectrum(projected: Tensor) -> Tensor:
    """Singular values, pooled over groups, from the row norms of ``basis.T @ matrix``.

    Args:
        projected: ``(G, R, m)``.

    Returns:
        ``(R,)``, made descending, because eigenvectors whose values differ only by rounding come in any order.
    """
    return projected.square().sum(dim=(0, 2), dtype=torch.float64).sqrt().cummin(0).values

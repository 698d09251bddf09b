"""Find the leading subspace of a matrix at one given rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.decomposition.metric import leading_basis
from common.environment import has_bfloat16

EXACT_ROWS = 128
"""Up to this many rows, a full eigendecomposition is cheaper."""
MAX_FLATNESS = 2.0
"""A spectrum is flat if the mean square of its eigenvalues is at most this many times their squared mean."""
MIN_EIGENVALUE = 0.05
"""The least eigenvalue allowed in a subspace that is iterated, as a fraction of the mean eigenvalue. A subspace that
reaches below it has no flat spectrum (dead filters, say), and the polynomial would overflow single precision."""
DEGREE = 8
"""Degree of the polynomial. Each degree costs one product with the Gram matrix."""


def leading_subspace(
    tensor: Tensor, unfold: Callable[[Tensor], Tensor], rank: int, start: Tensor | None = None
) -> Tensor:
    """Find an orthonormal basis of the directions that hold most of the energy of a batch of matrices.

    The weights of wide layers have flat spectra: thousands of directions have nearly the same energy. An eigensolver
    spends most of its work on telling these apart, which gains nothing. For flat spectra only the subspace is
    iterated, by Chebyshev polynomials of the Gram matrix that damp the smaller eigenvalues (Zhou, Saad, Tiago and
    Chelikowsky 2006). All eigenvalues then have one order of magnitude, so bfloat16 is precise enough for the matrix
    and its Gram matrix, where the device computes in it: each entry sums so many products that their rounding errors
    average out. A matrix with any other spectrum, and any matrix in double precision, gets its exact singular vectors.

    Args:
        tensor: the tensor that is unfolded.
        unfold: returns the matrices ``(G, n, m)`` of ``tensor``, or of its copy in bfloat16, in the dtype it gets.
        rank: at most ``min(n, m)``.
        start: a basis ``(G, n, rank)`` near the result.

    Returns:
        ``(G, n, rank)``.
    """
    if tensor.dtype == torch.float32:
        matrices = unfold(tensor.bfloat16() if has_bfloat16(tensor.device) else tensor)
        rows, columns = matrices.shape[-2:]
        if EXACT_ROWS < rows <= columns and rank < rows:
            gram = (matrices @ matrices.mT).float()
            trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
            flat = (trace > 0) & (rows * gram.square().sum((-2, -1)) <= MAX_FLATNESS * trace.square())
            if bool(flat.all()):  # a matrix that is zero, or zero in single precision, has no flat spectrum
                if start is None:
                    draw = torch.randn(rows, rank, generator=torch.Generator().manual_seed(0)).to(gram)
                    start = torch.linalg.qr(gram @ draw).Q
                basis = _filtered_basis(gram, start, MIN_EIGENVALUE * trace / rows)
                if basis is not None:
                    return basis
    return leading_basis(unfold(tensor))[:, :, :rank]


def _filtered_basis(gram: Tensor, basis: Tensor, min_eigenvalue: Tensor) -> Tensor | None:
    """Apply a Chebyshev polynomial that grows fast above the basis' least eigenvalue and is small below it.

    Args:
        gram: ``(G, n, n)``, symmetric.
        basis: ``(G, n, r)``, orthonormal.
        min_eigenvalue: ``(G,)``.

    Returns:
        The new basis ``(G, n, r)``; None if the least eigenvalue is below ``min_eigenvalue``.
    """
    image = gram @ basis
    least = torch.linalg.eigvalsh(basis.mT @ image)[:, 0]  # a Ritz value: at most the r-th greatest eigenvalue
    if not bool(((least >= min_eigenvalue) & (least > 0)).all()):
        return None
    centre = (least / 2)[:, None, None]
    previous, current = basis, image / centre - basis
    for _ in range(DEGREE - 1):
        previous, current = current, 2 * (gram @ current / centre - current) - previous
    return torch.linalg.qr(current).Q

"""The leading subspace of a matrix when only a given rank of it is wanted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.decomposition.metric import leading_basis
from common.environment import has_bfloat16

EXACT = 128
"""Up to so many rows all eigenvectors cost less than looking for some of them."""
FLAT = 2.0
"""A spectrum is flat when the mean square of its eigenvalues is at most this many times their squared mean."""
WEAKEST = 0.05
"""Of the mean eigenvalue: a subspace that reaches below it is no matter of flat spectra (filters that died, say), and
the polynomial would grow beyond what single precision holds."""
DEGREE = 8
"""Of the polynomial: each more costs one product with the Gram matrix."""


def leading_subspace(
    tensor: Tensor, unfold: Callable[[Tensor], Tensor], rank: int, start: Tensor | None = None
) -> Tensor:
    """An orthonormal basis ``(G, n, rank)`` of the directions in which a batch of matrices has most of its energy.

    Weights of wide layers have flat spectra: thousands of directions of nearly the same energy. Telling each from the
    next is most of the work of an eigensolver and gains nothing, so for these the subspace alone is iterated, by
    Chebyshev polynomials of the Gram matrix that damp what lies below (Zhou, Saad, Tiago and
    Chelikowsky 2006); as all eigenvalues are of one order, bfloat16 serves for the matrix and its Gram matrix where
    there is arithmetic for it: each entry is a sum of so many products that their rounding averages out. Any other
    matrix, and any in double precision, gets its exact singular vectors.

    Args:
        tensor: what the matrices come from.
        unfold: makes them, ``(G, n, m)``, of the tensor or of its rounding to bfloat16, in the same precision.
        rank: at most ``min(n, m)``.
        start: a basis ``(G, n, rank)`` near the one that is looked for.
    """
    if tensor.dtype == torch.float32:
        rough = unfold(tensor.bfloat16() if has_bfloat16(tensor.device) else tensor)
        rows, columns = rough.shape[-2:]
        if EXACT < rows <= columns and rank < rows:
            gram = (rough @ rough.mT).float()
            trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
            flat = (trace > 0) & (rows * gram.square().sum((-2, -1)) <= FLAT * trace.square())
            if bool(flat.all()):  # of nothing, or of what single precision takes for nothing, no spectrum is flat
                if start is None:
                    draw = torch.randn(rows, rank, generator=torch.Generator().manual_seed(0)).to(gram)
                    start = torch.linalg.qr(gram @ draw).Q
                found = _filtered(gram, start, WEAKEST * trace / rows)
                if found is not None:
                    return found
    return leading_basis(unfold(tensor))[:, :, :rank]


def _filtered(gram: Tensor, basis: Tensor, weakest: Tensor) -> Tensor | None:
    """The basis after a Chebyshev polynomial that grows fast above the least eigenvalue it has, and is small below.

    None where that eigenvalue is below the weakest that is allowed.

    Args:
        gram: ``(G, n, n)``, symmetric.
        basis: ``(G, n, r)``, orthonormal.
        weakest: ``(G,)``.
    """
    image = gram @ basis
    least = torch.linalg.eigvalsh(basis.mT @ image)[:, 0]  # a Ritz value: at most the r-th greatest eigenvalue
    if not bool(((least >= weakest) & (least > 0)).all()):
        return None
    centre = (least / 2)[:, None, None]
    previous, current = basis, image / centre - basis
    for _ in range(DEGREE - 1):
        previous, current = current, 2 * (gram @ current / centre - current) - previous
    return torch.linalg.qr(current).Q

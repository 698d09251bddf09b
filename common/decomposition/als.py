"""Improve the factors of a layer by alternating least squares on the full second moment of its input patches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from common.decomposition.chain import as_dense, by_group, compose, is_depthwise, kernel_of

IMPROVING_SWEEPS = 2
"""Sweeps that improve factors by default. Each later one gains less than the one before, in the same time."""
SOLVER_STEPS = 4
"""Conjugate-gradient steps for a factor that others follow. The preconditioner makes a few steps enough."""
SINGLE_PRECISION_SIZE = 1024
"""From this size of the moment, conjugate gradients run in single precision, which is faster."""
PRECONDITIONER_RIDGE = 1e-4
JITTERS = (1e-10, 1e-7, 1e-4)
"""Ridges to try until a Cholesky factorization succeeds, as fractions of the mean variance."""
EXACT_OUTPUTS = 512
"""Up to this many outputs, their leading directions come from a full eigendecomposition."""
SUBSPACE_STEPS = 6
"""Steps of the subspace iteration for more outputs; it starts at the present factor's columns."""


def ridge_candidates(
    factors: Sequence[Tensor],
    inputs: Tensor,
    cross: Tensor,
    prior: Tensor,
    ridges: Sequence[float],
    sweeps: int,
) -> Iterator[tuple[Tensor, ...]]:
    """Lower ``E||y - W'p||^2`` over the factors of W', with p an input patch and y the target output.

    Each sweep goes from the first factor to the last. A factor is the solution of a linear least-squares problem while
    the others are fixed: exactly for the last, by preconditioned conjugate gradients for the others. If the last
    factor is a 1x1 convolution, the last two are fitted together, by reduced-rank regression (Izenman 1975), whose
    closed form is the optimum for both. In a chain with depthwise factors, only the first and the last factor are
    fitted. The error never rises from step to step, apart from rounding.

    Each ridge pulls the product toward a prior; the caller chooses on held-out data. All factors are fitted with the
    first ridge. The others only change the factors of the last step.

    Args:
        factors: weights ``(o, c, kh, kw)``, from input to output, of G groups each; for a Linear ``(o, c)``. They are
            not changed.
        inputs: ``(G, m, m)``, the second moment ``E[p p^T]`` of the patches, m = I/G * kh * kw.
        cross: ``(G, O/G, m)``, ``E[y p^T]``. For the outputs of a dense weight W it is ``W inputs``.
        prior: the weight at which the ridge has no effect, ``(G, O/G, m)``.
        ridges: at least one, relative to the mean variance of the inputs.
        sweeps: number of sweeps with the first ridge; 0 fits only the factors of the last step.

    Yields:
        New factors with the shapes and dtypes of the old ones, for each ridge in order.
    """
    blocks = [by_group(factor, len(inputs)).double() for factor in factors]
    sizes = [_odd_size(block) for block in blocks]
    blocks = [block / size for block, size in zip(blocks, sizes, strict=True)]
    grid = kernel_of([block.flatten(0, 1) for block in blocks])
    mean = inputs.diagonal(dim1=1, dim2=2).double().mean()
    scale = torch.where(mean > 0, mean, 1.0)  # single precision cannot hold moments of any size
    unit = mean / scale  # of the ridges; 0 if the inputs are 0
    prior = prior.double() / math.prod(sizes)
    target = cross.double() / scale / math.prod(sizes) + ridges[0] * unit * prior
    moment = inputs.to(torch.float64, copy=True).div_(scale)
    moment.diagonal(dim1=1, dim2=2).add_(ridges[0] * unit)

    def restored(blocks: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(
            (block * size).flatten(0, 1).reshape(factor.shape).to(factor.dtype)
            for block, size, factor in zip(blocks, sizes, factors, strict=True)
        )

    inner = sweeps > 0 and len(blocks) > _fitted_together(blocks)  # else one exact step is the optimum
    for _ in range(sweeps if inner else 1):
        last = _sweep(blocks, moment, target, grid, inner)
    yield restored(blocks)
    if len(ridges) > 1:
        del moment  # it is large
        gram, prior = _ridge_at_last_step(blocks, prior, grid)
        for ridge in ridges[1:]:
            more, fitted = (ridge - ridges[0]) * unit, list(blocks)
            _fit_last(fitted, _with_ridge(last[0], more * gram), last[1] + more * prior)
            yield restored(fitted)


def fits_in_one_step(factors: Sequence[Tensor], groups: int) -> bool:
    """Whether the last step of a sweep fits all factors, see :func:`ridge_candidates`."""
    blocks = [by_group(factor, groups) for factor in factors]
    return len(blocks) == _fitted_together(blocks)


def ridge_candidates_of_rows(
    factors: Sequence[Tensor], rows: Tensor, outputs: Tensor, prior: Tensor, ridges: Sequence[float]
) -> Iterator[tuple[Tensor, ...]]:
    """What :func:`ridge_candidates` yields, from fewer patches than a patch has elements.

    The least-squares solution differs from the prior only in the space of the patches, so matrices of N x N take the
    place of those of m x m: the dual form of ridge regression (Saunders et al. 1998).

    Args:
        factors: as in :func:`ridge_candidates`; one step fits all of them.
        rows: ``(G, N, m)``, the patches.
        outputs: ``(G, N, O/G)``, the target outputs.
        prior: the weight at which the ridge has no effect, ``(G, O/G, m)``.
        ridges: relative to the mean variance of the inputs.

    Yields:
        New factors with the shapes and dtypes of the old ones, for each ridge in order.
    """
    blocks = [by_group(factor, len(rows)).double() for factor in factors]
    rows, outputs, prior = rows.double(), outputs.double(), prior.double()
    count, unit = rows.shape[1], rows.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
    values, directions = torch.linalg.eigh(rows @ rows.mT / count)
    lost = directions.mT @ (outputs - rows @ prior.mT) / count
    cross = outputs.mT @ rows / count
    for ridge in ridges:
        weighted = directions @ (lost / (values.clamp(min=0) + ridge * unit).unsqueeze(2))
        full = prior + weighted.mT @ rows
        if len(blocks) == 1:
            fitted = [full.reshape(blocks[0].shape)]
        else:
            fitted = _of_reduced_rank(blocks[0], blocks[1], full, cross + ridge * unit * prior)
        yield tuple(
            block.flatten(0, 1).reshape(factor.shape).to(factor.dtype)
            for block, factor in zip(fitted, factors, strict=True)
        )


def _odd_size(block: Tensor) -> float:
    """The power of two near a factor's greatest element, where the products of single precision could overflow.

    Returns:
        1 for the usual sizes.
    """
    greatest = float(block.abs().amax())
    usual = greatest == 0 or 1e-3 <= greatest <= 1e3
    return 1.0 if usual else 2.0 ** math.frexp(greatest)[1]


def _fitted_together(blocks: Sequence[Tensor]) -> int:
    """The number of factors that the last step of a sweep fits."""
    return 2 if blocks[-1].shape[3:] == (1, 1) and len(blocks) > 1 and not _has_depthwise(blocks) else 1


def _has_depthwise(blocks: Sequence[Tensor]) -> bool:
    """Whether a factor is depthwise; then only the first and the last one are fitted."""
    return any(is_depthwise(after, before.shape[1]) for before, after in pairwise(blocks))


def _sweep(
    blocks: list[Tensor], moment: Tensor, target: Tensor, grid: tuple[int, int], inner: bool
) -> tuple[Tensor, Tensor]:
    """Fit all factors once, in place; without ``inner``, only those of the last step.

    Returns:
        The moment and the target of the last step.
    """
    if _has_depthwise(blocks):
        if inner:
            following = [as_dense(blocks[1], blocks[0].shape[1]), *blocks[2:]]
            blocks[0] = _fit_inner(blocks[0], following, moment, target, grid)
        seen = _seen_by_last(blocks)
        moment, target = seen @ moment @ seen.mT, target @ seen.mT
    else:
        for index in range(len(blocks) - _fitted_together(blocks)):
            if inner:
                blocks[index] = _fit_inner(blocks[index], blocks[index + 1 :], moment, target, grid)
            moment, target, grid = _pass_through(blocks[index], moment, target, grid)
    _fit_last(blocks, moment, target)
    return moment, target


def _fit_last(blocks: list[Tensor], moment: Tensor, target: Tensor) -> None:
    """Fit the factors of the last step, in place, given the moment and the target of the patches that they see."""
    if _fitted_together(blocks) == 2:
        blocks[-2:] = _reduced_rank_regression(blocks[-2], blocks[-1], moment, target)
    else:
        blocks[-1] = _solve(moment, target).reshape(blocks[-1].shape)


def _seen_by_last(blocks: Sequence[Tensor]) -> Tensor:
    """The map ``(G, r, m)`` from patches to the inputs of the last factor, a 1x1 convolution."""
    return compose(blocks[:-1]).flatten(2)


def _ridge_at_last_step(blocks: Sequence[Tensor], prior: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What the identity and a prior become at the last step.

    Args:
        blocks: the factors.
        prior: ``(G, O, m)``.
        grid: height and width of the patches.

    Returns:
        The identity passed through the factors before the last step, ``(G, r, r)`` for the channels, since places stay
        independent; and the prior, in the form of the last step's target.
    """
    if _has_depthwise(blocks):
        seen = _seen_by_last(blocks)
        return seen @ seen.mT, prior @ seen.mT
    channels = blocks[0].shape[2]
    gram = torch.eye(channels, dtype=prior.dtype, device=prior.device).expand(len(prior), -1, -1)
    for factor in blocks[: len(blocks) - _fitted_together(blocks)]:
        gram = torch.einsum("gfcbe,gcd,gjdbe->gfj", factor, gram, factor)
        prior = _contract(factor, prior.mT, grid).mT
        grid = grid[0] // factor.shape[3], grid[1] // factor.shape[4]
    return gram, prior


def _with_ridge(moment: Tensor, gram: Tensor) -> Tensor:
    """Add ``gram``, ``(G, r, r)``, to a moment ``(G, r * places, r * places)`` at equal places."""
    found = moment.clone()
    by_place = (gram.shape[1], moment.shape[1] // gram.shape[1])
    found.unflatten(2, by_place).unflatten(1, by_place).diagonal(dim1=2, dim2=4).add_(gram.unsqueeze(3))
    return found


def _solve(moment: Tensor, target: Tensor) -> Tensor:
    """Return ``target @ inverse(moment)`` for ``(G, q, q)`` and ``(G, O, q)``, with the least ridge that works."""
    size = moment.shape[-1]
    mean = moment.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=1e-300)[:, None, None]
    eye = torch.eye(size, dtype=moment.dtype, device=moment.device)
    for jitter in JITTERS:
        root, failed = torch.linalg.cholesky_ex(moment + jitter * mean * eye)
        if not bool(failed.any()):
            return torch.cholesky_solve(target.mT, root).mT
    return target @ torch.linalg.pinv(moment, hermitian=True)


def _reduced_rank_regression(inner: Tensor, outer: Tensor, moment: Tensor, target: Tensor) -> list[Tensor]:
    """The best last two factors, given the moment of the patches that the inner one sees.

    Args:
        inner: ``(G, r, c, kh, kw)``.
        outer: ``(G, O, r, 1, 1)``.
        moment: ``(G, q, q)``, q = c * kh * kw.
        target: ``(G, O, q)``.

    Returns:
        Both factors, in the same shapes; the outer one has orthonormal columns.
    """
    return _of_reduced_rank(inner, outer, _solve(moment, target), target)


def _of_reduced_rank(inner: Tensor, outer: Tensor, full: Tensor, target: Tensor) -> list[Tensor]:
    """The same, given the best weight of full rank, ``(G, O, q)``."""
    explained = full @ target.mT  # the covariance of its outputs
    basis = _leading(explained, inner.shape[1], outer.flatten(2))
    return [(basis.mT @ full).reshape(inner.shape), basis.reshape(outer.shape)]


def _leading(covariance: Tensor, rank: int, start: Tensor) -> Tensor:
    """Leading eigenvectors ``(G, O, rank)`` of a covariance ``(G, O, O)``; near ``start`` if O is large."""
    symmetric = (covariance + covariance.mT) / 2
    if len(symmetric[0]) <= EXACT_OUTPUTS or 2 * rank > len(symmetric[0]):
        return torch.linalg.eigh(symmetric).eigenvectors.flip(-1)[:, :, :rank]
    basis = torch.linalg.qr(start).Q
    for _ in range(SUBSPACE_STEPS):
        basis = torch.linalg.qr(symmetric @ basis).Q
    return basis


def _pass_through(
    factor: Tensor, moment: Tensor, target: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Replace the patches of a factor's input by those of its output.

    Args:
        factor: ``(G, r, c, kh, kw)``; its kernel covers an axis of the patch or has size 1 there.
        moment: ``(G, m, m)``, m = c * height * width.
        target: ``(G, O, m)``.
        grid: height and width of the patches.

    Returns:
        The moment ``(G, n, n)``, the target ``(G, O, n)`` and the grid of the factor's outputs.
    """
    half = _contract(factor, moment, grid)
    after = (grid[0] // factor.shape[3], grid[1] // factor.shape[4])
    return _contract(factor, half.mT, grid), _contract(factor, target.mT, grid).mT, after


def _contract(factor: Tensor, columns: Tensor, grid: tuple[int, int]) -> Tensor:
    """Apply a factor to the patches in the columns: ``(G, m, n)`` to ``(G, r * height * width, n)``."""
    kh, kw = factor.shape[3:]
    split = columns.unflatten(1, (factor.shape[2], kh, grid[0] // kh, kw, grid[1] // kw))
    return torch.einsum("gfcbe,gcbhewn->gfhwn", factor, split).flatten(1, 3)


def _fit_inner(
    factor: Tensor, following: Sequence[Tensor], moment: Tensor, target: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Fit one factor by conjugate gradients, given those that follow it.

    Args:
        factor: ``(G, r, c, kh, kw)``.
        following: the factors after it, ``(G, o, i, a, b)`` each.
        moment: ``(G, m, m)``, of the patches that the factor sees.
        target: ``(G, O, m)``.
        grid: height and width of these patches.
    """
    if moment.shape[-1] >= SINGLE_PRECISION_SIZE and factor.dtype == torch.float64:
        single = (factor.float(), [each.float() for each in following], moment.float(), target.float())
        return _fit_inner(*single, grid).double()
    kh, kw = factor.shape[3:]
    after = compose(following)  # (G, O, r, a, b)
    # Only directions of the output that the later factors reach matter: a triangular factor of theirs is enough.
    reached = _triangular(compose([*following[:-1], _triangular(following[-1])]))

    def widened(value: Tensor, following: Tensor) -> Tensor:
        return torch.einsum("gofad,gfcbe->gocabde", following, value).flatten(2)

    def narrowed(weight: Tensor, following: Tensor) -> Tensor:
        (a, d) = following.shape[3:]
        split = weight.unflatten(2, (factor.shape[2], a, kh, d, kw))
        return torch.einsum("gocabde,gofad->gfcbe", split, following)

    condition = _Preconditioner(after, moment, (factor.shape[2], kh, grid[0] // kh, kw, grid[1] // kw))
    residual = narrowed(target, after) - narrowed(widened(factor, reached) @ moment, reached)
    direction = conditioned = condition(residual)
    size = start = float((residual * conditioned).sum())
    for _ in range(SOLVER_STEPS):
        image = narrowed(widened(direction, reached) @ moment, reached)
        curvature = float((direction * image).sum())
        if curvature <= 0 or size <= 1e-12 * start:
            break
        step = size / curvature
        factor, residual = factor + step * direction, residual - step * image
        conditioned = condition(residual)
        size, before = float((residual * conditioned).sum()), size
        direction = conditioned + size / before * direction
    return factor


def _triangular(factor: Tensor) -> Tensor:
    """Return ``(G, n, i, a, b)`` with the Gram matrix of a factor ``(G, O, i, a, b)``; n is at most i * a * b."""
    if factor.shape[1] <= factor[0, 0].numel():
        return factor
    root = torch.linalg.qr(factor.flatten(2)).R
    return root.unflatten(2, factor.shape[2:])


class _Preconditioner:
    """The inverse of a Kronecker product near the normal equations of one factor: outputs times inputs."""

    def __init__(self, after: Tensor, moment: Tensor, split: tuple[int, ...]) -> None:
        outputs = torch.einsum("gofad,gopad->gfp", after, after)
        grid = moment.unflatten(1, split).unflatten(6, split)
        inputs = torch.einsum("gcbhewdfhiw->gcbedfi", grid).flatten(4).flatten(1, 3)
        self._outputs, self._inputs = _inverse(outputs), _inverse(inputs)

    def __call__(self, residual: Tensor) -> Tensor:
        return (self._outputs @ residual.flatten(2) @ self._inputs).reshape(residual.shape)


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse of a positive semidefinite ``(G, n, n)``, with a small ridge."""
    mean = matrix.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=torch.finfo(matrix.dtype).tiny ** 0.5)[:, None, None]
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(matrix + PRECONDITIONER_RIDGE * mean * eye)[0])

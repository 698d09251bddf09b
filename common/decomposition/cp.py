"""CP: a sum of rank-one tensors, whose kernel factors are depthwise convolutions."""

from __future__ import annotations

import math
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.decomposition.base import (
    DECOMPOSITIONS,
    Decomposition,
    Floats,
    Ranks,
    RankSelector,
    RankSteps,
)
from common.decomposition.metric import pooled_spectrum
from common.decomposition.unfolding import by_output

KNOTS = 8
"""Number of ranks at which the weight is decomposed to predict the errors at all ranks."""
PHASES = ((1e-4, 25), (1e-7, 5))
"""The ridge on the factors of a tensor of norm 1, and the largest number of iterations with it. Without a ridge, large
components of opposite signs can diverge; the last iterations, with little, remove most of its bias."""
TOLERANCE = 1e-4
"""Iterations end when the squared error falls by less than this fraction."""


class Components(NamedTuple):
    """R rank-one tensors for each group; their sum approximates the weight.

    Attributes:
        outputs: ``(G, O, R)``.
        inputs: ``(G, I, R)``.
        heights: ``(G, kh, R)``.
        widths: ``(G, kw, R)``.
    """

    outputs: Tensor
    inputs: Tensor
    heights: Tensor
    widths: Tensor

    def tensor(self) -> Tensor:
        """The sum, ``(G, O, I, kh, kw)``."""
        kernels = torch.einsum("ghr,gwr->ghwr", self.heights, self.widths)
        left = torch.einsum("gor,ghwr->gohwr", self.outputs, kernels)
        return torch.einsum("gohwr,gir->goihw", left, self.inputs)

    def joined(self, others: Components) -> Components:
        """These components, then the others."""
        return Components(*(torch.cat(pair, dim=2) for pair in zip(self, others, strict=True)))

    def leading(self, count: int) -> Components:
        """The first ``count`` components."""
        return Components(*(factor[:, :, :count] for factor in self))


@DECOMPOSITIONS.add
class CP(Decomposition):
    """``W ~ sum_r o_r x i_r x h_r x w_r`` (Lebedev et al. 2015), by alternating least squares.

    Factors, with G groups: 1x1 ``(G*R, I/G, 1, 1)``; the depthwise ``(G*R, 1, kh, 1)`` and ``(G*R, 1, 1, kw)``, each
    with the stride, padding and dilation of its own axis; 1x1 ``(O, R, 1, 1)``, which takes the bias. Ranks: ``(R,)``.

    CP has no bases that serve all ranks. It is computed at ``KNOTS`` ranks up to the greatest at which the factors are
    smaller than the weight. Each continues from the one below, so errors fall from knot to knot. Errors between knots
    are interpolated; factors there continue from the knot below. Above the last knot, components of single kernel
    elements are added, which are exact at the greatest rank. With moments, the components are those of the weight in
    the coordinates of the metric.
    """

    method = "cp"
    title = "CP"
    rank_names = ("rank",)
    axes = ((False, False), (True, False), (False, True), (False, False))
    depthwise = (False, True, True, False)
    gap_ranks = (0, 0, 0)
    interpolates = True
    most_elements = 2**17
    has_sweeps = True

    @classmethod
    def greatest_ranks(cls, inputs: int, outputs: int, kernel: tuple[int, ...]) -> Ranks:
        """One component for each kernel element and each singular value of its matrix of channels."""
        return (min(inputs, outputs) * math.prod(kernel),)

    @property
    def max_ranks(self) -> Ranks:
        """See :meth:`greatest_ranks`, in the coordinates of the metric."""
        outputs, inputs = self._tensor.shape[1:3]
        return (min(inputs, outputs) * math.prod(self.kernel),)

    def fraction(self, share: float) -> Ranks:
        """The fraction ``share`` of the greatest rank at which the factors are smaller; the maximum if it is 1."""
        return self.max_ranks if share == 1 else (max(1, round(share * self._knots[-1])),)

    def near(self, share: float) -> Ranks:
        """The knot nearest to the fraction ``share``; any other rank would have to be decomposed first."""
        (rank,) = self.fraction(share)
        return (min(self._knots, key=lambda knot: abs(knot - rank)),)

    @cached_property
    def _scale(self) -> float:
        """The largest element of the weight in the coordinates of the metric; 1 for a zero weight."""
        return float(self.metric.weighted.abs().max()) or 1.0

    @cached_property
    def _tensor(self) -> Tensor:
        """The weight in the coordinates of the metric, over ``_scale``, ``(G, R_out, I, kh, kw)``."""
        scaled = self.metric.weighted.double() / self._scale
        return scaled.to(self.dtype if self.dtype == torch.float64 else torch.float32)

    @cached_property
    def _knots(self) -> list[int]:
        """The ranks at which the weight is decomposed, ascending."""
        outputs, inputs = self.grouped.shape[1:3]
        parameters = outputs + inputs + sum(self.kernel)
        most = max(1, min(self.max_ranks[0], (self.grouped[0].numel() - 1) // parameters))
        return sorted({max(1, round(most * 0.65**step)) for step in range(KNOTS)})

    @cached_property
    def _found(self) -> dict[int, Components]:
        """The components at each rank that was asked for."""
        return {}

    def _components(self, rank: int) -> Components:
        """The components at this rank."""
        if rank not in self._found:
            below = max((knot for knot in self._knots if knot < rank), default=0)
            if rank == self.max_ranks[0]:
                self._found[rank] = _by_element(self._tensor)
            else:
                self._found[rank] = self._continued(self._components(below) if below else None, rank)
        return self._found[rank]

    def _continued(self, start: Components | None, rank: int) -> Components:
        """Add the leading components of what ``start`` leaves, then improve all, up to the last knot."""
        if start is None:
            starts = [_by_element(self._tensor).leading(rank), _random(self._tensor, rank)]
        else:
            added = _by_element(self._tensor - start.tensor()).leading(rank - start.outputs.shape[2])
            starts = [start.joined(added)]
        improved = [_improved(self._tensor, each) for each in starts] if rank <= self._knots[-1] else []
        return min([*starts, *improved], key=self._lost_by)

    def _lost_by(self, components: Components) -> float:
        lost = (self._tensor - components.tensor()).square().sum(dtype=torch.float64)
        return float(lost) * self._scale**2

    @cached_property
    def _lost_at_knots(self) -> Floats:
        """The energy lost at each knot."""
        return np.array([self._lost_by(self._components(knot)) for knot in self._knots])

    def lost_energy(self, ranks: Ranks) -> float:
        """The squared norm of what the components leave, in the metric; no less than 0."""
        (rank,) = ranks
        return 0.0 if rank == self.max_ranks[0] else self._lost_by(self._components(rank))

    def error_table(self, round_to: RankSteps = 1) -> tuple[Floats, Floats]:
        """Errors at all allowed ranks up to the last knot, by logarithmic interpolation, and at the greatest rank."""
        ranks = self.ladder(0, round_to).double().numpy()
        ranks = ranks[(ranks <= self._knots[-1]) | (ranks == self.max_ranks[0])]
        known = self.errors_of(torch.from_numpy(self._lost_at_knots))
        with np.errstate(divide="ignore"):
            errors = np.exp(np.interp(ranks, self._knots, np.log(np.maximum(known, 1e-12))))
        first = self._knots[0]  # without a component, the error is 1
        errors = np.where(ranks < first, np.interp(ranks, [0, first], [1.0, known[0]]), errors)
        return ranks[:, None], np.where(ranks == self.max_ranks[0], 0.0, errors)

    def select_ranks(self, select: RankSelector) -> Ranks:
        """The rank chosen on the energies that the components add, in the order of the ranks."""
        ranks, errors = self.error_table()
        lost = np.concatenate([[1.0], errors**2])
        spectrum = torch.from_numpy(np.sqrt(np.maximum(lost[:-1] - lost[1:], 0.0) * self._total))
        chosen = select(spectrum, max(self.grouped.shape[1:3]) * math.prod(self.kernel))
        return (int(ranks[chosen - 1, 0]),)

    @property
    def spectrum(self) -> Tensor:
        """See :attr:`Decomposition.spectrum`."""
        return pooled_spectrum(by_output(self.metric.weighted))

    def factors(self, ranks: Ranks) -> tuple[Tensor, ...]:
        """``(G*R, I/G, 1, 1)``, ``(G*R, 1, kh, 1)``, ``(G*R, 1, 1, kw)`` and ``(O, R, 1, 1)``."""
        (rank,) = self.check(ranks)
        found = self._components(rank)
        outputs, inputs, heights, widths = (factor.to(self.metric.weighted.dtype) for factor in found)
        outputs = outputs * self._scale
        reduce = self.metric.restore(inputs.mT, "gri,gij->grj", "input")
        vertical = self.metric.restore(heights.mT, "grh,hk->grk", "height")
        horizontal = self.metric.restore(widths.mT, "grw,wl->grl", "width")
        expand = self.metric.leading_rows(outputs.shape[1]) @ outputs
        shapes = ((-1, self.shape[1], 1, 1), (-1, 1, self.kernel[0], 1), (-1, 1, 1, self.kernel[1]), (-1, rank, 1, 1))
        factors = (reduce, vertical, horizontal, expand)
        return tuple(factor.reshape(shape).to(self.dtype) for factor, shape in zip(factors, shapes, strict=True))

    def reconstruct(self, ranks: Ranks) -> Tensor:
        """The sum of the components, in the shape of the original."""
        reduce, vertical, horizontal, expand = (factor.double() for factor in self.factors(ranks))
        count, (rank,) = self.groups, ranks
        by_group = Components(
            expand.reshape(count, -1, rank),
            reduce.reshape(count, rank, -1).mT,
            vertical.reshape(count, rank, -1).mT,
            horizontal.reshape(count, rank, -1).mT,
        )
        return by_group.tensor().reshape(self.shape).to(self.dtype)


def _by_element(tensor: Tensor) -> Components:
    """The components of the singular value decompositions of all kernel elements, those of most energy first.

    Args:
        tensor: ``(G, O, I, kh, kw)``.

    Returns:
        ``min(O, I) * kh * kw`` components, whose sum is the tensor.
    """
    height, width = tensor.shape[3:]
    left, values, right = torch.linalg.svd(tensor.permute(0, 3, 4, 1, 2).flatten(1, 2), full_matrices=False)
    order = values.flatten(1).argsort(dim=1, descending=True)[:, None]  # (G, 1, R)
    outputs, inputs = ((left * values[:, :, None]).movedim(1, 2).flatten(2), right.mT.movedim(1, 2).flatten(2))
    places = torch.arange(height * width, device=tensor.device).repeat_interleave(values.shape[2])
    heights, widths = (
        torch.nn.functional.one_hot(index, size).to(tensor.dtype).mT.expand(len(tensor), -1, -1)
        for index, size in ((places // width, height), (places % width, width))
    )
    return Components(
        *(factor.gather(2, order.expand(-1, factor.shape[1], -1)) for factor in (outputs, inputs, heights, widths))
    )


def _random(tensor: Tensor, rank: int) -> Components:
    """Random components, always the same: another place to start from."""
    generator = torch.Generator().manual_seed(0)
    sizes = (tensor.shape[1], tensor.shape[2], *tensor.shape[3:])
    return Components(*(torch.randn(len(tensor), size, rank, generator=generator).to(tensor) for size in sizes))


def _improved(tensor: Tensor, start: Components) -> Components:
    """Improve the components by alternating least squares with a ridge, for each group.

    Args:
        tensor: ``(G, O, I, kh, kw)``.
        start: where the iterations start.
    """
    norm = tensor.flatten(1).norm(dim=1).clamp(min=torch.finfo(tensor.dtype).tiny)[:, None, None]
    found = Components(*(factor / norm**0.25 for factor in start))
    tensor = tensor / norm[..., None, None]
    for ridge, iterations in PHASES:
        error = math.inf
        for _ in range(iterations):
            found, new_error = _iterated(tensor, found, ridge)
            if error - new_error < TOLERANCE * error:
                break
            error = new_error
    return Components(*(factor * norm**0.25 for factor in found))


def _iterated(tensor: Tensor, found: Components, ridge: float) -> tuple[Components, float]:
    """Fit each factor once, given the others; return the components and their squared error, summed over the groups.

    The whole tensor is multiplied twice: by the factor of the inputs and by that of the outputs. The small products
    serve the kernel's factors as well (dimension trees, Phan, Tichavsky and Cichocki 2013). TensorLy's ``parafac``
    multiplies it four times.

    Args:
        tensor: ``(G, O, I, kh, kw)``, each group of norm 1.
        found: the components so far.
        ridge: see ``PHASES``.
    """
    outputs, inputs, heights, widths = found
    kernel = tensor.shape[3:]
    seen = (inputs.mT @ tensor.transpose(1, 2).flatten(2)).unflatten(2, (-1, *kernel))  # (G, R, O, kh, kw)
    target = torch.einsum("grohw,ghr,gwr->gor", seen, heights, widths)
    outputs = _solved(target, _gram(inputs, heights, widths), ridge)
    seen = (outputs.mT @ tensor.flatten(2)).unflatten(2, (-1, *kernel))  # (G, R, I, kh, kw)
    kernels = torch.einsum("grihw,gir->grhw", seen, inputs)
    heights = _solved(torch.einsum("grhw,gwr->ghr", kernels, widths), _gram(outputs, inputs, widths), ridge)
    widths = _solved(torch.einsum("grhw,ghr->gwr", kernels, heights), _gram(outputs, inputs, heights), ridge)
    target, gram = torch.einsum("grihw,ghr,gwr->gir", seen, heights, widths), _gram(outputs, heights, widths)
    inputs = _solved(target, gram, ridge)
    error = len(tensor) - 2 * (target * inputs).sum() + (gram * (inputs.mT @ inputs)).sum()
    return Components(outputs, inputs, heights, widths), float(error)


def _gram(*factors: Tensor) -> Tensor:
    """Products ``(G, R, R)`` of rank-one tensors that have these factors, ``(G, n, R)`` each."""
    return reduce(torch.mul, (factor.mT @ factor for factor in factors))


def _solved(target: Tensor, gram: Tensor, ridge: float) -> Tensor:
    """Return ``target @ inverse(gram + ridge)`` for ``(G, n, R)`` and ``(G, R, R)``."""
    matrix = gram.clone()
    matrix.diagonal(dim1=1, dim2=2).add_(ridge)
    root, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):  # rounding made it indefinite
        return torch.linalg.solve(matrix, target.mT).mT
    return torch.cholesky_solve(target.mT, root).mT

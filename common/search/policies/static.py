"""Search policy ``static``: ranks drawn from fixed probabilities, as tdcnn does, the work that this suite follows.

Its notebooks (github.com/fmokadem/tdcnn, MIT licence) take a Tucker-2 of each convolution, the first included, and
leave Linear layers dense. The rank of the inputs and that of the outputs are drawn apart, each from 25% to 90% of its
channels in steps of 5%, rounded down to at least 1. Its code then exchanges the two ranks, which changes layers with
different numbers of inputs and outputs; here each rank stays with the channels that it was drawn for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import optuna
import torch
from optuna.samplers import BaseSampler
from torch import Tensor

from common.decomposition import Decomposition, Ranks, Tucker2
from common.network.shapes import LayerShape, dense_reason
from common.planning import LayerPlan, RankPlan
from common.planning.decompositions import Decompositions, layer_method
from common.search.candidates import Candidate, Candidates
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.samplers import DrawnLevels
from common.search.policies.settings import PolicySettings
from common.search.probabilities import Logits, Probabilities, masked
from common.search.space import Space

PERCENTAGES = tuple(range(25, 91, 5))
"""The percentages of a mode's channels that its rank can be."""
SWEEPS = 10
"""Number of sweeps of the Tucker-2 by which a sensitivity is measured. Ten come near to where they converge."""


class Static(SearchPolicy):
    """Its probabilities never change.

    A level of a layer is a pair of percentages, that of the inputs first. The last level is the dense layer, for
    Linear layers and others that stay dense. The drawn ranks are used as they are. Under a budget, only luck makes a
    plan keep to it, and a plan that does not is never chosen.

    Tucker-2 takes both ranks. Methods with further ranks (``htd``) get the greatest of these that the pair allows, and
    methods with a single rank (``svd``, ``spatial_svd``, ``cp``) the lesser of the pair. The lesser also serves
    convolutions of kernel size 1, where a Tucker-2 is an SVD with one factor more than it needs. A rank that adds
    nothing beside the other one is lowered, see :meth:`Tucker2.fit`.
    """

    name = "static"
    kind = "policy"
    mixes_methods = False
    fits_budget = False
    level_names = (
        *(f"in {percent}%" for percent in PERCENTAGES),
        *(f"out {percent}%" for percent in PERCENTAGES),
        "dense",
    )
    level_meaning = "Rank as a share of the input and of the output channels"

    def candidates(
        self, shapes: Mapping[str, LayerShape], decompositions: Decompositions, method: str
    ) -> Candidates | None:
        """All pairs of ranks of each convolution, and the dense layer where it stays dense."""
        return {name: _candidates(name, shape, decompositions, method) for name, shape in shapes.items()}

    def sensitivities(
        self, shapes: Mapping[str, LayerShape], decompositions: Decompositions, method: str
    ) -> dict[str, float] | None:
        """The mean squared error of each weight's Tucker-2 at half of both ranks, over the greatest of all layers.

        A layer that stays dense gets 0.
        """
        errors = dict.fromkeys(shapes, 0.0)
        for name, shape in shapes.items():
            if not _reason(shape):
                errors[name] = _half_rank_error(decompositions.get(name, layer_method(method, shape)))
        greatest = max(errors.values(), default=0.0) or 1.0
        return {name: error / greatest for name, error in errors.items()}

    def first_logits(self, space: Space, settings: PolicySettings, sensitivities: Mapping[str, float]) -> Logits:
        """The sums of both ranks' logits, because the ranks are drawn apart, see :func:`mode_logits`."""
        logits = {}
        for name, shape in space.shapes.items():
            inputs, outputs = (
                mode_logits(size, shape, sensitivities.get(name, 0.0), settings.alpha, settings.beta)
                for size in _sizes(shape)
            )
            values = torch.cat([(inputs[:, None] + outputs).flatten(), torch.zeros(1)])
            logits[name] = masked(space.candidates[name], values)
        return logits

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """Draw every trial from the first probabilities."""
        return DrawnLevels(start.space.distributions(), lambda *_: Probabilities(start.logits), start.settings.seed)

    def last_probabilities(self, study: optuna.Study, start: Start) -> Probabilities:
        """The first ones."""
        return Probabilities(start.logits)

    def by_level_name(self, probabilities: Probabilities) -> dict[str, list[float]]:
        """The probabilities of the ranks of the inputs, of those of the outputs, and of the dense layer."""
        found = {}
        for name, row in probabilities.by_layer.items():
            pairs = torch.tensor(row[:-1]).reshape(len(PERCENTAGES), len(PERCENTAGES))
            found[name] = [*pairs.sum(1).tolist(), *pairs.sum(0).tolist(), row[-1]]
        return found


POLICIES.add(Static())


def mode_ranks(size: int) -> list[int]:
    """The rank of a mode of ``size`` channels at each of ``PERCENTAGES``."""
    return [max(1, int(size * (percent / 100))) for percent in PERCENTAGES]


def mode_logits(size: int, shape: LayerShape, sensitivity: float, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """The logits of one mode's ranks: ``(r / r_max)^(alpha * s) - beta * r / log(C_in * C_out + 1)``.

    ``r_max`` is the greatest of the ranks. If several percentages give the same rank, only the first of them is a
    candidate.

    Args:
        size: number of the mode's channels.
        shape: of the layer. C_in and C_out are the channels of a group.
        sensitivity: the layer's, in [0, 1].
        alpha: exponent of the sensitivity.
        beta: weight of the size.
    """
    ranks = mode_ranks(size)
    values = torch.tensor(ranks, dtype=torch.float64)
    logits = (values / max(ranks)) ** (alpha * sensitivity) - beta * values / math.log(math.prod(_sizes(shape)) + 1)
    return logits.float()


def _repeated(ranks: Sequence[int]) -> list[bool]:
    return [rank in ranks[:place] for place, rank in enumerate(ranks)]


def _sizes(shape: LayerShape) -> tuple[int, int]:
    """The input and output channels of a group."""
    return shape.channels[0] // shape.groups, shape.channels[1] // shape.groups


def _reason(shape: LayerShape) -> str:
    """Why the policy leaves a layer dense; empty if it does not."""
    return dense_reason(shape) or ("the static policy factors convolutions only" if shape.linear else "")


def _candidates(
    name: str, shape: LayerShape, decompositions: Decompositions, method: str
) -> tuple[Candidate | None, ...]:
    if reason := _reason(shape):
        dense = Candidate(LayerPlan(reason=reason), *shape.dense_cost, 0.0)
        return (*[None] * len(PERCENTAGES) ** 2, dense)
    chosen = layer_method(method, shape)
    decomposition = decompositions.get(name, chosen)
    inputs, outputs = (mode_ranks(size) for size in _sizes(shape))
    found: list[Candidate | None] = []
    for r_in, input_repeats in zip(inputs, _repeated(inputs), strict=True):
        for r_out, output_repeats in zip(outputs, _repeated(outputs), strict=True):
            if input_repeats or output_repeats:
                found.append(None)
            else:
                plan = decompositions.plan(name, chosen, _all_ranks(decomposition, r_in, r_out))
                found.append(Candidate(plan, *shape.cost(plan), math.nan))
    return (*found, None)


def _all_ranks(decomposition: Decomposition, r_in: int, r_out: int) -> Ranks:
    """The ranks of a method for a drawn pair."""
    greatest = decomposition.max_ranks
    if len(greatest) == 1:
        return (min(r_in, r_out, *greatest),)
    return decomposition.fit((r_in, *greatest[1:-1], r_out))


def _half_rank_error(decomposition: Decomposition) -> float:
    """The mean squared error of the weight behind a decomposition at half of both ranks of its Tucker-2."""
    tucker = Tucker2(decomposition.original, decomposition.groups, sweeps=SWEEPS)
    outputs, inputs = tucker.grouped.shape[1:3]
    ranks = tucker.fit((max(1, inputs // 2), max(1, outputs // 2)))
    return tucker.lost_energy(ranks) / decomposition.original.numel()

"""For each layer the probabilities of its candidates: where they start, and how they move toward the best trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.search.candidates import Candidate, Candidates
from common.search.sensitivity import reference_candidate
from common.search.space import Levels, Space

COSTS = ("params", "macs")
BISECTIONS = 60
Logits = Mapping[str, Tensor]
"""Layer -> one logit for each level ``(levels,)``, minus infinity if the level has no candidate."""


class Probabilities:
    """A categorical distribution over the levels of each layer; the layers are independent.

    :meth:`update` is a step of the cross-entropy method (Rubinstein 1999): the probabilities move toward the
    frequencies of the elite. Better trials count for more: the k-th of n weighs log((n + 1) / k), as in evolution
    strategies (Hansen and Ostermeier 2001).

    Args:
        logits: those of the first probabilities.
    """

    def __init__(self, logits: Logits) -> None:
        self._first = {name: values.softmax(0) for name, values in logits.items()}
        self._probabilities = dict(self._first)

    @property
    def by_layer(self) -> dict[str, list[float]]:
        """Layer -> the probability of each level, 0 if the level has no candidate."""
        return {name: values.tolist() for name, values in self._probabilities.items()}

    def sample(self, generator: torch.Generator) -> Levels:
        """Draw a level for each layer, independently of the others."""
        return {
            name: int(torch.multinomial(values, 1, generator=generator))
            for name, values in self._probabilities.items()
        }

    def update(self, elite: Sequence[Mapping[str, int]], smoothing: float, floor: float = 0.02) -> None:
        """Move toward the elite.

        Args:
            elite: the levels of the best trials, the best first. If there are none, nothing moves.
            smoothing: how far to move, in [0, 1]: 0 stays, 1 takes the elite's frequencies.
            floor: share of the first probabilities that is mixed in, so that no level they allow gets out of reach.
        """
        if elite:
            levels = {name: torch.tensor([trial[name] for trial in elite]) for name in self._probabilities}
            self.update_to(levels, smoothing, floor)

    def update_to(self, elite: Mapping[str, Tensor], smoothing: float, floor: float = 0.02) -> None:
        """Move toward the elite as :meth:`update` does.

        Args:
            elite: layer -> its levels in the best trials, the best first; at least one.
            smoothing: see :meth:`update`.
            floor: see :meth:`update`.
        """
        count = len(next(iter(elite.values())))
        weights = math.log(count + 1) - torch.arange(1, count + 1).log()
        weights /= weights.sum()
        moved = {}
        for name, values in self._probabilities.items():
            frequencies = torch.zeros_like(values).index_add(0, elite[name], weights)
            nearer = (1 - smoothing) * values + smoothing * frequencies
            moved[name] = (1 - floor) * nearer + floor * self._first[name]
        self._probabilities = moved


def even_logits(candidates: Candidates) -> Logits:
    """Logits that make all candidates of a layer equally likely."""
    return {name: masked(choices, torch.zeros(len(choices))) for name, choices in candidates.items()}


def sensitivity_logits(
    candidates: Candidates,
    sensitivities: Mapping[str, float],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    temperature: float = 0.3,
) -> Logits:
    """The first logits without a budget.

    A candidate's logit is ``-(alpha * loss + beta * size) / temperature``. Its expected divergence d is the layer's
    sensitivity times the candidate's squared error over the squared error at which the sensitivity was measured. Its
    ``loss`` is ``log(1 + d / m)`` with m the median sensitivity. (Sensitivities differ by powers of ten; without the
    logarithm, one very sensitive layer would make all others look free.) Its ``size`` is the mean of its shares of
    the network's parameters and MACs, in units of a layer's average share.

    Args:
        candidates: the candidates of each layer.
        sensitivities: layer -> its sensitivity, at least 0.
        alpha: weight of the loss.
        beta: weight of the size.
        temperature: a higher one makes the probabilities more even.
    """
    logits = {}
    average = [sum(getattr(c[-1], cost) for c in candidates.values()) / len(candidates) for cost in COSTS]
    positive = [value for value in sensitivities.values() if value > 0]
    median = statistics.median(positive) if positive else 1.0
    for name, choices in candidates.items():
        loss = torch.tensor(_expected_divergences(choices, sensitivities.get(name, 0.0))).div(median).log1p()
        size = torch.tensor([(c.params / average[0] + c.macs / average[1]) / 2 if c else 0.0 for c in choices])
        logits[name] = masked(choices, -(alpha * loss + beta * size) / temperature)
    return logits


def budget_logits(space: Space, *, alpha: float = 1.0, temperature: float = 0.3) -> Logits:
    """The first logits under a budget: ``-(alpha * loss / h + price * size) / temperature``.

    ``h`` is the mean loss of a layer in the budget's own allocation. At the chosen price, the expected size of a
    sample equals the budget. The allocation has the least ``loss + price * size``, and the probabilities close in on
    it as the temperature falls. At any temperature they have the most entropy for their expected loss and size.

    Args:
        space: with a budget.
        alpha: weight of the loss.
        temperature: a higher one makes the probabilities more even.
    """
    assert space.allocation is not None
    assert space.budget is not None
    unit = max(space.predicted_loss(space.allocation) / len(space.candidates), 1e-12)
    losses, sizes, costs = {}, {}, {}
    for name, choices in space.candidates.items():
        losses[name] = torch.tensor([c.loss / unit if c else 0.0 for c in choices], dtype=torch.float64)
        sizes[name] = torch.tensor([space.size(c) if c else 0.0 for c in choices], dtype=torch.float64)
        costs[name] = torch.tensor([[c.params, c.macs] if c else [0, 0] for c in choices], dtype=torch.float64)
    limits = [
        math.inf if kept is None else kept * dense - rest
        for kept, dense, rest in zip((space.budget.params, space.budget.macs), space.dense, space.rest, strict=True)
    ]

    def logits(price: float) -> Logits:
        return {
            name: masked(choices, -(alpha * losses[name] + price * sizes[name]) / temperature)
            for name, choices in space.candidates.items()
        }

    def fits(price: float) -> bool:
        expected = sum(values.softmax(0) @ costs[name] for name, values in logits(price).items())
        return all(cost <= limit for cost, limit in zip(torch.as_tensor(expected).tolist(), limits, strict=True))

    low, high = -20.0, 40.0  # exponents of 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(2.0**middle) else (middle, high)
    return {name: values.float() for name, values in logits(2.0**high).items()}


def masked(choices: Sequence[Candidate | None], values: Tensor) -> Tensor:
    """The values, or minus infinity where there is no candidate."""
    return values.masked_fill(torch.tensor([choice is None for choice in choices]), -torch.inf)


def _expected_divergences(choices: Sequence[Candidate | None], sensitivity: float) -> list[float]:
    reference = reference_candidate(choices)
    if reference is None:
        return [0.0] * len(choices)
    return [sensitivity * (choice.error / reference.error) ** 2 if choice else 0.0 for choice in choices]


def elite_of(trials: Sequence[tuple[tuple[float, ...], Levels]], share: float) -> list[Levels]:
    """The levels of the best trials, the best first.

    Args:
        trials: ``(merit, levels)`` of each measured trial; a greater merit is better.
        share: the share of the trials that make the elite, in (0, 1]. At least one does.
    """
    ranked = sorted(trials, key=lambda trial: trial[0], reverse=True)
    return [levels for _, levels in ranked[: elite_size(len(ranked), share)]]


def elite_size(trials: int, share: float) -> int:
    """How many of so many trials make the elite."""
    return max(1, round(share * trials))

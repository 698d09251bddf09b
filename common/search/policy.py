"""The policy: for each layer a categorical distribution over its candidates, moved toward the best trials."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch

from common.search.candidates import Candidate, Candidates
from common.search.sensitivity import reference_candidate

COSTS = ("params", "macs")
Levels = dict[str, int]
"""Layer -> index of the candidate it takes."""


class Policy:
    """A product of categorical distributions, one a layer.

    It starts from what is known before any trial. A candidate's expected divergence d is the layer's sensitivity,
    times the candidate's squared error over that at which the sensitivity was measured. Its ``harm`` is
    ``log(1 + d / m)`` with m the median sensitivity: layers differ by powers of ten, and one that must not be touched
    should not make all others look free. Its ``size`` is the mean of its shares of the network's parameters and of
    its MACs, in units of a layer's average share. Its logit is ``-(alpha * harm + beta * size) / temperature``.

    The adaptive policy then follows the cross-entropy method (Rubinstein 1999): after each batch of trials it moves
    toward the frequencies of the elite. The static one never moves.

    Args:
        candidates: of each layer.
        sensitivities: of each layer, not negative.
        alpha: weight of the harm.
        beta: weight of the size.
        temperature: the greater, the more even the distributions.
    """

    def __init__(
        self,
        candidates: Candidates,
        sensitivities: Mapping[str, float],
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        temperature: float = 0.3,
    ) -> None:
        logits = {}
        average = [sum(getattr(c[-1], cost) for c in candidates.values()) / len(candidates) for cost in COSTS]
        positive = [value for value in sensitivities.values() if value > 0]
        median = statistics.median(positive) if positive else 1.0
        for name, choices in candidates.items():
            harm = torch.tensor(_expected_divergences(choices, sensitivities.get(name, 0.0))).div(median).log1p()
            size = torch.tensor([(c.params / average[0] + c.macs / average[1]) / 2 if c else 0.0 for c in choices])
            logits[name] = -(alpha * harm + beta * size) / temperature
            logits[name][[choice is None for choice in choices]] = -torch.inf
        self._possible = {name: values > -torch.inf for name, values in logits.items()}
        self._probabilities = {name: values.softmax(0) for name, values in logits.items()}

    @property
    def probabilities(self) -> dict[str, list[float]]:
        """Layer -> the probability of each candidate, 0 for those that do not exist."""
        return {name: values.tolist() for name, values in self._probabilities.items()}

    def sample(self, generator: torch.Generator) -> Levels:
        """One candidate for each layer, drawn independently."""
        return {
            name: int(torch.multinomial(values, 1, generator=generator))
            for name, values in self._probabilities.items()
        }

    def update(self, elite: Sequence[Levels], smoothing: float, floor: float = 0.01) -> None:
        """Move toward the elite.

        Args:
            elite: the choices of the best trials; nothing moves when there are none.
            smoothing: how far, in [0, 1]: 0 stays, 1 takes the elite's frequencies.
            floor: mass that is spread over all candidates of a layer, so that none is ever out of reach.
        """
        if not elite:
            return
        for name, values in self._probabilities.items():
            counts = torch.bincount(torch.tensor([levels[name] for levels in elite]), minlength=len(values))
            moved = (1 - smoothing) * values + smoothing * counts / len(elite)
            possible = self._possible[name]
            self._probabilities[name] = (1 - floor) * moved + floor * possible / possible.sum()


def _expected_divergences(choices: Sequence[Candidate | None], sensitivity: float) -> list[float]:
    reference = reference_candidate(choices)
    if reference is None:
        return [0.0] * len(choices)
    return [sensitivity * (choice.error / reference.error) ** 2 if choice else 0.0 for choice in choices]


def elite_of(trials: Sequence[tuple[float, Levels]], share: float) -> list[Levels]:
    """The choices of the best trials.

    Args:
        trials: ``(score, choices)`` of the trials that were measured; greater is better.
        share: of the trials that make the elite, in (0, 1]; at least one trial does.
    """
    ranked = sorted(trials, key=lambda trial: trial[0], reverse=True)
    return [levels for _, levels in ranked[: max(1, round(share * len(ranked)))]]

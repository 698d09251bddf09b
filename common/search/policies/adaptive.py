"""Search policy ``adaptive``: probabilities from sensitivity and size, moved toward the best trials.

It is the cross-entropy method, see :class:`common.search.probabilities.Probabilities`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import optuna
import torch
from optuna.samplers import BaseSampler

from common.planning import RankPlan
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.samplers import DrawnLevels, tried_trials
from common.search.policies.settings import PolicySettings
from common.search.probabilities import Logits, Probabilities, budget_logits, elite_size, sensitivity_logits
from common.search.space import Space
from common.search.study.attempts import places_of


class Adaptive(SearchPolicy):
    """Under a budget, the first trial is the budget's own allocation and the probabilities close in on it."""

    name = "adaptive"
    kind = "policy"

    def first_logits(self, space: Space, settings: PolicySettings, sensitivities: Mapping[str, float]) -> Logits:
        """See :func:`budget_logits` and :func:`sensitivity_logits`."""
        if space.budget:
            return budget_logits(space, alpha=settings.alpha, temperature=settings.temperature)
        return sensitivity_logits(
            space.candidates,
            sensitivities,
            alpha=settings.alpha,
            beta=settings.beta,
            temperature=settings.temperature,
        )

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """Draw from the probabilities as the trials of the earlier batches moved them."""
        first = None if start.space.allocation is None else start.space.levels_of(start.space.allocation)
        return DrawnLevels(start.space.distributions(), _Learned(start).at, start.settings.seed, first)

    def first_plan(self, space: Space) -> RankPlan | None:
        """The budget's own allocation; None without a budget."""
        return space.allocation

    def last_probabilities(self, study: optuna.Study, start: Start) -> Probabilities:
        """Those that the next batch would be drawn from."""
        begun = 1 + max(places_of(study).values(), default=-1)
        return _Learned(start).at(study, min(begun, start.settings.trials))


class _Learned:
    """The probabilities after each batch of a study. Each is computed once, because a study may have 20,000 trials.

    A worker may end a trial when the next batches have begun. What follows from that trial's batch is then computed
    again.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self._after: list[tuple[int, Probabilities]] = []
        """For each batch, the number of measured trials up to its end, and the probabilities."""

    def at(self, study: optuna.Study, place: int) -> Probabilities:
        """The probabilities from which the trial at ``place`` is drawn."""
        settings = self._start.settings
        ends = range(settings.batch, place + 1, settings.batch)
        ranked = sorted(tried_trials(study), key=lambda trial: trial.merit, reverse=True)
        places = np.array([trial.place for trial in ranked], dtype=np.int64)
        counts = np.searchsorted(np.sort(places), ends).tolist()
        same = 0
        while same < min(len(ends), len(self._after)) and self._after[same][0] == counts[same]:
            same += 1
        if same < len(ends):
            del self._after[same:]
            levels = {name: torch.tensor([t.drawn[name] for t in ranked]) for name in self._start.logits}
            for end, count in list(zip(ends, counts, strict=True))[same:]:
                found = copy.copy(self._after[-1][1]) if self._after else Probabilities(self._start.logits)
                if count:
                    best = torch.from_numpy(np.flatnonzero(places < end)[: elite_size(count, settings.elite)])
                    found.update_to({name: each[best] for name, each in levels.items()}, settings.smoothing)
                self._after.append((count, found))
        return self._after[len(ends) - 1][1] if ends else Probabilities(self._start.logits)


POLICIES.add(Adaptive())

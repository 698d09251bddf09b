"""Search policy ``adaptive``: probabilities from sensitivity and size, moved toward the best trials.

It is the cross-entropy method, see :class:`common.search.probabilities.Probabilities`.
"""

from __future__ import annotations

import optuna
from optuna.samplers import BaseSampler

from common.planning import RankPlan
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.samplers import DrawnLevels, tried_trials
from common.search.policies.settings import PolicySettings
from common.search.probabilities import Logits, Probabilities, budget_logits, elite_of, sensitivity_logits
from common.search.space import Space
from common.search.study.attempts import places_of


class Adaptive(SearchPolicy):
    """Under a budget, the first trial is the budget's own allocation and the probabilities close in on it."""

    name = "adaptive"
    kind = "policy"

    def first_logits(self, space: Space, settings: PolicySettings, sensitivities: dict[str, float]) -> Logits:
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

        def probabilities(study: optuna.Study, place: int) -> Probabilities:
            return self._probabilities(study, start, place)

        return DrawnLevels(start.space.distributions(), probabilities, start.settings.seed, first)

    def first_plan(self, space: Space) -> RankPlan | None:
        """The budget's own allocation; None without a budget."""
        return space.allocation

    def last_probabilities(self, study: optuna.Study, start: Start) -> Probabilities:
        """Those that the next batch would be drawn from."""
        begun = 1 + max(places_of(study).values(), default=-1)
        return self._probabilities(study, start, min(begun, start.settings.trials))

    def _probabilities(self, study: optuna.Study, start: Start, place: int) -> Probabilities:
        """The probabilities from which the trial at ``place`` is drawn."""
        found, settings = Probabilities(start.logits), start.settings
        tried = tried_trials(study)
        for end in range(settings.batch, place + 1, settings.batch):
            known = [(trial.merit, trial.drawn) for trial in tried if trial.place < end]
            if known:
                found.update(elite_of(known, settings.elite), settings.smoothing)
        return found


POLICIES.add(Adaptive())

"""Search policy ``adaptive``: distributions from sensitivity and size, moved toward the elite of the trials.

It is the cross-entropy method, see :class:`common.search.policy.Policy`.
"""

from __future__ import annotations

import optuna
from optuna.samplers import BaseSampler

from common.planning import RankPlan
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.proposing import PolicySampler, tried_trials
from common.search.policies.settings import PolicySettings
from common.search.policy import Logits, Policy, budget_logits, elite_of, sensitivity_logits
from common.search.space import Space
from common.search.study.attempts import places_of


class Adaptive(SearchPolicy):
    """Under a budget the first trial is the budget's allocation, and the distributions close in on it."""

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
        """Draws from the distributions that the trials before a batch have moved."""
        first = None if start.space.allocation is None else start.space.levels_of(start.space.allocation)

        def policy(study: optuna.Study, place: int) -> Policy:
            return self._distributions(study, start, place)

        return PolicySampler(start.space.distributions(), policy, start.settings.seed, first)

    def first_plan(self, space: Space) -> RankPlan | None:
        """The budget's own allocation."""
        return space.allocation

    def last_distributions(self, study: optuna.Study, start: Start) -> Policy:
        """Those that the next batch would be drawn from."""
        begun = 1 + max(places_of(study).values(), default=-1)
        return self._distributions(study, start, min(begun, start.settings.trials))

    def _distributions(self, study: optuna.Study, start: Start, place: int) -> Policy:
        """The distributions from which the trial at ``place`` is drawn."""
        policy, settings = Policy(start.logits), start.settings
        tried = tried_trials(study)
        for end in range(settings.batch, place + 1, settings.batch):
            known = [(trial.merit, trial.drawn) for trial in tried if trial.place < end]
            if known:
                policy.update(elite_of(known, settings.elite), settings.smoothing)
        return policy


POLICIES.add(Adaptive())

"""Search policy ``static``: the fixed probabilities of the work that this suite follows."""

from __future__ import annotations

import optuna
from optuna.samplers import BaseSampler

from common.planning import RankPlan
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.samplers import DrawnLevels
from common.search.policies.settings import PolicySettings
from common.search.probabilities import Logits, Probabilities, static_logits
from common.search.space import Space


class Static(SearchPolicy):
    """Its probabilities never change, see :func:`static_logits`."""

    name = "static"
    kind = "policy"

    def first_logits(self, space: Space, settings: PolicySettings, sensitivities: dict[str, float]) -> Logits:
        """See :func:`static_logits`."""
        return static_logits(
            space.candidates, space.shapes, sensitivities, alpha=settings.alpha, beta=settings.static_beta
        )

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """Draw every trial from the first probabilities."""
        return DrawnLevels(start.space.distributions(), lambda *_: Probabilities(start.logits), start.settings.seed)

    def last_probabilities(self, study: optuna.Study, start: Start) -> Probabilities:
        """The first ones."""
        return Probabilities(start.logits)


POLICIES.add(Static())

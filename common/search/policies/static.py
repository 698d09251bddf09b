"""Search policy ``static``: the fixed distribution of the work that this suite follows."""

from __future__ import annotations

import optuna
from optuna.samplers import BaseSampler

from common.planning import RankPlan
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.proposing import PolicySampler
from common.search.policies.settings import PolicySettings
from common.search.policy import Logits, Policy, static_logits
from common.search.space import Space


class Static(SearchPolicy):
    """It never moves, see :func:`static_logits`."""

    name = "static"
    kind = "policy"

    def first_logits(self, space: Space, settings: PolicySettings, sensitivities: dict[str, float]) -> Logits:
        """See :func:`static_logits`."""
        return static_logits(
            space.candidates, space.shapes, sensitivities, alpha=settings.alpha, beta=settings.static_beta
        )

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """Draws every trial from the first distributions."""
        return PolicySampler(start.space.distributions(), lambda *_: Policy(start.logits), start.settings.seed)

    def last_distributions(self, study: optuna.Study, start: Start) -> Policy:
        """The first ones."""
        return Policy(start.logits)


POLICIES.add(Static())

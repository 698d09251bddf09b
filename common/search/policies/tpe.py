"""Search policy ``tpe``: the tree-structured Parzen estimator, by Optuna."""

from __future__ import annotations

from optuna.samplers import BaseSampler, TPESampler

from common.planning import RankPlan
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.samplers import Resumable


class TPE(SearchPolicy):
    """Optuna's ``TPESampler``."""

    name = "tpe"

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """Optuna's sampler, which continues after a stop."""
        return Resumable(lambda seed: TPESampler(seed=seed), start.settings.seed)


POLICIES.add(TPE())

"""Search policy ``random``: every candidate of a layer equally likely, by Optuna."""

from __future__ import annotations

from optuna.samplers import BaseSampler, RandomSampler

from common.planning import RankPlan
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.samplers import Resumable


class Random(SearchPolicy):
    """Optuna's ``RandomSampler``."""

    name = "random"

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """Optuna's sampler, which continues after a stop."""
        return Resumable(lambda seed: RandomSampler(seed=seed), start.settings.seed)


POLICIES.add(Random())

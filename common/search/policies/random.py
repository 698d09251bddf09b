"""Search policy ``random``: candidates drawn evenly, by Optuna."""

from __future__ import annotations

from optuna.samplers import BaseSampler, RandomSampler

from common.planning import RankPlan
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.proposing import Resumable


class Random(SearchPolicy):
    """Optuna's ``RandomSampler``."""

    name = "random"

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """The sampler, made so that it resumes."""
        return Resumable(lambda seed: RandomSampler(seed=seed), start.settings.seed)


POLICIES.add(Random())

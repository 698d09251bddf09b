"""Search policy ``nsga2``: the genetic algorithm NSGA-II, for fronts, by Optuna."""

from __future__ import annotations

from optuna.samplers import BaseSampler, NSGAIISampler

from common.planning import RankPlan
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.proposing import Resumable

POPULATION = 20
"""Optuna's 50 would leave a study of 100 trials two generations."""


class NSGA2(SearchPolicy):
    """Optuna's ``NSGAIISampler``."""

    name = "nsga2"

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """The sampler, made so that it resumes."""
        return Resumable(lambda seed: NSGAIISampler(population_size=POPULATION, seed=seed), start.settings.seed)


POLICIES.add(NSGA2())

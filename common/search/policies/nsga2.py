"""Search policy ``nsga2``: the genetic algorithm NSGA-II, which spreads trials along a front, by Optuna."""

from __future__ import annotations

from optuna.samplers import BaseSampler, NSGAIISampler

from common.planning import RankPlan
from common.search.policies.base import POLICIES, SearchPolicy, Start
from common.search.policies.samplers import Resumable

POPULATION = 20
"""With Optuna's default of 50, a study of 100 trials has only two generations."""


class NSGA2(SearchPolicy):
    """Optuna's ``NSGAIISampler``."""

    name = "nsga2"

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """Optuna's sampler, which continues after a stop."""
        return Resumable(lambda seed: NSGAIISampler(population_size=POPULATION, seed=seed), start.settings.seed)


POLICIES.add(NSGA2())

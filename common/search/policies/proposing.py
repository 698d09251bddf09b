"""How Optuna is told what to try next: a plan that is known, a policy's distributions, or a sampler of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from common.search.policy import Policy
from common.search.space import Levels
from common.search.study.attempts import OUTCOME, places_of


def trial_seed(seed: int, place: int) -> int:
    """The seed of one trial's random stream, so that it does not matter which trials this process has run before."""
    return int(np.random.SeedSequence((seed, place)).generate_state(1)[0])


class FixedPlan(BaseSampler):
    """Proposes the levels nearest to a plan that is known beforehand."""

    def __init__(self, levels: Levels, distributions: dict[str, IntDistribution]) -> None:
        self._levels, self._distributions = levels, distributions

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All layers."""
        return dict(self._distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The same levels for every trial."""
        return dict(self._levels)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never called: all layers are sampled together."""
        raise ValueError(f"{param_name!r} is no layer of this study")


class PolicySampler(FixedPlan):
    """Draws the levels of all layers from distributions.

    It keeps no state: the distributions of a trial follow from the study's earlier trials, and its random stream from
    the seed and the trial's place. A stopped study therefore continues as if it had not been stopped. Workers on one
    study each learn from all finished trials.

    Args:
        distributions: the levels of each layer.
        policy: the distributions for the trial at a place of the study.
        seed: of the study.
        first: levels of the first trial; None draws them like all others.
    """

    def __init__(
        self,
        distributions: dict[str, IntDistribution],
        policy: Callable[[optuna.Study, int], Policy],
        seed: int,
        first: Levels | None = None,
    ) -> None:
        super().__init__(first or {}, distributions)
        self.policy, self._seed, self._has_first = policy, seed, first is not None

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Levels drawn from the policy, or those of the first trial."""
        place = places_of(study)[trial.number]
        if place == 0 and self._has_first:
            return dict(self._levels)
        generator = torch.Generator().manual_seed(trial_seed(self._seed, place))
        return dict(self.policy(study, place).sample(generator))


class Resumable(BaseSampler):
    """One of Optuna's samplers, made anew for every trial with a seed of the trial's own.

    Its state is in the study already, all but its random stream, which would begin again after a stop.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the trial's random stream."""
        self._sampler = self._make(trial_seed(self._seed, places_of(study)[trial.number]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """That of the sampler."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Those of the sampler."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """That of the sampler."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """What the sampler does then."""
        self._sampler.after_trial(study, trial, state, values)


class Tried(NamedTuple):
    """A trial that was judged.

    Attributes:
        place: its place in the study.
        merit: how good it was: the rung it reached, then its merit there.
        drawn: the levels that were proposed.
        made: the levels nearest to the plan that came of them.
    """

    place: int
    merit: tuple[float, float]
    drawn: Levels
    made: Levels


def tried_trials(study: optuna.Study) -> list[Tried]:
    """Every trial that was judged, by place."""
    places = places_of(study)
    found = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        outcome, place = trial.user_attrs[OUTCOME], places[trial.number]
        merit = (float(outcome["rung"]), float(outcome["merit"]))
        found[place] = Tried(place, merit, dict(trial.params), dict(outcome["levels"]))
    return [found[place] for place in sorted(found)]

"""Optuna samplers that propose the levels of all layers: known ones, drawn ones, or those of another sampler."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from common.search.probabilities import Probabilities
from common.search.space import Levels
from common.search.study.attempts import OUTCOME, places_of


def trial_seed(seed: int, place: int) -> int:
    """The seed of one trial's random stream. It does not depend on which trials this process ran before.

    Args:
        seed: the study's seed.
        place: the trial's place in the study.
    """
    return int(np.random.SeedSequence((seed, place)).generate_state(1)[0])


class LevelSampler(BaseSampler):
    """Proposes the levels of all layers of a trial together. A subclass says which.

    Args:
        distributions: layer -> the range of its levels, from :meth:`common.search.space.Space.distributions`.
    """

    def __init__(self, distributions: dict[str, IntDistribution]) -> None:
        self._distributions = distributions

    @abstractmethod
    def levels(self, study: optuna.Study, place: int) -> Levels:
        """The levels of one trial.

        The answer must depend on the study's earlier trials and on ``place`` only, never on this process's past.
        Then a stopped study continues as if it had not been stopped.

        Args:
            study: the study, with all trials so far.
            place: the trial's place in the study, from 0.
        """

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All layers."""
        return dict(self._distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See :meth:`levels`."""
        return dict(self.levels(study, places_of(study)[trial.number]))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never called, because all layers are sampled together."""
        raise ValueError(f"{param_name!r} is no layer of this study")


class FixedLevels(LevelSampler):
    """Proposes the same levels for every trial.

    Args:
        distributions: layer -> the range of its levels.
        levels: layer -> its level.
    """

    def __init__(self, distributions: dict[str, IntDistribution], levels: Levels) -> None:
        super().__init__(distributions)
        self._levels = levels

    def levels(self, study: optuna.Study, place: int) -> Levels:
        """The same for every place."""
        return self._levels


class DrawnLevels(LevelSampler):
    """Draws the level of each layer from its probabilities.

    It keeps no state: the probabilities follow from the study's earlier trials, and a trial's random stream from the
    seed and the trial's place. Workers on one study each learn from all finished trials.

    Args:
        distributions: layer -> the range of its levels.
        probabilities: returns the probabilities for the trial at a place of the study.
        seed: the study's seed.
        first: the levels of the first trial; None draws them like all others.
    """

    def __init__(
        self,
        distributions: dict[str, IntDistribution],
        probabilities: Callable[[optuna.Study, int], Probabilities],
        seed: int,
        first: Levels | None = None,
    ) -> None:
        super().__init__(distributions)
        self.probabilities, self._seed, self._first = probabilities, seed, first

    def levels(self, study: optuna.Study, place: int) -> Levels:
        """Drawn levels, or those of the first trial."""
        if place == 0 and self._first is not None:
            return self._first
        generator = torch.Generator().manual_seed(trial_seed(self._seed, place))
        return self.probabilities(study, place).sample(generator)


class Resumable(BaseSampler):
    """One of Optuna's samplers, created for every trial with the trial's own seed.

    A sampler's state lies in the study, except for its random stream, which would begin again after a stop.

    Args:
        make: makes the sampler from a seed.
        seed: the study's seed.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the trial's random stream."""
        self._sampler = self._make(trial_seed(self._seed, places_of(study)[trial.number]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Ask the sampler."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Ask the sampler."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Ask the sampler."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tell the sampler."""
        self._sampler.after_trial(study, trial, state, values)


class Tried(NamedTuple):
    """A trial that was measured, in full or in part.

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
    """Every measured trial of ``study``, by place."""
    places = places_of(study)
    found = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        outcome, place = trial.user_attrs[OUTCOME], places[trial.number]
        merit = (float(outcome["rung"]), float(outcome["merit"]))
        found[place] = Tried(place, merit, dict(trial.params), dict(outcome["levels"]))
    return [found[place] for place in sorted(found)]

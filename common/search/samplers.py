"""Who proposes the trials of a study: the policies as an Optuna sampler, and Optuna's own, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from common.search.policy import (
    Logits,
    Policy,
    budget_logits,
    elite_of,
    even_logits,
    sensitivity_logits,
    static_logits,
)
from common.search.settings import POLICIES, RULES, SearchSettings
from common.search.space import Levels, Space
from common.search.study.attempts import OUTCOME, slots_of

POPULATION = 20
"""Of NSGA-II: Optuna's 50 would leave a study of 100 trials two generations."""


def trial_seed(seed: int, slot: int) -> int:
    """The seed of one trial's random stream, so that it does not matter which trials this process has run before."""
    return int(np.random.SeedSequence((seed, slot)).generate_state(1)[0])


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
    """A policy that proposes the levels of all layers at once.

    It keeps no state of its own: the distributions of a trial follow from the first ones and from the study's trials,
    and its random stream from the seed and the trial's slot. A study therefore goes on after a stop as it would have
    without one. Workers on one study each learn from all trials that are finished.

    Args:
        space: of the study.
        settings: of the study; its ``policy`` is ``adaptive`` or, for one that never moves, anything else.
        logits: of the first distributions.
    """

    def __init__(self, space: Space, settings: SearchSettings, logits: Logits) -> None:
        levels = space.levels_of(space.allocation) if space.allocation else {}
        super().__init__(levels, space.distributions())
        self.settings, self._logits = settings, logits
        self._starts_fixed = settings.policy == "adaptive" and space.allocation is not None

    def policy(self, study: optuna.Study, slot: int) -> Policy:
        """The distributions from which the trial of ``slot`` is drawn."""
        policy = Policy(self._logits)
        settings = self.settings
        if settings.policy == "adaptive":
            tried = tried_trials(study)
            for end in range(settings.batch, slot + 1, settings.batch):
                known = [(trial.merit, trial.drawn) for trial in tried if trial.slot < end]
                if known:
                    policy.update(elite_of(known, settings.elite), settings.smoothing)
        return policy

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Levels drawn from the policy; under a budget the adaptive one starts with the budget's allocation."""
        slot = slots_of(study)[trial.number]
        if slot == 0 and self._starts_fixed:
            return dict(self._levels)
        generator = torch.Generator().manual_seed(trial_seed(self.settings.seed, slot))
        return dict(self.policy(study, slot).sample(generator))


class Resumable(BaseSampler):
    """One of Optuna's samplers, made anew for every trial with a seed of the trial's own.

    Its state is in the study already, all but its random stream, which would begin again after a stop.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the trial's random stream."""
        self._sampler = self._make(trial_seed(self._seed, slots_of(study)[trial.number]))
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
        slot: its place in the study.
        merit: how good it was: the rung it reached, then its merit there.
        drawn: the levels that were proposed.
        made: the levels nearest to the plan that came of them.
    """

    slot: int
    merit: tuple[float, float]
    drawn: Levels
    made: Levels


def tried_trials(study: optuna.Study) -> list[Tried]:
    """Every trial that was judged, by slot."""
    slots = slots_of(study)
    found = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        outcome, slot = trial.user_attrs[OUTCOME], slots[trial.number]
        merit = (float(outcome["rung"]), float(outcome["merit"]))
        found[slot] = Tried(slot, merit, dict(trial.params), dict(outcome["levels"]))
    return [found[slot] for slot in sorted(found)]


def first_logits(space: Space, settings: SearchSettings, sensitivities: dict[str, float]) -> Logits:
    """Where the distributions of a study start: those of its policy, or for any other sampler even ones."""
    if settings.policy == "static":
        return static_logits(
            space.candidates, space.shapes, sensitivities, alpha=settings.alpha, beta=settings.static_beta
        )
    if settings.policy != "adaptive":
        return even_logits(space.candidates)
    if space.budget:
        return budget_logits(space, alpha=settings.alpha, temperature=settings.temperature)
    return sensitivity_logits(
        space.candidates,
        sensitivities,
        alpha=settings.alpha,
        beta=settings.beta,
        temperature=settings.temperature,
    )


def make_sampler(space: Space, settings: SearchSettings, logits: Logits, rule_levels: Levels | None) -> BaseSampler:
    """The sampler that the settings name.

    Args:
        space: of the study.
        settings: of the study.
        logits: of the first distributions, for a policy.
        rule_levels: the levels nearest to the rule's plan, for a rank rule.
    """
    if settings.policy in POLICIES:
        return PolicySampler(space, settings, logits)
    if settings.policy in RULES:
        assert rule_levels is not None
        return FixedPlan(rule_levels, space.distributions())
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "random": lambda seed: RandomSampler(seed=seed),
        "tpe": lambda seed: TPESampler(seed=seed),
        "nsga2": lambda seed: NSGAIISampler(population_size=POPULATION, seed=seed),
    }
    return Resumable(makers[settings.policy], settings.seed)


def policies(study: optuna.Study, settings: SearchSettings, logits: Logits) -> tuple[Policy, Policy]:
    """The distributions before the first trial and after the last; for other samplers the elite's frequencies."""
    first, last = Policy(logits), Policy(logits)
    tried = [(trial.merit, trial.made) for trial in tried_trials(study)]
    if settings.policy == "adaptive" and isinstance(study.sampler, PolicySampler):
        begun = 1 + max(slots_of(study).values(), default=-1)
        last = study.sampler.policy(study, min(begun, settings.trials))
    elif settings.policy != "static" and tried:
        last.update(elite_of(tried, settings.elite), smoothing=1.0)
    return first, last

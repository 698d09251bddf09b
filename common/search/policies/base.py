"""The interface of search policies: who proposes the plans of a search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import optuna
from optuna.samplers import BaseSampler
from torch import Tensor, nn

from common.network.shapes import LayerShape
from common.planning import RankPlan
from common.planning.decompositions import Decompositions
from common.search.candidates import LEVEL_NAMES, Candidates
from common.search.policies.samplers import FixedLevels, tried_trials
from common.search.policies.settings import PolicySettings
from common.search.probabilities import Logits, Probabilities, elite_of, even_logits
from common.search.space import Space
from common.validation import Registry


class Start(NamedTuple):
    """Where a search starts.

    Attributes:
        space: the candidates of each layer.
        settings: of the search.
        logits: those of the first probabilities.
    """

    space: Space
    settings: PolicySettings
    logits: Logits


class SearchPolicy(ABC):
    """Proposes the plans of a search. A subclass says everything about one policy.

    Attributes:
        name: its name, by which it is registered.
        kind: ``policy``, ``rule`` or ``sampler``; a trial record names its rule ``<name> <kind>``.
        needs_budget: whether it plans for a budget and cannot do without.
        has_single_plan: whether it proposes one plan only. A search then runs one trial and never prunes it.
        mixes_methods: whether it can choose among several decompositions for each layer.
        fits_budget: whether its plans are fitted to the budget. If not, a plan that exceeds the budget is measured and
            logged, but never chosen, and no trial is pruned under a budget.
        level_names: the columns of a picture of its probabilities.
        level_meaning: what these are.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "sampler"
    needs_budget: ClassVar[bool] = False
    has_single_plan: ClassVar[bool] = False
    mixes_methods: ClassVar[bool] = True
    fits_budget: ClassVar[bool] = True
    level_names: ClassVar[tuple[str, ...]] = LEVEL_NAMES
    level_meaning: ClassVar[str] = "Share of the layer's parameters (under a budget: price level)"

    @abstractmethod
    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """The Optuna sampler that proposes the levels of all layers.

        Args:
            start: where the search starts.
            plan: the single plan, if the policy has one.
        """

    def single_plan(
        self, model: nn.Module, x: Tensor, decompositions: Decompositions, space: Space
    ) -> RankPlan | None:
        """The single plan, if the policy has one.

        Args:
            model: the dense network.
            x: one example input ``(N, C, H, W)``.
            decompositions: of ``model``.
            space: of ``model``, with a budget.

        Raises:
            ValueError: the policy cannot keep to the budget.
        """
        return None

    def candidates(
        self, shapes: Mapping[str, LayerShape], decompositions: Decompositions, method: str
    ) -> Candidates | None:
        """The policy's own candidates, whose plans are taken as they are; None for those of the space.

        Args:
            shapes: of the layers.
            decompositions: of the layers.
            method: of the search.
        """
        return None

    def sensitivities(
        self, shapes: Mapping[str, LayerShape], decompositions: Decompositions, method: str
    ) -> dict[str, float] | None:
        """The policy's own sensitivity of each layer; None to have the divergences measured on data.

        Args:
            shapes: of the layers.
            decompositions: of the layers.
            method: of the search.
        """
        return None

    def first_plan(self, space: Space) -> RankPlan | None:
        """The plan of the first trial; None if it comes from the sampler."""
        return None

    def first_logits(self, space: Space, settings: PolicySettings, sensitivities: Mapping[str, float]) -> Logits:
        """The logits of the first probabilities. By default, all candidates of a layer are equally likely.

        Args:
            space: the candidates of each layer.
            settings: of the search.
            sensitivities: layer -> its sensitivity.
        """
        return even_logits(space.candidates)

    def last_probabilities(self, study: optuna.Study, start: Start) -> Probabilities:
        """The probabilities after the last trial, for pictures. By default, the elite's frequencies."""
        last = Probabilities(start.logits)
        tried = [(trial.merit, trial.made) for trial in tried_trials(study)]
        if tried:
            last.update(elite_of(tried, start.settings.elite), smoothing=1.0)
        return last

    def by_level_name(self, probabilities: Probabilities) -> dict[str, list[float]]:
        """Layer -> a probability for each of ``level_names``, for pictures."""
        return probabilities.by_layer


class SinglePlan(SearchPolicy):
    """A rank rule as a search policy: it has one plan, which keeps to the budget."""

    kind = "rule"
    needs_budget = True
    has_single_plan = True

    @abstractmethod
    def single_plan(
        self, model: nn.Module, x: Tensor, decompositions: Decompositions, space: Space
    ) -> RankPlan | None:
        """See :meth:`SearchPolicy.single_plan`."""

    def sampler(self, start: Start, plan: RankPlan | None) -> BaseSampler:
        """Propose the levels nearest to the plan."""
        assert plan is not None
        return FixedLevels(start.space.distributions(), start.space.levels_of(plan))


POLICIES: Registry[SearchPolicy] = Registry("policy", lambda policy: policy.name)
"""The search policies by name."""

"""``SearchSettings``: how ranks are searched for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from common.latency import RUNTIMES
from common.planning.methods import decompositions_of
from common.search.policies import POLICIES
from common.search.policies.settings import Count, NotNegative, PolicySettings, Share
from common.training import TrainingSettings
from common.validation import check_choice


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class SearchSettings(PolicySettings):
    """How to search for ranks. :class:`PolicySettings` holds the settings that only the policies read.

    Attributes:
        method: the decomposition; ``mixed`` lets each layer take any of them and needs a budget.
        policy: the name of the search policy in :data:`common.search.policies.POLICIES`. ``adaptive`` moves toward
            the best trials; ``static`` draws from the fixed probabilities of the work that this suite follows, and its
            plans are not fitted to the budget. ``uniform``, ``energy``, ``vbmf`` and ``budget`` are rank rules, which
            have a single plan and need a budget. ``random``, ``tpe`` and ``nsga2`` are Optuna's samplers.
        objective: ``score``, or ``pareto`` for the front of (metric, params, MACs, latency), which prunes no trial.
            ``nsga2`` spreads its trials along the front; ``adaptive`` seeks the best score on it.
        table: under a budget, measure each layer's divergence at four of its sizes instead of one.
        size_weight: weight of the size in the score, see :meth:`common.search.objective.Objective.score`. A budget
            replaces it by 0.
        climb: share of the trials that Optuna's percentile pruner lets climb from each rung to the next. The rungs
            are the predicted loss (under a budget only), a part of validation, and all of it. At 1, every trial is
            measured in full.
        startup: number of trials to measure in full before any is pruned.
        part: share of the calibration and validation batches in the second rung.
        keep: a trial is accepted if it keeps this share of the dense metric.
        refit: improve the factors of the best trials and refit them, before any fine-tuning, as
            :func:`common.shrink.shrink` does; kept where it is better on validation.
        finetune_top: number of the best trials to fine-tune: by score, or under a budget by metric and loss.
        finetune: settings of this fine-tuning, at most 5 epochs.
        finetune_given: also refit, fine-tune and test the given plans, to compare the rules that made them.
        finetune_dense: if a chosen trial was fine-tuned, fine-tune the dense network alike, to compare on test.
        sensitivity_images: number of images of the calibration split on which sensitivities are measured.
        latency_batch: number of inputs in a timed pass.
        runtimes: the runtimes in which the chosen networks are timed at the end. Trials are timed in ``eager``.

    Raises:
        ValueError: a value is not allowed, the policy or the method needs a budget and there is none, or the policy
            does not fit the method.
    """

    method: str = "htd"
    policy: str = "adaptive"
    objective: Literal["score", "pareto"] = "score"
    table: bool = True
    size_weight: NotNegative = 0.5
    climb: Share = 0.7
    startup: Count = 10
    part: Share = 0.2
    keep: Share = 0.99
    refit: bool = True
    finetune_top: Annotated[int, Field(ge=0)] = 3
    finetune: TrainingSettings = TrainingSettings(epochs=1.0, learning_rate=0.02)
    finetune_given: bool = False
    finetune_dense: bool = True
    sensitivity_images: Count = 128
    latency_batch: Count = 1
    runtimes: Annotated[tuple[str, ...], Field(min_length=1)] = ("eager",)

    def __post_init__(self) -> None:
        if self.finetune.epochs > 5:
            raise ValueError(f"finetune.epochs={self.finetune.epochs}: a trial is fine-tuned for at most 5 epochs")
        for runtime in self.runtimes:
            check_choice("runtimes", runtime, RUNTIMES)
        if self.budget is not None and self.budget.latency is not None:
            raise ValueError(f"budget={self.budget}: a search keeps to params and macs; plan_ranks also takes latency")
        POLICIES.check(self.policy)
        several = len(decompositions_of(self.method)) > 1
        policy = POLICIES[self.policy]
        if several and not policy.mixes_methods:
            raise ValueError(
                f"policy={self.policy!r} with method={self.method!r}: the methods' ranks differ; choose another policy"
            )
        if self.budget is None:
            for name, value, needs in (
                ("policy", self.policy, policy.needs_budget),
                ("method", self.method, several),
            ):
                if needs:
                    raise ValueError(f"{name}={value!r} needs a budget; give budget=Budget(params=..., macs=...)")

    @property
    def prunes(self) -> bool:
        """Whether poor trials end early."""
        policy = POLICIES[self.policy]
        alike = self.budget is None or policy.fits_budget  # the score of a trial above the budget is no measure
        return self.climb < 1 and self.objective == "score" and not policy.has_single_plan and alike

    @property
    def places(self) -> int:
        """The number of places of the study: ``trials``, or 1 for a policy with a single plan."""
        return 1 if POLICIES[self.policy].has_single_plan else self.trials

    @property
    def proposer(self) -> str:
        """The rule that a trial record names, e.g. ``adaptive policy``."""
        return f"{self.policy} {POLICIES[self.policy].kind}"

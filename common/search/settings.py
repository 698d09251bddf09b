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


@dataclass(frozen=True, config=ConfigDict(strict=True))
class SearchSettings(PolicySettings):
    """How ranks are searched for; :class:`PolicySettings` holds what only the policies read.

    Attributes:
        method: the decomposition; ``mixed`` lets each layer take any of them and needs a budget.
        policy: who proposes the plans, by its name in :data:`common.search.policies.POLICIES`. ``adaptive`` moves
            toward the best trials, ``static`` is the fixed distribution of earlier work. ``uniform``, ``energy``,
            ``vbmf`` and ``budget`` are rank rules, which have a single plan and need a budget. ``random``, ``tpe`` and
            ``nsga2`` are Optuna's samplers.
        objective: ``score``, or ``pareto`` for the front of (metric, params, MACs, latency), where no trial is pruned.
            ``nsga2`` spreads its trials along the front; the ``adaptive`` policy goes for the best score on it.
        table: under a budget, measure each layer's sensitivity at four of its sizes rather than one.
        size_weight: what the score takes off for the size kept, see :meth:`common.search.objective.Objective.score`;
            under a budget nothing.
        climb: share of the trials that Optuna's percentile pruner lets climb from one rung to the next: predicted
            (under a budget only), a part of validation, all of it. At 1 every trial is measured in full.
        startup: trials that are measured in full before any is pruned.
        part: share of the calibration and validation batches that the first measurement takes.
        keep: a trial is accepted when it keeps this share of the dense metric.
        finetune_top: how many of the best trials are fine-tuned: by score, under a budget by metric and loss.
        finetune: how; at most 5 epochs.
        finetune_given: fine-tune the given plans too, and test them at the end, to compare the rules that made them.
        sensitivity_images: from the calibration split, for the sensitivities.
        latency_batch: inputs in a timed pass.
        runtimes: in which the chosen networks are timed at the end; trials are timed in ``eager``.

    Raises:
        ValueError: a value is not allowed, a choice needs a budget and there is none, or a rule has no plan by the
            method.
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
    finetune_top: Annotated[int, Field(ge=0)] = 3
    finetune: TrainingSettings = TrainingSettings(epochs=1.0, learning_rate=0.02)
    finetune_given: bool = False
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
        """Whether trials that look poor are given up early."""
        return self.climb < 1 and self.objective == "score" and not POLICIES[self.policy].has_single_plan

    @property
    def places(self) -> int:
        """How many different plans are tried: ``trials``, or 1 for a policy that has a single plan."""
        return 1 if POLICIES[self.policy].has_single_plan else self.trials

    @property
    def proposer(self) -> str:
        """Who proposes the plans, in words for a trial record."""
        return f"{self.policy} {POLICIES[self.policy].kind}"

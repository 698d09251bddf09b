"""``SearchSettings``: how ranks are searched for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from common.latency import RUNTIMES
from common.planning import Budget
from common.training import TrainingSettings
from common.validation import check_choice

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

Method = Literal["svd", "spatial_svd", "tucker2", "htd", "mixed"]
Sampler = Literal["adaptive", "static", "uniform", "energy", "vbmf", "budget", "random", "tpe", "nsga2"]
BUDGET_RULES = ("uniform", "energy", "vbmf", "budget")
"""Policies that have one plan, which a rank rule finds at the budget."""
RULES = BUDGET_RULES
POLICIES = ("adaptive", "static")


@dataclass(frozen=True, config=ConfigDict(strict=True))
class SearchSettings:
    """How ranks are searched for.

    Attributes:
        method: the decomposition; ``mixed`` lets each layer take any of them and needs a budget.
        policy: who proposes the plans. ``adaptive`` moves toward the best trials, ``static`` is the fixed distribution
            of earlier work, see :mod:`common.search.policy`. ``uniform`` (one share of the ranks for all layers),
            ``energy``, ``vbmf`` and ``budget`` are rank rules, which have a single plan and need a budget.
            ``random``, ``tpe`` and ``nsga2`` are Optuna's samplers.
        budget: every plan keeps to it and fills it; None lets the score weigh size against the metric.
        objective: ``score``, or ``pareto`` for the front of (metric, params, MACs, latency), where no trial is pruned.
            ``nsga2`` spreads its trials along the front; the ``adaptive`` policy goes for the best score on it.
        trials: how many plans are tried.
        batch: trials between two moves of the policy.
        elite: share of all trials so far that the policy moves toward.
        smoothing: how far it moves, in (0, 1].
        alpha, beta, temperature: of the first distributions; ``beta`` is found anew under a budget.
        static_beta: weight of the size in the static policy.
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
        seed: of the sampling.

    Raises:
        ValueError: a value is not allowed, a choice needs a budget and there is none, or a rule has no plan by the
            method.
    """

    method: Method = "htd"
    policy: Sampler = "adaptive"
    budget: Budget | None = None
    objective: Literal["score", "pareto"] = "score"
    trials: Count = 30
    batch: Count = 10
    elite: Share = 0.2
    smoothing: Share = 0.5
    alpha: NotNegative = 1.0
    beta: NotNegative = 1.0
    temperature: Positive = 0.3
    static_beta: NotNegative = 0.05
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
    seed: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.finetune.epochs > 5:
            raise ValueError(f"finetune.epochs={self.finetune.epochs}: a trial is fine-tuned for at most 5 epochs")
        for runtime in self.runtimes:
            check_choice("runtimes", runtime, RUNTIMES)
        if self.budget is not None and self.budget.latency is not None:
            raise ValueError(f"budget={self.budget}: a search keeps to params and macs; plan_ranks also takes latency")
        if (self.method, self.policy) == ("mixed", "uniform"):
            raise ValueError("policy='uniform' with method='mixed': the methods' ranks differ; choose another policy")
        if self.budget is None:
            for name, value, needing in (("policy", self.policy, RULES), ("method", self.method, ("mixed",))):
                if value in needing:
                    raise ValueError(f"{name}={value!r} needs a budget; give budget=Budget(params=..., macs=...)")

    @property
    def prunes(self) -> bool:
        """Whether trials that look poor are given up early."""
        return self.climb < 1 and self.objective == "score" and self.policy not in RULES

    @property
    def slots(self) -> int:
        """How many different plans are tried: ``trials``, or the one that a rank rule has."""
        return 1 if self.policy in RULES else self.trials

    @property
    def proposer(self) -> str:
        """Who proposes the plans, in words for a trial record."""
        kind = "policy" if self.policy in POLICIES else "rule" if self.policy in RULES else "sampler"
        return f"{self.policy} {kind}"

"""``PolicySettings``: the settings that search policies read."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from common.planning import Budget
from common.validation import Seed

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class PolicySettings:
    """The part of ``SearchSettings`` that search policies read.

    Attributes:
        budget: every plan keeps to it and fills it. None lets the score weigh size against the metric.
        trials: number of plans to try.
        batch: number of trials after which the adaptive policy moves.
        elite: share of all trials so far that the adaptive policy moves toward, in (0, 1].
        smoothing: how far it moves, in (0, 1].
        alpha, beta, temperature: of its first probabilities, see
            :func:`common.search.probabilities.sensitivity_logits`. A budget replaces ``beta``. In the static policy,
            ``alpha`` and ``beta`` are those of :func:`common.search.policies.static.mode_logits`.
        seed: seed of the sampling.
    """

    budget: Budget | None = None
    trials: Count = 30
    batch: Count = 10
    elite: Share = 0.2
    smoothing: Share = 0.5
    alpha: NotNegative = 1.0
    beta: NotNegative = 1.0
    temperature: Positive = 0.3
    seed: Seed = 0

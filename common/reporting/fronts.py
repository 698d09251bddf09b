"""The measured trials of a block, their Pareto front, and an even selection of them for drawing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from common.reporting.frame import is_measured
from common.reporting.reference import Reference
from common.trials import STAGES

DRAWN = 1500
"""Maximum number of trials drawn for each block, evenly spread. The Pareto fronts are those of all trials."""


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """The measured trials, with a column ``reached`` for the last stage of each, or ``pruned``."""
    rows = rows[is_measured(rows)]
    reached = np.select([rows[stage].notna() for stage in reversed(STAGES)], list(reversed(STAGES)), STAGES[0])
    return rows.assign(reached=np.where(rows["status"] == "pruned", "pruned", reached))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) pairs for which no other pair has a cost and a value at least as good, by cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def front_of(rows: pd.DataFrame, cost: str) -> list[tuple[float, float]]:
    """The Pareto front of the trials that were not pruned, in percent."""
    kept = rows.loc[rows["status"] != "pruned", [cost, "final"]].dropna() * 100
    return pareto_front(list(zip(kept[cost].tolist(), kept["final"].tolist(), strict=True)))


def reference_front(reference: Reference | None, cost: str) -> list[tuple[float, float]]:
    """The Pareto front of another work's networks, in percent; empty without any.

    Args:
        reference: networks of one model.
        cost: column of the cost.
    """
    return pareto_front(reference.points(cost)) if reference else []


def thin(rows: pd.DataFrame, limit: int = DRAWN) -> pd.DataFrame:
    """At most ``limit`` rows, evenly spread."""
    if len(rows) <= limit:
        return rows
    return rows.iloc[np.linspace(0, len(rows) - 1, limit).round().astype(int)]

"""Which split a metric was measured on, on how many images, and how far chance reaches."""

from __future__ import annotations

import pandas as pd

from common.reporting.facts import share_interval
from common.reporting.frame import Trials
from common.reporting.tables.table import percentage

DENSE = {"validation": ("dense", "images"), "test": ("dense_test", "test_images")}
"""Split -> columns of the trials' frame with the dense metric and with the number of images."""


def metric_name(rows: pd.DataFrame) -> str:
    """The deciding metric of these trials, e.g. ``Accuracy``; ``Metric`` if there are several."""
    names = list(rows["metric"].unique())
    return str(names[0]).capitalize() if len(names) == 1 else "Metric"


def split_head(rows: pd.DataFrame, split: str) -> str:
    """A heading for the deciding metric on a split, e.g. ``Accuracy (test, n=360)``.

    The number of images is left out if it is unknown or differs.
    """
    return f"{metric_name(rows)} ({split}{_images(rows, split)})"


def on_split(rows: pd.DataFrame, split: str) -> str:
    """The same in words for a title, e.g. ``accuracy on validation (n=360)``."""
    images = _images(rows, split).removeprefix(", ")
    return f"{metric_name(rows).lower()} on {split}" + (f" ({images})" if images else "")


def _images(rows: pd.DataFrame, split: str) -> str:
    counts = rows[DENSE[split][1]].dropna().unique()
    return f", n={counts[0]:.0f}" if len(counts) == 1 else ""


def interval_notes(trials: Trials) -> list[str]:
    """The 95% interval of each dense network's metric on both splits, if it is a share of images."""
    notes = []
    for label, rows in trials.blocks():
        found = []
        for split, (metric, images) in DENSE.items():
            known = rows[rows[metric].notna() & (rows[images] > 0)]
            value, count = (known[metric].iloc[0], known[images].iloc[0]) if len(known) else (0.0, 0.0)
            if limits := share_interval(value, count):
                ends = " to ".join(map(percentage, limits))
                found.append(f"{split} {percentage(value)}, {ends}, n={count:.0f}")
        if found:
            notes.append(f"{label}: the dense network's metric and its 95% interval (Wilson): {'; '.join(found)}.")
    return notes

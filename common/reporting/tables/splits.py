"""Which split a metric was measured on, on how many images, and how far chance reaches."""

from __future__ import annotations

import math

import pandas as pd

from common.reporting.frame import Trials
from common.reporting.intervals import share_interval
from common.reporting.tables.table import percentage

DENSE = {"validation": ("dense", "images"), "test": ("dense_test", "test_images")}
"""Split -> columns of the trials' frame with the dense metric and with the number of images."""


BRACKETS = "In brackets: the 95% interval (Wilson), in percent."


def metric_name(rows: pd.DataFrame) -> str:
    """The deciding metric of these trials, e.g. ``Accuracy``; ``Metric`` if there are several."""
    names = list(rows["metric"].unique())
    return str(names[0]).capitalize() if len(names) == 1 else "Metric"


def split_head(rows: pd.DataFrame, split: str, name: str = "", interval: bool = False) -> str:
    """A heading for the deciding metric on a split, e.g. ``Accuracy (test, n=360) [95%]``.

    Args:
        rows: rows of the trials' frame. If the number of images is unknown or differs, the heading has none.
        split: ``validation`` or ``test``.
        name: another name than the metric's, e.g. that of a stage.
        interval: whether values below it have their 95% interval behind them.
    """
    images = _images(rows, split)
    where = f" ({split}{images})" if name.lower() != split else f" ({images.removeprefix(', ')})" if images else ""
    return f"{name or metric_name(rows)}{where}" + (" [95%]" if interval else "")


def image_counts(rows: pd.DataFrame) -> dict[str, float]:
    """Columns for a CSV file: the numbers of images of both splits; NaN if unknown or if they differ."""
    counts = {split: rows[images].dropna().unique() for split, (_, images) in DENSE.items()}
    return {
        f"{split.capitalize()} images": found[0] if len(found) == 1 else math.nan for split, found in counts.items()
    }


def _images(rows: pd.DataFrame, split: str) -> str:
    counts = rows[DENSE[split][1]].dropna().unique()
    return f", n={counts[0]:.0f}" if len(counts) == 1 else ""


def interval_notes(trials: Trials) -> list[str]:
    """Each dense network's metric on both splits with its 95% interval, if it is a share of images."""
    notes = []
    for label, rows in trials.blocks():
        found = []
        for split, (metric, images) in DENSE.items():
            known = rows[rows[metric].notna() & (rows[images] > 0)]
            value, count = (known[metric].iloc[0], known[images].iloc[0]) if len(known) else (0.0, 0.0)
            if limits := share_interval(value, count):
                ends = " to ".join(map(percentage, limits))
                found.append(f"{split} {percentage(value)}, {ends}, n={count:.0f}")
            elif len(known):
                found.append(
                    f"{split} {percentage(value)}, n={count:.0f}, no interval, since it is no share of images"
                )
        if found:
            name = rows["metric"].iloc[0]
            notes.append(f"{label}: the dense network's {name} and its 95% interval (Wilson): {'; '.join(found)}.")
    return notes

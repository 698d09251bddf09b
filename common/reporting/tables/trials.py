"""Every trial: all figures for ``trials.csv``, and the columns that a reader sees in ``report.html``."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common.reporting.frame import Trials, is_accepted
from common.reporting.intervals import share_intervals
from common.reporting.tables.splits import BRACKETS, split_head
from common.reporting.tables.table import Shape, Table, as_text, change, percentage, times
from common.trials import STAGES

NAMES = {"raw": "raw", "recalibrated": "recalibrated", "refitted": "refitted", "finetuned": "fine-tuned"}
COLUMNS = {
    "label": "Model",
    "run": "Run",
    "trial": "Trial",
    "seed": "Seed",
    "status": "Status",
    "accepted": "Accepted",
    "title": "Method",
    "rule": "Rule",
    "setting": "Setting",
    "sampler": "Rule or sampler",
    "params_removed": "Params Red.",
    "macs_removed": "MACs Red.",
    "params": "Parameters",
    "macs": "MACs",
    "size_bytes": "Size (bytes)",
    "metric": "Metric",
    "raw": "Raw",
    "recalibrated": "Recalibrated",
    "refitted": "Refitted",
    "finetuned": "Fine-tuned",
    "reached": "Last stage",
    "final": "Validation",
    "final_low": "Validation low",
    "final_high": "Validation high",
    "images": "Validation images",
    "test": "Test",
    "test_low": "Test low",
    "test_high": "Test high",
    "test_images": "Test images",
    "dense": "Dense, validation",
    "dense_test": "Dense, test",
    "speedup": "Speedup",
    "median_s": "Median (s)",
    "iqr_s": "IQR (s)",
    "runtime": "Measured in",
    "seconds": "Seconds",
}
"""Column of the trials' frame -> heading in ``trials.csv``."""


def trials_frame(trials: Trials, keep: float) -> pd.DataFrame:
    """The figures of every trial, a row for each, under the headings of `COLUMNS`.

    Raw, Recalibrated, Refitted and Fine-tuned are the deciding metric on validation after each stage. Validation is
    the last of them. ``low`` and ``high`` are the limits of a 95% interval, if the metric is a share of images. What
    was not measured is empty.
    """
    frame = trials.frame
    known = [frame[stage].notna() for stage in reversed(STAGES)]
    reached = np.select(known, [NAMES[stage] for stage in reversed(STAGES)], "")
    counted = (frame["params"] > 0) & (frame["status"] != "failed")
    removed = {f"{name}_removed": (1 - frame[f"{name}_kept"]).where(counted) for name in ("params", "macs")}
    frame = frame.assign(accepted=np.where(is_accepted(frame, keep), "yes", "no"), reached=reached, **removed)
    whole = {name: frame[name].map("{:.0f}".format, na_action="ignore") for name in ("seed", "images", "test_images")}
    limits = {}
    for name, images in (("final", "images"), ("test", "test_images")):
        limits[f"{name}_low"], limits[f"{name}_high"] = share_intervals(
            frame[name].to_numpy(dtype=float), trials.frame[images].to_numpy(dtype=float)
        )
    frame = frame.assign(title=frame["method"].map(trials.titles), **whole, **limits)
    return frame[list(COLUMNS)].rename(columns=COLUMNS)


def trials_table(trials: Trials, keep: float, rows: pd.Index) -> Table:
    """The trials with these labels of the frame, by number, with the columns that a reader compares."""
    raw = trials_frame(trials, keep).loc[rows]
    told = [name for name in ("Model", "Run") if raw[name].nunique() > 1]
    names = [*told, "Trial", "Status", "Accepted", "Method", "Rule", "Setting"]
    figures = {"Params Red.": change, "MACs Red.": change, "Validation": percentage, "Test": percentage}
    rest: dict[str, Shape] = {"Last stage": str, "Speedup": times, "Seconds": "{:.1f}".format}
    text = as_text(raw, {**dict.fromkeys(names, str), **figures, **rest})
    chosen = trials.frame.loc[rows]
    known = {name: bool(raw[f"{name} low"].notna().any()) for name in ("Validation", "Test")}
    heads = {name: split_head(chosen, name.lower(), interval=interval) for name, interval in known.items()}
    text = text.rename(columns=heads)
    keys = {heads.get(name, name): name for name in ("Trial", *figures, "Speedup", "Seconds")}
    notes = [
        "Accepted: whether the trial kept enough of the dense metric on validation. Last stage: the stage after which "
        f"the metric on validation was measured.{f' {BRACKETS}' if any(known.values()) else ''}",
        *([f"{len(raw):,} of {len(trials.frame):,} trials, evenly spread."] if len(raw) < len(trials.frame) else []),
        "All trials with all figures are in trials.csv, beside this report.",
    ]
    return Table("trials", "All trials", raw, text, notes, keys)

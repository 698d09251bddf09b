"""The summary: the dense network of each model and its best accepted trials, as raw numbers and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from common.reporting.facts import conditions, method_title, number
from common.reporting.frame import Trials, is_accepted, is_measured
from common.reporting.intervals import limits_text, share_interval
from common.reporting.runs import check_keep
from common.reporting.tables.splits import BRACKETS, interval_notes
from common.reporting.tables.table import Table, change, count_unit, in_unit, percentage, shown, times
from common.trials import TrialRecord
from common.trials.best import CRITERIA, CRITERION_NAMES, final_metric, reductions
from common.trials.record import Difference, Metrics

COLUMNS = (
    *("Model", "Criterion", "Params Red.", "MACs Red.", "Validation", "Test", "Speedup", "Parameters", "MACs"),
    *("Comp. Rate", "Method", "Trial"),
)
"""The columns that a reader sees, see `headings`. In the raw table, `RAW_COLUMNS` follow."""
LIMITS = ("Validation low", "Validation high", "Test low", "Test high")
RAW_COLUMNS = ("Metric", "Validation images", "Test images", *LIMITS, "Run", "Runs")


def summary_table(trials: Trials | Sequence[TrialRecord], keep: float = 0.99) -> pd.DataFrame:
    """The dense network and the best accepted trial by each criterion, one block of rows per model and dataset.

    Args:
        trials: trials of any number of runs and models.
        keep: a trial is accepted if it kept this fraction of the dense metric on validation, in [0, 1].

    Returns:
        Raw numbers; NaN for what was not measured. ``Params Red.`` and ``MACs Red.`` are the removed fractions.
        ``Validation`` (after the last stage) and ``Test`` are the deciding metric, which ``Metric`` names, on so many
        ``... images``; ``... low`` and ``... high`` are the ends of its 95% interval. ``Speedup`` is dense latency
        over compressed latency. ``MACs`` are multiply-accumulates of one input. ``Comp. Rate`` is dense parameters
        over compressed ones. ``Runs`` is the number of runs in the block.

    Raises:
        ValueError: ``keep`` is not in [0, 1].
    """
    check_keep(keep)
    trials = Trials.of(trials)
    rows = []
    for label, block in trials.blocks():
        shared = {"Model": label, "Runs": block["run"].nunique()}
        rows.append(shared | _baseline_row(trials.record(baseline_row(block))))
        best = trials.best(block, keep)
        rows += [shared | _trial_row(best[name], f"best {CRITERION_NAMES[name]}") for name in CRITERIA if name in best]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *RAW_COLUMNS])
    counts = ("Parameters", "MACs", "Trial", "Runs", "Validation images", "Test images")
    return frame.astype(dict.fromkeys(counts, "Int64"))


def baseline_row(rows: pd.DataFrame) -> int:
    """The row whose baseline is shown: the first one that holds the dense network's test metric, or else the first."""
    tested = rows.index[rows["dense_test"].notna()]
    return int(tested[0] if len(tested) else rows.index[0])


def _baseline_row(record: TrialRecord) -> dict[str, Any]:
    dense = record.baseline
    return {
        "Criterion": "baseline",
        "Params Red.": 0.0 if dense.params > 0 else math.nan,
        "MACs Red.": 0.0 if dense.macs > 0 else math.nan,
        "Speedup": 1.0,
        "Parameters": _count(dense.params),
        "MACs": _count(dense.macs),
        "Comp. Rate": 1.0,
        "Method": "dense",
        "Run": record.run,
        **_metric(record, dense.metric(record.metric), dense.metrics),
    }


def _count(value: float) -> int | None:
    """Round a count, since some tools' counters return fractions. Return None if it needs more than 63 bits."""
    return round(value) if abs(value) < 2**63 else None


def _trial_row(record: TrialRecord, criterion: str) -> dict[str, Any]:
    gains = reductions(record)
    return {
        "Criterion": criterion,
        "Params Red.": gains.get("params", math.nan),
        "MACs Red.": gains.get("macs", math.nan),
        "Speedup": gains.get("speedup", math.nan),
        "Parameters": record.params,
        "MACs": record.macs,
        "Comp. Rate": (record.baseline.params or math.nan) / record.params if record.params else math.nan,
        "Method": method_title(record),
        "Trial": record.trial,
        "Run": record.run,
        **_metric(record, final_metric(record), record.metrics),
    }


def _metric(record: TrialRecord, validation: float | None, metrics: Metrics) -> dict[str, Any]:
    """The metric on both splits, the numbers of images, and the 95% intervals."""
    test = metrics.get("test", {}).get(record.metric, math.nan)
    found: dict[str, Any] = {"Metric": record.metric}
    for split, value in (("Validation", number(validation)), ("Test", test)):
        images = record.baseline.images.get(split.lower())
        limits = share_interval(value, number(images)) or (math.nan, math.nan)
        found |= {split: value, f"{split} images": images, f"{split} low": limits[0], f"{split} high": limits[1]}
    return found


def headings(frame: pd.DataFrame) -> dict[str, str]:
    """Column of `COLUMNS` -> what a reader sees above it: the metric with its split and n, and units.

    If there are several metrics, the heading is ``Metric``, and each value names its own. If the numbers of images
    differ, the heading has none.
    """
    names = list(frame["Metric"].unique())
    metric = str(names[0]).capitalize() if len(names) == 1 else "Metric" if names else "Accuracy"
    seen = {name: name for name in COLUMNS}
    for split in ("Validation", "Test"):
        counts = list(frame[f"{split} images"].dropna().unique())
        seen[split] = f"{metric} ({split.lower()}{f', n={counts[0]}' if len(counts) == 1 else ''})"
        seen[split] += " [95%]" if frame[f"{split} low"].notna().any() else ""
    for name in ("Parameters", "MACs"):
        unit, _ = count_unit(frame[name].dropna())
        seen[name] = f"{name} ({unit})" if unit else name
    return seen


def format_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Format the columns of `COLUMNS` for printing.

    Args:
        frame: result of `summary_table`.

    Returns:
        Strings under `headings`. A reduction is shown as a change (``-87.15%``). Parameters and MACs have one unit in
        each column: K, M or G (10^3, 10^6, 10^9). A share of images has its 95% interval behind it. A trial names its
        run if the block holds several.
    """
    one = frame["Metric"].nunique() < 2
    sizes = {name: count_unit(frame[name].dropna())[1] for name in ("Parameters", "MACs")}
    rows = []
    for row in frame.to_dict("records"):
        own = "" if one else f" {row['Metric']}"
        metrics = {
            split: shown(row[split], percentage)
            + limits_text(row[f"{split} low"], row[f"{split} high"])
            + (own if pd.notna(row[split]) else "")
            for split in ("Validation", "Test")
        }
        counts = {name: shown(row[name], partial(in_unit, size=size)) for name, size in sizes.items()}
        rows.append(
            {
                **{str(name): value for name, value in row.items()},
                "Params Red.": shown(row["Params Red."], change),
                "MACs Red.": shown(row["MACs Red."], change),
                **metrics,
                "Speedup": shown(row["Speedup"], times),
                **counts,
                "Comp. Rate": shown(row["Comp. Rate"], times),
                "Trial": shown(row["Trial"])
                + (f" of {row['Run']}" if row["Runs"] > 1 and pd.notna(row["Trial"]) else ""),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=str).rename(columns=headings(frame))


def summary(trials: Trials, keep: float) -> Table:
    """The summary with notes for its reader."""
    raw = summary_table(trials, keep)
    text, seen = format_summary(raw), headings(raw)
    notes = [
        f"A trial is accepted if it kept at least {keep * 100:g}% of the dense metric on validation."
        if keep
        else "Every measured trial is accepted.",
        "Validation: after the last stage of the trial."
        + (f" {BRACKETS}" if raw[["Validation low", "Test low"]].notna().any(axis=None) else ""),
        *_timing_notes(trials, keep),
        *interval_notes(trials),
        *_difference_notes(trials, keep),
        *summary_notes(trials, keep),
    ]
    keys = {seen[name]: name for name in COLUMNS if name not in {"Model", "Criterion", "Method", "Trial"}}
    spare = ("Comp. Rate", seen["Parameters"], seen["MACs"], "Method", seen["Validation"])
    return Table("summary", "Summary", raw, text, notes, keys, spare)


def _difference_notes(trials: Trials, keep: float) -> list[str]:
    """How far the shown trials differ from the dense network on test, and whether by more than chance."""
    notes = []
    for label, rows in trials.blocks():
        found = {}
        for record in trials.best(rows, keep).values():
            difference, tuned = record.details.test_difference, record.details.tuned_difference
            if difference and difference.verdict:
                text = f"trial {record.trial} {_difference_text(difference)}"
                if tuned:
                    text += f" (dense fine-tuned as well: {_difference_text(tuned)})"
                elif "finetuned" in record.metrics:
                    text += " (fine-tuned, dense not)"
                found[record.run, record.trial] = text
        if found:
            against = (
                f"test {rows['metric'].iloc[0]} less the dense network's on the same images, 95% interval (bootstrap)"
            )
            notes.append(f"{label}: {against}: {'; '.join(found.values())}.")
    return notes


def _difference_text(difference: Difference) -> str:
    """A difference in points, its interval, and the verdict."""
    value, low, high = (100 * each for each in (difference.value, difference.low, difference.high))
    return f"{value:+.2f} points, {low:+.2f} to {high:+.2f}: {difference.verdict}"


def _timing_notes(trials: Trials, keep: float) -> list[str]:
    """The conditions under which the shown speedups were measured."""
    best = [record for _, rows in trials.blocks() for record in trials.best(rows, keep).values()]
    timed = [record.latency for record in best if record.latency and number(record.latency.speedup) > 0]
    found = dict.fromkeys(map(conditions, timed))
    if len(found) < 2:
        return [f"Speedup: {where}." for where in found]
    return [f"Speedup: measured under different conditions, so compare only within a model: {'; '.join(found)}."]


def summary_notes(trials: Trials | Sequence[TrialRecord], keep: float = 0.99) -> list[str]:
    """Notes on what the table cannot show: a model without an accepted trial, a missing speedup, an untested trial.

    Raises:
        ValueError: ``keep`` is not in [0, 1].
    """
    check_keep(keep)
    trials, notes = Trials.of(trials), []
    for label, rows in trials.blocks():
        accepted = rows[is_accepted(rows, keep)]
        if accepted.empty:
            share = f"none of {len(rows):,} kept {keep * 100:g}% of the dense {rows['metric'].iloc[0]}"
            notes.append(f"{label}: no accepted trial; {share}{_closest(rows)}")
            continue
        best = trials.best(rows, keep)
        if "speedup" not in best:
            notes.append(f"{label}: no speedup; {_why_no_speedup(accepted)}")
        smallest = accepted.nsmallest(1, "params_kept").to_dict("records")[0]
        if "params" in best and smallest["params_kept"] < best["params"].params / smallest["dense_params"]:
            notes.append(
                f"{label}: only trials that were tested are shown; trial {smallest['trial']} "
                f"({change(1 - smallest['params_kept'])} parameters) was accepted but not tested."
            )
    return notes


def _closest(rows: pd.DataFrame) -> str:
    """The result of the trial nearest to the dense metric, as the end of a sentence."""
    if rows["dense"].isna().all():
        return ", which is not in the log."
    measured = rows[is_measured(rows) & (rows["status"] == "ok") & rows["metric_kept"].notna()]
    if measured.empty:
        return ", and none was measured fully."
    nearest = measured.nlargest(1, "metric_kept").to_dict("records")[0]
    return f" on validation; the nearest, trial {nearest['trial']}, kept {nearest['metric_kept']:.2%}."


def _why_no_speedup(accepted: pd.DataFrame) -> str:
    """The end of a sentence on accepted trials of which none has a speedup, or none that was tested."""
    tested = accepted[accepted["test"].notna()]
    rows = accepted if tested.empty else tested
    which = "the accepted trials" if accepted["speedup"].isna().all() else "the accepted trials that were tested"
    if rows["median_s"].notna().any():
        return f"the latency of {which} was measured, but it allows none, see Time on the clock."
    return f"the latency of {which} was not measured."

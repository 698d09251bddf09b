"""The summary: the dense network of each model and its best accepted trials, as raw numbers and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from common.reporting.facts import conditions, method_name
from common.reporting.frame import Trials, is_accepted, is_measured
from common.reporting.runs import check_keep
from common.reporting.tables.table import Table, change, human_count, percentage, shown, times
from common.trials import TrialRecord
from common.trials.best import CRITERIA, final_metric, reductions
from common.trials.record import Metrics

COLUMNS = (
    *("Model", "Criterion", "Params Red.", "MACs Red.", "Value", "Speedup", "Parameters", "MACs", "Comp. Rate"),
    *("Method", "Trial"),
)
"""The columns that a reader sees. In the raw table, `RAW_COLUMNS` follow. The heading of ``Value`` is the metric."""
RAW_COLUMNS = ("Metric", "Split", "Run", "Runs")
ROW_NAMES = {"params": "best params", "macs": "best MACs", "speedup": "best speedup"}


def summary_table(trials: Trials | Sequence[TrialRecord], keep: float = 0.99) -> pd.DataFrame:
    """The dense network and the best accepted trial by each criterion, one block of rows per model and dataset.

    Args:
        trials: trials of any number of runs and models.
        keep: a trial is accepted if it kept this fraction of the dense metric on validation, in [0, 1].

    Returns:
        Raw numbers; NaN for what was not measured. ``Params Red.`` and ``MACs Red.`` are the removed fractions.
        ``Value`` is the deciding metric (named in ``Metric``) on ``Split``. ``Speedup`` is dense latency over
        compressed latency. ``MACs`` are multiply-accumulates of one input. ``Comp. Rate`` is dense parameters over
        compressed ones. ``Runs`` is the number of runs in the block.

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
        rows += [shared | _trial_row(best[name], ROW_NAMES[name]) for name in CRITERIA if name in best]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *RAW_COLUMNS])
    return frame.astype(dict.fromkeys(("Parameters", "MACs", "Trial", "Runs"), "Int64"))


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
        **_metric(dense.metrics, record.metric),
    }


def _count(value: float) -> int | None:
    """Round a count, since some tools' counters return fractions. Return None if it needs more than 63 bits."""
    return round(value) if abs(value) < 2**63 else None


def _trial_row(record: TrialRecord, criterion: str) -> dict[str, Any]:
    gains = reductions(record)
    last = final_metric(record)
    return {
        "Criterion": criterion,
        "Params Red.": gains.get("params", math.nan),
        "MACs Red.": gains.get("macs", math.nan),
        "Speedup": gains.get("speedup", math.nan),
        "Parameters": record.params,
        "MACs": record.macs,
        "Comp. Rate": (record.baseline.params or math.nan) / record.params if record.params else math.nan,
        "Method": method_name(record),
        "Trial": record.trial,
        "Run": record.run,
        **_metric({**record.metrics, "validation": {} if last is None else {record.metric: last}}, record.metric),
    }


def _metric(metrics: Metrics, name: str) -> dict[str, Any]:
    """The metric on the test split if it was evaluated there, or else on validation."""
    split = "validation" if math.isnan(metrics.get("test", {}).get(name, math.nan)) else "test"
    return {"Value": metrics.get(split, {}).get(name, math.nan), "Split": split, "Metric": name}


def format_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Format the columns of `COLUMNS` for printing.

    Args:
        frame: result of `summary_table`.

    Returns:
        Strings. A reduction is shown as a change (``-87.15%``). A metric that was not evaluated on the test split ends
        in ``(val)``. Parameters and MACs have the unit K, M or G (10^3, 10^6, 10^9). A trial names its run if the
        block holds several. The heading of the values is the deciding metric; if there are several metrics, each value
        names its own.
    """
    names = list(dict.fromkeys(frame["Metric"]))
    one = len(names) < 2
    rows = [
        {
            "Model": row["Model"],
            "Criterion": row["Criterion"],
            "Params Red.": shown(row["Params Red."], change),
            "MACs Red.": shown(row["MACs Red."], change),
            "Value": shown(row["Value"], percentage)
            + ("" if one else f" {row['Metric']}")
            + (" (val)" if row["Split"] != "test" else ""),
            "Speedup": shown(row["Speedup"], times),
            "Parameters": shown(row["Parameters"], lambda value: human_count(value, "KM")),
            "MACs": shown(row["MACs"], human_count),
            "Comp. Rate": shown(row["Comp. Rate"], times),
            "Method": row["Method"],
            "Trial": shown(row["Trial"]) + (f" of {row['Run']}" if row["Runs"] > 1 and pd.notna(row["Trial"]) else ""),
        }
        for row in frame.to_dict("records")
    ]
    heading = (names[0].capitalize() if names else "Accuracy") if one else "Metric"
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=str).rename(columns={"Value": heading})


def summary(trials: Trials, keep: float) -> Table:
    """The summary with notes for its reader."""
    raw = summary_table(trials, keep)
    text = format_summary(raw)
    notes = [
        f"A trial is accepted if it kept at least {keep * 100:g}% of the dense metric on validation."
        if keep
        else "Every measured trial is accepted.",
        *(["(val): measured on validation, not on test."] if (raw["Split"] != "test").any() else []),
        *_timing_notes(trials, keep),
        *summary_notes(trials, keep),
    ]
    heads = dict(zip(text.columns, COLUMNS, strict=True))
    keys = {seen: name for seen, name in heads.items() if name not in {"Model", "Criterion", "Method", "Trial"}}
    return Table("summary", "Summary", raw, text, notes, keys, ("Comp. Rate", "Parameters", "MACs", "Method"))


def _timing_notes(trials: Trials, keep: float) -> list[str]:
    """The conditions under which the shown speedups were measured."""
    best = [record for _, rows in trials.blocks() for record in trials.best(rows, keep).values()]
    found = dict.fromkeys(conditions(record.latency) for record in best if record.latency)
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
            which = (
                "the accepted trials" if accepted["speedup"].isna().all() else "the accepted trials that were tested"
            )
            notes.append(f"{label}: no speedup; the latency of {which} was not measured.")
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

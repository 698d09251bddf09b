"""The summary table: the dense network and the best accepted trials, as raw numbers and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from common.reporting.runs import baseline_record, check_keep, group_records
from common.trials import CRITERIA, TrialRecord, choose_best, final_metric, is_accepted, reductions

COLUMNS = (
    "Model",
    "Criterion",
    "Params Red.",
    "MACs Red.",
    "Accuracy",
    "Speedup",
    "Parameters",
    "MACs",
    "Comp. Rate",
    "Method",
    "Trial",
)
"""What a reader sees; the raw table has `RAW_COLUMNS` behind these."""
RAW_COLUMNS = ("Metric", "Split", "Run", "Runs")
ROW_NAMES = {"params": "best params", "macs": "best MACs", "speedup": "best speedup"}
NOT_MEASURED = "-"


def summary_table(records: Sequence[TrialRecord], keep: float = 0.99) -> pd.DataFrame:
    """The dense network and the best accepted trial by each criterion, one block of rows per model and dataset.

    Args:
        records: trials of any number of runs and models.
        keep: a trial is accepted when it kept this fraction of the dense metric on validation, in (0, 1].

    Returns:
        Raw numbers. ``Params Red.`` and ``MACs Red.`` are the fractions removed, ``Accuracy`` is the deciding metric
        (named in ``Metric``) on ``Split``, ``Speedup`` is dense latency over compressed latency, ``MACs`` are
        multiply-accumulates of one input, ``Comp. Rate`` is dense parameters over compressed ones, ``Runs`` is the
        number of runs in the block. What was not measured is missing (NaN).

    Raises:
        ValueError: ``keep`` is not in (0, 1].
    """
    check_keep(keep)
    rows = []
    for label, group in group_records(records).items():
        shared = {"Model": label, "Runs": len({record.run for record in group})}
        rows.append(shared | _baseline_row(baseline_record(group)))
        best = choose_best(group, keep)
        rows += [shared | _trial_row(best[name], ROW_NAMES[name]) for name in CRITERIA if name in best]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *RAW_COLUMNS])
    return frame.astype(dict.fromkeys(("Parameters", "MACs", "Trial", "Runs"), "Int64"))


def _baseline_row(record: TrialRecord) -> dict[str, Any]:
    dense = record.baseline
    return {
        "Criterion": "baseline",
        "Params Red.": 0.0 if dense.get("params") else math.nan,
        "MACs Red.": 0.0 if dense.get("macs") else math.nan,
        "Speedup": 1.0,
        "Parameters": dense.get("params"),
        "MACs": dense.get("macs"),
        "Comp. Rate": 1.0,
        "Method": "dense",
        "Run": record.run,
        **_metric(dense.get("metrics", {}), "validation", record.metric),
    }


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
        "Comp. Rate": record.baseline.get("params", math.nan) / record.params if record.params else math.nan,
        "Method": record.method,
        "Trial": record.trial,
        "Run": record.run,
        **_metric({**record.metrics, "validation": {record.metric: last}}, "validation", record.metric),
    }


def _metric(metrics: dict[str, Any], otherwise: str, name: str) -> dict[str, Any]:
    """The metric on the test split where it was read, else on the split ``otherwise``."""
    split = "test" if metrics.get("test", {}).get(name) is not None else otherwise
    return {"Accuracy": metrics.get(split, {}).get(name), "Split": split, "Metric": name}


def format_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of `COLUMNS` as text, ready to be printed.

    Args:
        frame: what `summary_table` returned.

    Returns:
        Strings. A reduction is the change (``-87.15%``), a metric that was not read on the test split ends in
        ``(val)``, one that is not the accuracy names itself, parameters and MACs carry K, M or G (10^3, 10^6, 10^9),
        and a trial names its run when the block holds several.
    """
    rows = [
        {
            "Model": row["Model"],
            "Criterion": row["Criterion"],
            "Params Red.": _text(row["Params Red."], _change),
            "MACs Red.": _text(row["MACs Red."], _change),
            "Accuracy": _text(row["Accuracy"], "{:.2%}".format)
            + ("" if row["Metric"] == "accuracy" else f" {row['Metric']}")
            + (" (val)" if row["Split"] != "test" else ""),
            "Speedup": _text(row["Speedup"], "{:.2f}x".format),
            "Parameters": _text(row["Parameters"], lambda value: human_count(value, "KM")),
            "MACs": _text(row["MACs"], lambda value: human_count(value, "KMG")),
            "Comp. Rate": _text(row["Comp. Rate"], "{:.2f}x".format),
            "Method": row["Method"],
            "Trial": _text(row["Trial"], str) + (f" of {row['Run']}" if row["Runs"] > 1 else ""),
        }
        for row in frame.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=str)


def _text(value: Any, shape: Any) -> str:
    return NOT_MEASURED if pd.isna(value) else str(shape(value))


def _change(removed: float) -> str:
    return f"{-removed:+.2%}" if round(removed, 4) else "0.00%"


def human_count(value: float, units: str = "KMG") -> str:
    """``value`` in the greatest of ``units`` in which it is at least 0.1, e.g. ``1.44 M`` or ``0.31 G``."""
    sizes = {"K": 1e3, "M": 1e6, "G": 1e9}
    unit = next((u for u in reversed(units) if value >= sizes[u] / 10), "")
    return f"{value / sizes[unit]:.2f} {unit}" if unit else f"{value:,.0f}"


def summary_notes(records: Sequence[TrialRecord], keep: float = 0.99) -> list[str]:
    """One sentence for each thing that the table cannot show: a model without an accepted trial, a missing speedup.

    Raises:
        ValueError: ``keep`` is not in (0, 1].
    """
    check_keep(keep)
    notes = []
    for label, group in group_records(records).items():
        accepted = [record for record in group if is_accepted(record, keep)]
        if not accepted:
            notes.append(f"{label}: no accepted trial; none of {len(group)} kept {_share(keep)} of {_closest(group)}")
        elif not any("speedup" in reductions(record) for record in accepted):
            notes.append(f"{label}: no speedup; the latency of the accepted trials was not measured.")
    return notes


def _share(fraction: float) -> str:
    return f"{fraction * 100:g}%"


def _closest(group: Sequence[TrialRecord]) -> str:
    """What the trial that came nearest to the dense metric reached, as the end of a sentence."""
    dense = f"the dense {group[0].metric}"
    measured = [(value, r) for r in group if r.status == "ok" and (value := final_metric(r)) is not None]
    if not measured:
        return f"{dense}, and none was measured to the end."
    value, record = max(measured, key=lambda pair: pair[0])
    reference = record.baseline.get("metrics", {}).get("validation", {}).get(record.metric)
    if not reference:
        return f"{dense}, which is not in the log."
    return f"{dense} on validation; the nearest, trial {record.trial}, kept {value / reference:.2%}."

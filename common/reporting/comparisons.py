"""Methods, rank rules and searches compared, with mean and spread over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from common.reporting.frame import Trials, is_accepted, is_measured
from common.reporting.table import Table, as_text, change, percentage, times
from common.trials import TrialRecord

BUDGETS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
"""Shares of the dense parameters at which the methods are compared."""
STAGE_HEADS = {"raw": "Raw", "recalibrated": "Recalibrated", "finetuned": "Fine-tuned"}


def _spread(values: pd.Series[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of what was measured; the latter NaN for fewer than two."""
    known = values.dropna()
    return (known.mean() if len(known) else math.nan), (known.std(ddof=1) if len(known) > 1 else math.nan)


def _averages(rows: pd.DataFrame, columns: dict[str, pd.Series[float]]) -> dict[str, float]:
    found = {}
    for name, values in columns.items():
        found[name], found[f"{name} std"] = _spread(values.loc[rows.index])
    return found


def _measures(frame: pd.DataFrame) -> dict[str, pd.Series[float]]:
    """The columns that both comparisons show, by heading."""
    lost = frame["dense"] - frame["raw"]
    lost = lost.where(lost >= 0.01 * frame["dense"])  # of less than that, noise would be the greater part
    return {
        "Params Red.": 1 - frame["params_kept"],
        "MACs Red.": 1 - frame["macs_kept"],
        **{head: frame[stage] for stage, head in STAGE_HEADS.items()},
        "Regained": (frame["final"] - frame["raw"]) / lost,
        "Recovery": frame["metric_kept"],
        "Speedup": frame["speedup"],
    }


SHAPES: dict[str, Any] = {
    "Params Red.": change,
    "MACs Red.": change,
    "Raw": percentage,
    "Recalibrated": percentage,
    "Fine-tuned": percentage,
    "Regained": "{:.0%}".format,
    "Recovery": percentage,
    "Speedup": times,
}
MEANING = [
    "Raw, Recalibrated and Fine-tuned: the deciding metric on validation after each stage. Regained: the share of "
    "what the decomposition lost that the stages after it brought back, (last - raw) / (dense - raw), where it lost "
    "1% or more. Recovery: last over dense.",
    "mean ± standard deviation, where there are several.",
]


def best_at_budgets(trials: Trials) -> pd.DataFrame:
    """The best trial of each method and seed at most as large as each budget, one row each.

    Returns:
        Rows of the trials' frame with the columns ``budget`` and ``group`` in front; the best is the one with the
        greatest metric on validation. A budget under which no method has more than under the one below is left out.
    """
    frame = trials.frame[is_measured(trials.frame) & (trials.frame["status"] == "ok")]
    picked = []
    for _, rows in frame.groupby("group", observed=True):
        below = 0.0
        for budget in BUDGETS:
            within = rows[rows["params_kept"] <= budget]
            if ((within["params_kept"] > below) & (within["params_kept"] <= budget)).any():
                best = within.sort_values("final", ascending=False, kind="stable")
                best = best.groupby(["method", "seed"], observed=True, sort=False, dropna=False).head(1)
                picked.append(best.assign(budget=budget))
            below = budget
    return pd.concat(picked) if picked else frame.assign(budget=pd.Series(dtype=float)).iloc[:0]


def methods_table(trials: Trials | Sequence[TrialRecord], keep: float) -> Table:
    """Each method's best network at equal budgets of parameters, stage by stage."""
    best = best_at_budgets(Trials.of(trials))
    best = best.reset_index(drop=True)
    measures, accepted = _measures(best), is_accepted(best, keep)
    rows = []
    for (group, budget, method), part in best.groupby(["group", "budget", "method"], observed=True):
        rows.append(
            {
                "Model": group,
                "Params ≤": budget,
                "Method": method,
                "Metric": part["metric"].iloc[0],
                **_averages(part, measures),
                "Accepted": int(accepted.loc[part.index].sum()),
                "Seeds": len(part),
            }
        )
    raw = pd.DataFrame(rows, columns=_heads(["Model", "Params ≤", "Method", "Metric"], ["Accepted", "Seeds"]))
    text = _with_counts(raw, {"Model": str, "Params ≤": "{:.0%}".format, "Method": str, "Metric": str})
    note = (
        "The best network of each method that keeps at most that share of the dense parameters, chosen on validation."
    )
    return Table("methods", "Methods at equal budgets", raw, text, [note, *MEANING], _keys(text, raw))


def budgets_table(trials: Trials) -> Table:
    """One row a method: the metric of its best network at each budget."""
    best = best_at_budgets(trials)
    budgets = sorted(best["budget"].unique())
    rows = []
    for (group, method), part in best.groupby(["group", "method"], observed=True):
        row: dict[str, Any] = {"Model": group, "Method": method, "Metric": part["metric"].iloc[0]}
        row["Dense"], row["Dense std"] = _spread(part.drop_duplicates("network")["dense"])
        for budget in budgets:
            head = f"≤ {budget:.0%}"
            row[head], row[f"{head} std"] = _spread(part.loc[part["budget"] == budget, "final"])
        rows.append(row)
    heads = ["Dense", *(f"≤ {budget:.0%}" for budget in budgets)]
    columns = ["Model", "Method", "Metric", *(name for head in heads for name in (head, f"{head} std"))]
    raw = pd.DataFrame(rows, columns=columns)
    text = as_text(raw, {"Model": str, "Method": str, "Metric": str, **dict.fromkeys(heads, percentage)})
    note = "The metric on validation of each method's best network that keeps at most that share of the parameters"
    return Table(
        "budgets",
        "Methods by budget",
        raw,
        text,
        [f"{note}; {MEANING[1]}"],
        {h: h for h in heads},
        ("Metric", "Dense"),
    )


def sweeps_table(trials: Trials, keep: float) -> Table:
    """What each setting of a rank rule led to: the sweeps over ranks, taus, thresholds and budgets."""
    frame = trials.frame[is_measured(trials.frame) & (trials.frame["setting"] != "")].reset_index(drop=True)
    measures, accepted = _measures(frame), is_accepted(frame, keep)
    rows = []
    for (group, method, rule, setting), part in frame.groupby(
        ["group", "method", "rule", "setting"], observed=True, sort=False
    ):
        row = {"Model": group, "Method": method, "Rule": rule, "Setting": setting, "Metric": part["metric"].iloc[0]}
        row |= _averages(part, measures) | {"Accepted": int(accepted.loc[part.index].sum()), "Trials": len(part)}
        rows.append(row)
    order = {group: place for place, group in enumerate(frame["group"].cat.categories)}
    rows.sort(key=lambda row: (order[row["Model"]], row["Method"], row["Rule"], _natural(str(row["Setting"]))))
    names = ["Model", "Method", "Rule", "Setting", "Metric"]
    raw = pd.DataFrame(rows, columns=_heads(names, ["Accepted", "Trials"]))
    text = _with_counts(raw, dict.fromkeys(names, str), "Trials")
    return Table("sweeps", "Rank rules and their settings", raw, text, MEANING, _keys(text, raw))


def _natural(text: str) -> tuple[str, list[float]]:
    """``tau=0.5`` before ``tau=0.7``, and 5 before 16."""
    number = r"\d+(?:\.\d+)?(?:e-?\d+)?"
    return re.sub(number, "", text), [float(found) for found in re.findall(number, text)]


def _heads(first: list[str], last: list[str]) -> list[str]:
    return [*first, *(name for head in SHAPES for name in (head, f"{head} std")), *last]


def _with_counts(raw: pd.DataFrame, names: dict[str, Any], of: str = "Seeds") -> pd.DataFrame:
    text = as_text(raw, names | SHAPES)
    text["Accepted"] = [f"{n} of {total}" for n, total in zip(raw["Accepted"], raw[of], strict=True)]
    return text


def _keys(text: pd.DataFrame, raw: pd.DataFrame) -> dict[str, str]:
    return {name: name for name in text.columns if name in raw and pd.api.types.is_numeric_dtype(raw[name])}


def searches_table(trials: Trials, keep: float) -> Table:
    """Rank rules and samplers side by side: how many trials, how many accepted, and what the best of them reached."""
    frame = trials.frame
    accepted, rows = is_accepted(frame, keep), []
    samplers = sorted(frame["sampler"].cat.categories, key=str.casefold)
    frame = frame.assign(sampler=frame["sampler"].cat.reorder_categories(samplers))
    for (group, method, sampler), part in frame.groupby(["group", "method", "sampler"], observed=True):
        states = part["status"].value_counts()
        good = part[accepted.loc[part.index]]
        row = {"Model": group, "Method": method, "Rule or sampler": sampler, "Seeds": part["seed"].nunique()}
        row |= {"Trials": len(part), "Pruned": int(states.get("pruned", 0)), "Failed": int(states.get("failed", 0))}
        row["Accepted"] = len(good)
        by_seed = good.groupby("seed", dropna=False)
        row["Params Red."], row["Params Red. std"] = _spread(1 - by_seed["params_kept"].min())
        row["MACs Red."], row["MACs Red. std"] = _spread(1 - by_seed["macs_kept"].min())
        row["Speedup"], row["Speedup std"] = _spread(by_seed["speedup"].max())
        row["Seconds a Trial"] = part["seconds"].median()
        row["Hours"] = np.nansum(part["seconds"]) / 3600
        rows.append(row)
    names = ["Model", "Method", "Rule or sampler"]
    counts = ["Seeds", "Trials", "Pruned", "Failed", "Accepted"]
    best = {"Params Red.": change, "MACs Red.": change, "Speedup": times}
    columns = [*names, *counts, *(name for head in best for name in (head, f"{head} std")), "Seconds a Trial", "Hours"]
    raw = pd.DataFrame(rows, columns=columns)
    shapes: dict[str, Any] = {**dict.fromkeys(names, str), **dict.fromkeys(counts, "{:,}".format), **best}
    text = as_text(raw, shapes | {"Seconds a Trial": "{:.1f}".format, "Hours": "{:.2f}".format})
    notes = [
        "Params Red., MACs Red. and Speedup: the best accepted trial by each; mean ± standard deviation over seeds.",
        "Seconds a Trial: the median, fine-tuning included; Hours: all trials together.",
    ]
    return Table("searches", "Rank rules and samplers", raw, text, notes, _keys(text, raw))

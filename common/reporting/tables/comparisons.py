"""Comparisons of methods, rank rules and searches, with mean and spread over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from common.reporting.frame import Trials, counts_for_best, is_accepted, is_measured
from common.reporting.intervals import share_interval
from common.reporting.tables.splits import BRACKETS, image_counts, split_head
from common.reporting.tables.table import Table, as_text, change, percentage, times
from common.trials import TrialRecord

BUDGETS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
"""Shares of the dense parameters at which the methods are compared."""
STAGE_HEADS = {"raw": "Raw", "recalibrated": "Recalibrated", "refitted": "Refitted", "finetuned": "Fine-tuned"}


def _spread(values: pd.Series[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of the measured values; NaN for a deviation of fewer than two values."""
    known = values.dropna()
    return (known.mean() if len(known) else math.nan), (known.std(ddof=1) if len(known) > 1 else math.nan)


def _mean(name: str, values: pd.Series[float]) -> dict[str, float]:
    """The cells for a mean: the mean, its standard deviation and the number of its values."""
    mean, std = _spread(values)
    return {name: mean, f"{name} std": std, f"{name} n": int(values.notna().sum())}


def _averages(rows: pd.DataFrame, columns: dict[str, pd.Series[float]]) -> dict[str, float]:
    return {key: cell for name, values in columns.items() for key, cell in _mean(name, values.loc[rows.index]).items()}


def _with_means(names: Iterable[str]) -> list[str]:
    return [column for name in names for column in (name, f"{name} std", f"{name} n")]


SPLITS = {**dict.fromkeys(STAGE_HEADS.values(), "validation"), "Test": "test"}
"""Columns of the deciding metric -> the split on which it was measured."""
IMAGES = {"validation": "images", "test": "test_images"}


def _limits(rows: pd.DataFrame, columns: dict[str, pd.Series[float]]) -> dict[str, float]:
    """The cells for the 95% interval of a metric that one network alone has; NaN for a mean of several."""
    found: dict[str, float] = {}
    for name, split in SPLITS.items():
        found |= _interval(name, columns[name].loc[rows.index], rows[IMAGES[split]])
    return found


def _interval(name: str, values: pd.Series[float], images: pd.Series[float]) -> dict[str, float]:
    known = values.dropna()
    limits = share_interval(known.iloc[0], images[known.index[0]]) if len(known) == 1 else None
    low, high = limits or (math.nan, math.nan)
    return {f"{name} low": low, f"{name} high": high}


LIMITS = [f"{name} {end}" for name in SPLITS for end in ("low", "high")]
COUNTS = ["Validation images", "Test images"]


def _heads(raw: pd.DataFrame, rows: pd.DataFrame) -> dict[str, str]:
    """Column of the metric -> its heading, with split, number of images and whether its cells have an interval."""
    return {
        name: split_head(rows, split, name, bool(raw[f"{name} low"].notna().any())) for name, split in SPLITS.items()
    }


def _bracketed(raw: pd.DataFrame) -> list[str]:
    """A note that explains the intervals, if there are any."""
    lows = [name for name in raw.columns if str(name).endswith(" low")]
    return [BRACKETS] if raw[lows].notna().any(axis=None) else []


def _fewer(text: pd.DataFrame) -> list[str]:
    """A note that explains the brackets after a mean, if there are any."""
    behind = text.map(lambda cell: bool(re.search(r"\(\d+ of \d+\)$", cell)))
    found = "Brackets after a mean: the number of seeds or trials that have a value, if not all have one."
    return [found] if behind.to_numpy().any() else []


def _seeds(rows: pd.DataFrame) -> int:
    return int(rows["seed"].nunique(dropna=False))


def _measures(frame: pd.DataFrame) -> dict[str, pd.Series[float]]:
    """The columns that both comparisons show, by heading."""
    lost = frame["dense"] - frame["raw"]
    lost = lost.where(lost >= 0.01 * frame["dense"])  # a smaller loss is mostly noise
    return {
        "Params Red.": 1 - frame["params_kept"],
        "MACs Red.": 1 - frame["macs_kept"],
        **{head: frame[stage] for stage, head in STAGE_HEADS.items()},
        "Test": frame["test"],
        "Regained": (frame["final"] - frame["raw"]) / lost,
        "Recovery": frame["metric_kept"],
        "Speedup": frame["speedup"],
    }


SHAPES: dict[str, Any] = {
    "Params Red.": change,
    "MACs Red.": change,
    **dict.fromkeys(STAGE_HEADS.values(), percentage),
    "Test": percentage,
    "Regained": "{:.0%}".format,
    "Recovery": percentage,
    "Speedup": times,
}
MEANING = [
    "Raw, Recalibrated, Refitted and Fine-tuned: the deciding metric on validation after each stage. Regained: the "
    "share of the decomposition's loss that the later stages recovered, (last - raw) / (dense - raw), if the loss is "
    "1% or more. Recovery: last over dense. Test: of those that were tested.",
    "mean ± standard deviation, if there are several values.",
]
COSTS = {"params_kept": "params", "macs_kept": "MACs"}
UNTUNED = (
    "*: not fine-tuned, while another network of the same budget was, so the two are not compared on equal conditions."
)


def _timed(rows: pd.DataFrame) -> list[str]:
    """A note on the conditions under which the speedups of these trials were measured."""
    found = [str(text) for text in rows.loc[rows["speedup"].notna(), "runtime"].unique()]
    return [f"Speedup: {'; '.join(found)}."] if found else []


def best_at_budgets(trials: Trials, cost: str = "params_kept") -> pd.DataFrame:
    """For each budget, the best trial of each method and seed that is not larger than the budget.

    Args:
        trials: of any number of runs.
        cost: what the budget limits: ``params_kept`` or ``macs_kept``.

    Returns:
        Rows of the trials' frame with an additional column ``budget``. The best trial has the greatest metric on
        validation. A budget is left out if no trial is larger than the next smaller budget and within this one.
    """
    frame = trials.frame[is_measured(trials.frame) & (trials.frame["status"] == "ok")]
    picked = []
    for _, rows in frame.groupby("group", observed=True):
        below = 0.0
        for budget in BUDGETS:
            within = rows[rows[cost] <= budget]
            if (within[cost] > below).any():
                best = within.sort_values("final", ascending=False, kind="stable")
                best = best.groupby(["method", "seed"], observed=True, sort=False, dropna=False).head(1)
                picked.append(best.assign(budget=budget))
            below = budget
    return pd.concat(picked) if picked else frame.assign(budget=pd.Series(dtype=float)).iloc[:0]


def methods_table(trials: Trials | Sequence[TrialRecord], keep: float) -> Table:
    """The best network of each method at equal budgets of parameters and of MACs, stage by stage."""
    trials = Trials.of(trials)
    tried = {pair: _seeds(part) for pair, part in trials.frame.groupby(["group", "method"], observed=True)}
    picked = [best_at_budgets(trials, cost).assign(cost=name) for cost, name in COSTS.items()]
    best = pd.concat(picked, ignore_index=True)
    best["cost"] = pd.Categorical(best["cost"], list(COSTS.values()))
    measures, accepted = _measures(best), is_accepted(best, keep)
    untuned, rows = _untuned(best, ["group", "cost", "budget"]), []
    for (group, cost, budget, method), part in best.groupby(["group", "cost", "budget", "method"], observed=True):
        rows.append(
            {
                "Model": group,
                "Budget": f"{cost} ≤ {budget:.0%}",
                "Method": trials.titles[str(method)],
                "Metric": part["metric"].iloc[0],
                **_averages(part, measures),
                **_limits(part, measures),
                **image_counts(part),
                "Accepted": int(accepted.loc[part.index].sum()),
                "Seeds": len(part),
                "Of Seeds": tried[group, method],
                "Untuned": bool(untuned.loc[part.index].any()),
            }
        )
    names = ["Model", "Budget", "Method", "Metric"]
    counts = ["Accepted", "Seeds", "Of Seeds", "Untuned"]
    raw = pd.DataFrame(rows, columns=[*names, *_with_means(SHAPES), *LIMITS, *COUNTS, *counts])
    text = _with_counts(raw, dict.fromkeys(names, str), "Seeds")
    text["Method"] += raw["Untuned"].map({True: "*", False: ""})
    notes = [
        "The best network of each method with at most this share of the dense parameters or MACs, chosen on "
        "validation.",
        *MEANING,
        *_bracketed(raw),
        *([UNTUNED] if raw["Untuned"].any() else []),
        *_timed(best),
        *_fewer(text),
        *_without_any(trials, best),
    ]
    heads = _heads(raw, trials.frame)
    title = f"Methods at equal budgets: {split_head(trials.frame, 'validation')}"
    return Table("methods", title, raw, text.rename(columns=heads), notes, _keys(text, raw, heads))


def _untuned(best: pd.DataFrame, within: list[str]) -> pd.Series[bool]:
    """Which of these trials were not fine-tuned while another with the same values of ``within`` was."""
    tuned = best["finetuned"].notna()
    some = tuned.groupby([best[name] for name in within], observed=True).transform("any")
    return ~tuned & some


def _without_any(trials: Trials, best: pd.DataFrame) -> list[str]:
    """A sentence for each method that has no network under any budget."""
    there = set(zip(best["group"], best["method"], strict=True))
    pairs = trials.frame[["group", "method"]].drop_duplicates().itertuples(index=False, name=None)
    most = f"{BUDGETS[-1]:.0%}"
    lacks = f"no fully measured trial keeps at most {most} of the parameters or MACs."
    return [
        f"{group}, {trials.titles[str(method)]}: {lacks}" for group, method in pairs if (group, method) not in there
    ]


def budgets_table(trials: Trials) -> Table:
    """A row for each method: the metric of its best network at each budget."""
    best = best_at_budgets(trials).reset_index(drop=True)
    untuned = _untuned(best, ["group", "budget"])
    budgets = sorted(best["budget"].unique())
    rows = []
    for (group, method), every in trials.frame.groupby(["group", "method"], observed=True) if budgets else ():
        row: dict[str, Any] = {"Model": group, "Method": trials.titles[str(method)], "Metric": every["metric"].iloc[0]}
        single = _one_a_seed(every)
        row |= _mean("Dense", single["dense"]) | _interval("Dense", single["dense"], single["images"])
        part = best[(best["group"] == group) & (best["method"] == method)]
        for budget in budgets:
            here = part.loc[part["budget"] == budget]
            row |= _mean(f"≤ {budget:.0%}", here["final"]) | _interval(
                f"≤ {budget:.0%}", here["final"], here["images"]
            )
            row[f"≤ {budget:.0%} untuned"] = bool(untuned.loc[here.index].any())
        rows.append(row | image_counts(every) | {"Seeds": _seeds(every)})
    heads = [f"≤ {budget:.0%}" for budget in budgets]
    marks = [f"{head} untuned" for head in heads]
    names = ["Model", "Method", "Metric"]
    ends = [f"{name} {end}" for name in ("Dense", *heads) for end in ("low", "high")]
    figures = [name for name in _with_means(["Dense", *heads]) if name != "Dense n"]
    raw = pd.DataFrame(rows, columns=[*names, *figures, *ends, COUNTS[0], *marks, "Seeds"])
    shapes: dict[str, Any] = {**dict.fromkeys(names, str), **dict.fromkeys(["Dense", *heads], percentage)}
    text = as_text(raw, shapes | {"Seeds": str}, "Seeds")
    for head, mark in zip(heads, marks, strict=True):
        text[head] += raw[mark].map({True: "*", False: ""})
    note = "The metric on validation of the dense network and of each method's best network with at most this share "
    note += f"of the parameters; {MEANING[1]}"
    notes = [note, *_bracketed(raw), *([UNTUNED] if raw[marks].to_numpy().any() else []), *_fewer(text)]
    title = f"Methods by budget of parameters: {split_head(trials.frame, 'validation')}"
    seen = {"Dense": split_head(trials.frame, "validation", "Dense", bool(_bracketed(raw)))}
    keys = _keys(text, raw, seen)
    return Table("budgets", title, raw, text.rename(columns=seen), notes, keys, ("Metric", seen["Dense"], "Seeds"))


def _one_a_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each trained dense network. A network that several seeds share counts once."""
    return rows.drop_duplicates("network" if rows["network"].nunique() == 1 else ["network", "seed"])


def sweeps_table(trials: Trials, keep: float) -> Table:
    """The results for each setting of a rank rule: sweeps over ranks, taus, thresholds and budgets."""
    frame = trials.frame[trials.frame["setting"] != ""].reset_index(drop=True)
    measures, accepted, measured = _measures(frame), is_accepted(frame, keep), is_measured(frame)
    rows = []
    for (group, method, rule, setting), every in frame.groupby(
        ["group", "method", "rule", "setting"], observed=True, sort=False
    ):
        part = every[measured.loc[every.index]]
        row = {
            "Model": group,
            "Method": trials.titles[str(method)],
            "Rule": rule,
            "Setting": setting,
            "Metric": every["metric"].iloc[0],
        }
        row |= _averages(part, measures) | _limits(part, measures) | image_counts(every)
        row |= {"Accepted": int(accepted.loc[part.index].sum())}
        rows.append(row | {"Trials": len(part), "Of Trials": len(every)})
    order = {group: place for place, group in enumerate(frame["group"].cat.categories)}
    places = {title: place for place, title in enumerate(trials.titles.values())}
    rows.sort(key=lambda row: (order[row["Model"]], places[row["Method"]], row["Rule"], _natural(row["Setting"])))
    names = ["Model", "Method", "Rule", "Setting", "Metric"]
    columns = [*names, *_with_means(SHAPES), *LIMITS, *COUNTS, "Accepted", "Trials", "Of Trials"]
    raw = pd.DataFrame(rows, columns=columns)
    text = _with_counts(raw, dict.fromkeys(names, str), "Trials")
    notes = [*MEANING, *_bracketed(raw), *_timed(frame), *_fewer(text)]
    heads = _heads(raw, trials.frame)
    title = f"Rank rules and their settings: {split_head(trials.frame, 'validation')}"
    return Table("sweeps", title, raw, text.rename(columns=heads), notes, _keys(text, raw, heads))


def _natural(text: str) -> tuple[str, list[float]]:
    """Key for sorting ``tau=0.5`` before ``tau=0.7``, and 5 before 16."""
    number = r"\d+(?:\.\d+)?(?:e-?\d+)?"
    return re.sub(number, "", text), [float(found) for found in re.findall(number, text)]


def _with_counts(raw: pd.DataFrame, names: dict[str, Any], what: str) -> pd.DataFrame:
    """``raw`` as text, with how many of the seeds or trials (``what``) were accepted and how many have a network."""
    totals = raw[f"Of {what}"]
    text = as_text(raw, names | SHAPES, f"Of {what}")
    text["Accepted"] = [f"{n} of {total}" for n, total in zip(raw["Accepted"], totals, strict=True)]
    text[what] = [f"{n} of {total}" if n < total else str(n) for n, total in zip(raw[what], totals, strict=True)]
    return text


def _keys(text: pd.DataFrame, raw: pd.DataFrame, heads: Mapping[str, str] | None = None) -> dict[str, str]:
    """Heading -> the column of ``raw`` by which it is sorted. ``heads`` holds headings that differ from the column."""
    seen = heads or {}
    return {
        seen.get(name, name): name for name in text.columns if name in raw and pd.api.types.is_numeric_dtype(raw[name])
    }


def searches_table(trials: Trials, keep: float) -> Table:
    """Compare rank rules and samplers: the number of trials and of accepted ones, and the results of the best."""
    frame = trials.frame
    accepted, rows = is_accepted(frame, keep), []
    samplers = sorted(frame["sampler"].cat.categories, key=str.casefold)
    frame = frame.assign(sampler=frame["sampler"].cat.reorder_categories(samplers))
    for (group, method, sampler), part in frame.groupby(["group", "method", "sampler"], observed=True):
        states = part["status"].value_counts()
        good = part[accepted.loc[part.index]]
        by_seed = good[counts_for_best(good)].groupby("seed", dropna=False)
        seeds = _seeds(part)
        row = {"Model": group, "Method": trials.titles[str(method)], "Rule or sampler": sampler, "Seeds": seeds}
        row |= {"Trials": len(part), "Pruned": int(states.get("pruned", 0)), "Failed": int(states.get("failed", 0))}
        row |= {"Accepted": len(good), "Accepted Seeds": f"{by_seed.ngroups} of {seeds}"}
        row |= _mean("Params Red.", 1 - by_seed["params_kept"].min())
        row |= _mean("MACs Red.", 1 - by_seed["macs_kept"].min())
        row |= _mean("Speedup", by_seed["speedup"].max())
        row["Seconds a Trial"] = part["seconds"].median()
        row["Hours"] = np.nansum(part["seconds"]) / 3600
        rows.append(row)
    names = ["Model", "Method", "Rule or sampler"]
    counts = ["Seeds", "Trials", "Pruned", "Failed", "Accepted"]
    best = {"Params Red.": change, "MACs Red.": change, "Speedup": times}
    columns = [*names, *counts, "Accepted Seeds", *_with_means(best), "Seconds a Trial", "Hours"]
    raw = pd.DataFrame(rows, columns=columns)
    shapes: dict[str, Any] = {**dict.fromkeys(names, str), **dict.fromkeys(counts, "{:,}".format)}
    shapes |= {"Accepted Seeds": str, **best, "Seconds a Trial": "{:.1f}".format, "Hours": "{:.2f}".format}
    text = as_text(raw, shapes, "Seeds")
    notes = [
        "Params Red., MACs Red. and Speedup: the best accepted trial by each, of those that were tested if any were; "
        "mean ± standard deviation over the seeds that Accepted Seeds counts.",
        *_timed(frame),
        *_fewer(text),
        "Seconds a Trial: the median, fine-tuning included. Hours: all trials together.",
    ]
    return Table("searches", "Rank rules and samplers", raw, text, notes, _keys(text, raw))

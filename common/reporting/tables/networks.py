"""The chosen networks with their ranks and times, and the runs from which they come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from common.reporting.facts import conditions, environment_text, macs_ratio, number, timings
from common.reporting.frame import Trials
from common.reporting.tables.table import Table, as_text, change, milliseconds, percentage, times
from common.trials import LayerFigures, TrialRecord
from common.trials.best import CRITERION_NAMES
from common.trials.migration import TITLES_1

PLACE = ("Model", "Run", "Trial")


def chosen_networks(trials: Trials, keep: float) -> Iterator[tuple[str, list[str], TrialRecord]]:
    """The best accepted trials of each block, each once: (block, criteria by which it is the best, record)."""
    for label, rows in trials.blocks():
        by_trial: dict[tuple[str, int], tuple[list[str], TrialRecord]] = {}
        for name, record in trials.best(rows, keep).items():
            by_trial.setdefault((record.run, record.trial), ([], record))[0].append(name)
        yield from ((label, criteria, record) for criteria, record in by_trial.values())


def layers_table(trials: Trials, keep: float) -> Table:
    """The ranks of every layer of the chosen networks, their errors and reductions, and why layers stayed dense."""
    rows: list[dict[str, Any]] = []
    titles = {**TITLES_1, **trials.titles}
    for label, criteria, record in chosen_networks(trials, keep):
        best = ", ".join(CRITERION_NAMES[name] for name in criteria)
        place = {"Model": label, "Run": record.run, "Trial": record.trial, "Best": best}
        for layer, made in record.plan.items():
            figures = record.details.layers.get(layer, LayerFigures())
            rows.append(
                {
                    **place,
                    "Layer": layer,
                    "Method": titles.get(made.method or "", made.method or "dense"),
                    "Ranks": " ".join(map(str, made.ranks)),
                    "Error": figures.error,
                    "Params Red.": 1 - figures.params,
                    "MACs Red.": 1 - figures.macs,
                    "Dense because": made.dense or "",
                }
            )
    shares = ("Error", "Params Red.", "MACs Red.")
    raw = pd.DataFrame(rows, columns=[*PLACE, "Best", "Layer", "Method", "Ranks", *shares, "Dense because"])
    text = as_text(raw, {**dict.fromkeys(raw.columns, str), "Error": percentage, **dict.fromkeys(shares[1:], change)})
    notes = [
        f"The best accepted trial of each model by {', '.join(CRITERION_NAMES.values())}; ranks from input to output.",
        "Error: relative error of the layer's output on calibration data, or of its weight if no data was used.",
    ]
    return Table("layers", "Ranks of the layers", raw, text, notes, {name: name for name in ("Trial", *shares)})


def latencies_table(trials: Trials, keep: float) -> Table:
    """The times of the chosen networks under all conditions in which they were timed."""
    rows: list[dict[str, Any]] = []
    refused: list[str] = []
    for label, _, record in chosen_networks(trials, keep):
        for timing in timings(record):
            speedup, saved = number(timing.speedup), macs_ratio(record, timing)
            if timing.note:
                refused.append(f"{record.run}, trial {record.trial}, {conditions(timing)}: {timing.note}.")
            rows.append(
                {
                    **{"Model": label, "Run": record.run, "Trial": record.trial},
                    "Measured in": conditions(timing),
                    "Dense": number(timing.baseline_median_s),
                    "Compressed": number(timing.median_s),
                    "Compressed IQR": number(timing.iqr_s),
                    "Speedup": speedup,
                    "MACs ratio": saved,
                    "Realised": speedup / saved,
                }
            )
    times_of = {"Dense": milliseconds, "Compressed": milliseconds, "Compressed IQR": milliseconds}
    ratios = {"Speedup": times, "MACs ratio": times, "Realised": percentage}
    raw = pd.DataFrame(rows, columns=[*PLACE, "Measured in", *times_of, *ratios])
    text = as_text(raw, {**dict.fromkeys((*PLACE, "Measured in"), str), **times_of, **ratios})
    notes = [
        "Median times of one forward pass of the batch, dense and compressed in turn. IQR: interquartile range.",
        "MACs ratio: dense MACs over compressed ones, those of the merged layers if the runtime merges layers. "
        "Realised: the speedup as a share of this ratio.",
        *refused,
    ]
    return Table("latency", "Time on the clock", raw, text, notes, {name: name for name in (*times_of, *ratios)})


def runs_table(trials: Trials, folder: Path) -> Table:
    """Every run: its trials, seeds, commit, environment and a link to its log, relative to ``folder``."""
    rows, links = [], []
    for run, part in trials.frame.groupby("run", observed=True, sort=False):
        first, states = trials.record(part.index[0]), part["status"].value_counts()
        path = trials.path(part.index[0])
        links.append(quote(Path(os.path.relpath(path, folder)).as_posix(), errors="surrogateescape"))
        rows.append(
            {
                "Run": run,
                "Model": part["label"].iloc[0],
                "Trials": len(part),
                **{name.capitalize(): int(states.get(name, 0)) for name in ("ok", "pruned", "failed")},
                "Seeds": ", ".join(f"{seed:.0f}" for seed in sorted(part["seed"].unique())),
                "Commit": str(first.git_commit or "unknown"),
                "Command": str(first.environment.get("command") or first.details.command or ""),
                "Environment": environment_text(first),
            }
        )
    counts = ["Trials", "Ok", "Pruned", "Failed"]
    columns = ["Run", "Model", *counts, "Seeds", "Commit", "Command", "Environment"]
    raw = pd.DataFrame(rows, columns=columns)
    if not raw["Command"].any():
        raw = raw.drop(columns="Command")
    text = as_text(raw, {name: "{:,}".format if name in counts else str for name in raw.columns})
    return Table("runs", "Runs", raw, text, [], {name: name for name in counts}, links=links)

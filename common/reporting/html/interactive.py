"""What the page's script needs of the trials: their figures, their plans, Pareto fronts and searches' progress."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from common.reporting.facts import COLORS, MARKERS, method_places
from common.reporting.frame import Trials, is_accepted
from common.reporting.fronts import front_of, measured, reference_front, thin
from common.reporting.intervals import interval_text, share_interval
from common.reporting.reference import Reference
from common.reporting.tables.splits import split_head
from common.reporting.tables.table import change, percentage, times
from common.reporting.tables.trials import NAMES
from common.trials import LayerFigures, TrialRecord
from common.trials.migration import TITLES_1

COSTS = {"params_kept": "Parameters", "macs_kept": "MACs", "time_kept": "Time"}
SHOWN = 1000
"""Maximum number of trials in the page, evenly spread over the models. ``trials.csv`` holds all of them."""
SYMBOLS = {
    **{"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"},
    **{"X": "x", "*": "star", "<": "triangle-left", ">": "triangle-right"},
}
"""Marker of matplotlib -> symbol of Plotly."""


def shown_rows(trials: Trials, keep: float) -> pd.Index:
    """The rows that the page holds: all, or an even selection of each block with its best trials, by row."""
    frame = trials.frame
    if len(frame) <= SHOWN:
        return frame.index
    blocks = frame["label"].nunique()
    rows: set[int] = set()
    for _, block in trials.blocks():
        accepted = block[is_accepted(block, keep)]
        best = [accepted.nsmallest(1, "params_kept"), accepted.nsmallest(1, "macs_kept")]
        rows |= {int(row) for part in (thin(block, max(1, SHOWN // blocks)), *best) for row in part.index}
    return frame.index[frame.index.isin(rows)]


def page_data(trials: Trials, keep: float, rows: pd.Index) -> str:
    """Return the data of the page as JSON that can stand in an HTML element.

    Args:
        trials: all trials, from which fronts and progress are made.
        keep: a trial is accepted if it kept this fraction of the dense metric.
        rows: the rows of the trials that the page shows, see `shown_rows`.
    """
    words = _Words()
    places = method_places(trials.frame["method"].cat.categories)
    methods = {
        name: {
            "title": title,
            "color": COLORS[places[name] % len(COLORS)],
            "symbol": SYMBOLS[MARKERS[(places[name] + places[name] // len(COLORS)) % len(MARKERS)]],
        }
        for name, title in trials.titles.items()
    }
    held = {
        "keep": keep,
        "costs": COSTS,
        "methods": methods,
        "models": {
            label: _model(_with_time(block), keep, trials.reference_for(block)) for label, block in trials.blocks()
        },
        "trials": _trials(trials, keep, rows, words),
        "words": words.known,
    }
    text = json.dumps(_finite(held), ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, and round the others to six digits."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


class _Words:
    """Texts that occur often. Each is stored once, and the page's data holds its place."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.known)
            self.known.append(text)
        return self._places[text]


def _with_time(block: pd.DataFrame) -> pd.DataFrame:
    return block.assign(time_kept=1 / block["speedup"].where(block["speedup"] > 0))


def _model(block: pd.DataFrame, keep: float, reference: Reference | None) -> dict[str, Any]:
    """Heading, dense metric, fronts, progress and reference of a block of trials."""
    shown = measured(block)
    dense, images = float(block["dense"].iloc[0]), float(block["images"].iloc[0])
    timed = [name for name in block["runtime"].unique() if name]
    conditions = f" ({timed[0]})" if len(timed) == 1 else " (under several conditions)" if timed else ""
    return {
        "head": split_head(block, "validation"),
        "dense": dense * 100,
        "interval": [100 * limit for limit in share_interval(dense, images) or ()],
        "timed": conditions,
        "fronts": {
            cost: {
                str(method): front_of(part, cost)
                for method, part in shown.groupby("method", observed=True)
                if len(part)
            }
            for cost in COSTS
        },
        "reference": {
            "name": reference.name if reference else "",
            "fronts": {cost: reference_front(reference, cost) for cost in COSTS},
        },
        "progress": [
            {"method": str(method), "sampler": str(sampler), "study": str(study), "steps": _steps(part, keep)}
            for (study, method, sampler), part in block.groupby(
                ["study", "method", "sampler"], observed=True, sort=False
            )
        ],
    }


def _steps(part: pd.DataFrame, keep: float) -> list[tuple[int, float]]:
    """The smallest accepted network so far: (place in the search, parameters kept in percent) at each change."""
    part = part.sort_values("trial", kind="stable")
    best = 100 * part["params_kept"].where(is_accepted(part, keep)).cummin().ffill().to_numpy()
    known = np.flatnonzero(~np.isnan(best))
    if not len(known):
        return []
    changes = [known[0], *(after for before, after in pairwise(known) if best[after] != best[before])]
    return [(int(place) + 1, float(best[place])) for place in dict.fromkeys([*changes, known[-1]])]


def _trials(trials: Trials, keep: float, rows: pd.Index, words: _Words) -> list[dict[str, Any]]:
    frame = _with_time(trials.frame)
    place = frame.sort_values("trial", kind="stable").groupby(["study", "method", "sampler"], observed=True).cumcount()
    frame = frame.assign(place=place + 1, accepted=is_accepted(frame, keep))
    chosen = frame.loc[rows]
    reached = measured(chosen)["reached"]
    titles = {**TITLES_1, **trials.titles}
    found = []
    for row, held in zip(rows, chosen.to_dict("records"), strict=True):
        record = trials.record(int(row))
        found.append(
            {
                "row": int(row),
                "trial": held["trial"],
                "place": held["place"],
                "accepted": bool(held["accepted"]),
                "value": 100 * held["final"],
                "stage": reached.get(row, ""),
                **{cost: 100 * held[cost] for cost in COSTS},
                **{name: words.place(str(held[name])) for name in ("label", "run", "study", "method", "sampler")},
                "said": [words.place(line) for line in _said(held, titles, reached.get(row, ""), chosen)],
                "error": record.error,
                "plan": _plan(record, titles, words),
            }
        )
    return found


def _said(held: Mapping[Any, Any], titles: dict[str, str], stage: str, rows: pd.DataFrame) -> Iterable[str]:
    """What a reader is told about a trial, in lines."""
    setting = f" ({held['setting']})" if held["setting"] else ""
    yield f"trial {held['trial']} of {held['run']}"
    yield f"{titles[held['method']]}, {held['rule']}{setting}"
    if stage:
        own = rows[rows["label"] == held["label"]]
        last = f", {NAMES.get(stage, stage)}"
        yield f"{split_head(own, 'validation')} {_with_interval(held['final'], held['images'])}{last}"
        if not math.isnan(held["test"]):
            yield f"{split_head(own, 'test')} {_with_interval(held['test'], held['test_images'])}"
    for title, cost in (("Params", "params_kept"), ("MACs", "macs_kept")):
        if held["params"] and not math.isnan(held[cost]):
            yield f"{title} {change(1 - held[cost])}"
    if not math.isnan(held["speedup"]):
        yield f"Speedup {times(held['speedup'])} ({held['runtime']})"
    yield held["status"] + (", accepted" if held["accepted"] else ", not accepted")


def _with_interval(value: float, images: float) -> str:
    return percentage(value) + interval_text(value, images)


def _plan(record: TrialRecord, titles: dict[str, str], words: _Words) -> list[list[Any]]:
    """For each layer: name, method, ranks, changes of parameters and MACs, error, why it stays dense."""
    lines = []
    for layer, made in record.plan.items():
        figures = record.details.layers.get(layer, LayerFigures())
        changes = [
            "-" if math.isnan(value) else shape(value)
            for value, shape in (
                (1 - figures.params, change),
                (1 - figures.macs, change),
                (figures.error, percentage),
            )
        ]
        method = titles.get(made.method or "", made.method or "dense")
        texts = (layer, method, " ".join(map(str, made.ranks)), *changes, made.dense or "")
        lines.append([words.place(text) for text in texts])
    return lines

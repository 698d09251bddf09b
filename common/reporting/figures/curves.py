"""Figures of progress over time: the epochs of a training and the trials of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.reporting.facts import MARKERS
from common.reporting.figures.style import (
    DASHES,
    WIDE,
    message,
    method_looks,
    no_accepted_trial,
    palette,
    percent,
    picture,
    styled,
)
from common.reporting.frame import Trials, is_accepted
from common.reporting.runs import check_keep
from common.trials import TrialRecord

NOT_METRICS = {"epoch", "lr", "learning_rate", "seconds", "time", "step"}


def training_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """The losses (left) and the metrics on the validation split (right) of each epoch.

    Args:
        history: one mapping per epoch, as :func:`common.training.train` returns them. ``epoch`` is the x axis; if it
            is missing, epochs are counted from 1. Keys that contain ``loss`` go to the left; ``loss`` itself is the
            loss on the validation split. Learning rates and times are left out. Every other value is a metric, as a
            fraction.
    """
    if not history:
        return message("No epoch was trained.")
    keys = list(dict.fromkeys(key for row in history for key in row if key not in NOT_METRICS))
    epochs = [row.get("epoch", number) for number, row in enumerate(history, start=1)]
    with styled():
        figure = picture(WIDE, 2.5)
        panels = figure.subplots(1, 2)
        losses, metrics = [k for k in keys if "loss" in k], [k for k in keys if "loss" not in k]
        labels = ("Loss", "Validation metric (%)")
        for axes, names, scale, label in zip(panels, (losses, metrics), (1, 100), labels, strict=True):
            for index, name in enumerate(names):
                values = [row.get(name) for row in history]
                numbers = [math.nan if value is None else scale * value for value in values]
                marker = MARKERS[index % len(MARKERS)] if len(history) <= 30 else ""
                shown = "validation loss" if name == "loss" else name.replace("_", " ")
                axes.plot(epochs, numbers, color=palette(10)[index % 10], marker=marker, label=shown)
            if names:
                axes.legend(frameon=False)
            axes.set(xlabel="Epoch", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def progress(trials: Trials | Sequence[TrialRecord], keep: float = 0.99) -> Figure:
    """The smallest accepted network so far against the number of trials (left) and the time spent in them (right).

    Each model has a row of panels, and each study and method has a line. Its colour is the method, its dashes the rule
    or sampler. Each trial counts with its final metric and its whole time, fine-tuning included. If an accepted trial
    of a model belongs to a search of ten trials or more, smaller groups of trials are left out. A search without an
    accepted trial has no line; the title then states how many searches have one.

    Args:
        trials: of any number of models.
        keep: a trial is accepted if it kept this fraction of the dense metric on validation, in [0, 1].

    Raises:
        ValueError: ``keep`` is not in [0, 1].
    """
    check_keep(keep)
    trials = Trials.of(trials)
    frame = trials.frame.assign(accepted=is_accepted(trials.frame, keep))
    if not frame["accepted"].any():
        return no_accepted_trial(keep)
    searched = frame.groupby(["study", "method", "sampler"], observed=True)["trial"].transform("size") >= 10
    fruitful = (searched & frame["accepted"]).groupby(frame["label"], observed=True).transform("any")
    frame = frame[searched | ~fruitful]
    looks, samplers = method_looks(frame["method"]), list(dict.fromkeys(frame["sampler"]))
    groups = list(frame.groupby("label", observed=True))
    with styled():
        figure = picture(WIDE, 0.9 + 1.5 * len(groups))
        grid = figure.subplots(len(groups), 2, sharey="row", squeeze=False)
        for row, (label, rows) in zip(grid, groups, strict=True):
            _draw_searches(row, str(label), rows, looks, samplers)
        grid[-1][0].set_xlabel("Trials made")
        grid[-1][1].set_xlabel("Time spent in trials (min)")
        figure.suptitle(f"Smallest network so far that kept ≥ {percent(keep)} of the dense metric", fontsize=8)
        handles = [Line2D([], [], color=color, lw=2, label=trials.titles[name]) for name, (color, _) in looks.items()]
        handles += [
            Line2D([], [], color="0.3", linestyle=DASHES[i % len(DASHES)], label=sampler)
            for i, sampler in enumerate(samplers)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
    return figure


def _draw_searches(
    row: Sequence[Axes], label: str, rows: pd.DataFrame, looks: Mapping[str, tuple[Any, str]], samplers: Sequence[str]
) -> None:
    """Draw the two panels of one model with a line for each of its searches."""
    top, searches, successes = 0.0, 0, 0
    for (_, name, sampler), part in rows.groupby(["study", "method", "sampler"], observed=True, sort=False):
        part = part.sort_values("trial", kind="stable")
        best = 100 * part["params_kept"].where(part["accepted"]).cummin().ffill().to_numpy()
        spent = np.nancumsum(part["seconds"]) / 60
        top = max(top, float(np.fmax.reduce(best, initial=0.0)))
        searches, successes = searches + 1, successes + int(part["accepted"].any())
        look = {
            "color": looks[str(name)][0],
            "linestyle": DASHES[samplers.index(str(sampler)) % len(DASHES)],
            "marker": "." if len(part) < 10 else "",
            "drawstyle": "steps-post",
        }
        row[0].plot(np.arange(1, len(part) + 1), best, **look)
        row[1].plot(spent, best, **look)
    fewer = f": {successes} of {searches} searches" if successes < searches else ""
    row[0].set_title(f"{label}{fewer}", loc="left", fontweight="bold")
    row[0].set_ylim(0, 1.08 * top or None)
    row[0].set_ylabel("Params kept (%)")
    row[0].xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    for axes in row:
        axes.set_xlim(left=0)
    if not successes:
        row[0].set_yticks([])
        row[0].text(0.5, 0.5, "no accepted trial", transform=row[0].transAxes, ha="center", color="0.35")

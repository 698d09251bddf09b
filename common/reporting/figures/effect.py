"""How much of the metric fine-tuning recovers, and how much of the saved MACs becomes saved time."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from common.reporting.facts import conditions, macs_ratio, method_name, method_order, number, timings
from common.reporting.figures.pareto import STAGE_MARKERS, STAGE_NAMES, dense_interval, dense_label
from common.reporting.figures.style import (
    DENSE_COLOR,
    NARROW,
    WIDE,
    Picture,
    message,
    method_looks,
    palette,
    picture,
    styled,
)
from common.reporting.frame import Trials
from common.reporting.fronts import thin
from common.reporting.tables.splits import split_head
from common.trials import STAGES, TrialRecord

TIMED = 250
"""Maximum number of trials drawn for each block, evenly spread over all that were timed."""
Point = tuple[str, str, float, float]
"""Block, method, MACs ratio and speedup of a timed network."""


def stages(trials: Trials | Sequence[TrialRecord], keep: float = 0.99) -> Figure:
    """The deciding metric of every fine-tuned trial, stage by stage.

    Each model has a panel, each method a column and each trial a line. A grey band is the 95% interval of the dense
    network. Of more than 40 trials in a column, 40 evenly
    spread ones are drawn.
    """
    trials = Trials.of(trials)
    groups = [
        (label, tuned)
        for label, rows in trials.blocks()
        if not (tuned := rows[rows["finetuned"].notna() & (rows["status"] == "ok")]).empty
    ]
    if not groups:
        return message("No trial was fine-tuned.")
    with styled(axes_grid_axis="y"):
        columns = min(2, len(groups))
        figure = picture(WIDE, 0.6 + 2.1 * math.ceil(len(groups) / columns))
        for axes, (label, rows) in zip(_panels(figure, len(groups), columns), groups, strict=True):
            _draw_tuned(axes, rows, trials.titles)
            dense = 100 * float(rows["dense"].max())
            axes.axhline(dense, color=DENSE_COLOR, linewidth=0.8)
            if limits := dense_interval(rows):
                axes.axhspan(*(100 * limit for limit in limits), color="0.9", zorder=0)
            axes.axhline(keep * dense, color=DENSE_COLOR, linewidth=0.8, linestyle=":")
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, high - 2), high)
            axes.set_title(label, loc="left", fontweight="bold")
            axes.set_ylabel(f"{split_head(rows, 'validation')}, %")
        handles = [
            *(
                Line2D([], [], linestyle="none", marker=STAGE_MARKERS[s], color=c, label=STAGE_NAMES[s])
                for s, c in zip(STAGES, palette(len(STAGES)), strict=True)
                if any(rows[s].notna().any() for _, rows in groups)
            ),
            Line2D([], [], color=DENSE_COLOR, linewidth=0.8, label=dense_label(rows for _, rows in groups)),
            Line2D([], [], color=DENSE_COLOR, linewidth=0.8, linestyle=":", label=f"{100 * keep:g}% of it"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _panels(figure: Picture, number: int, columns: int, **shared: Any) -> list[Axes]:
    """Return ``number`` panels in rows of ``columns``. The remaining places stay empty."""
    grid = figure.subplots(math.ceil(number / columns), columns, squeeze=False, **shared).ravel()
    for axes in grid[number:]:
        axes.set_axis_off()
    return list(grid[:number])


def _draw_tuned(axes: Axes, rows: pd.DataFrame, titles: Mapping[str, str]) -> None:
    """Draw a column of lines for each method."""
    names = method_order(rows["method"])
    for place, name in enumerate(names):
        part = thin(rows[rows["method"] == name], 40)
        heights = 100 * part[list(STAGES)].to_numpy(dtype=float)
        across = place + np.linspace(-0.27, 0.27, len(STAGES))
        for line in heights:
            known = ~np.isnan(line)
            axes.plot(across[known], line[known], color="0.6", linewidth=0.6, zorder=1)
        for x, stage, values in zip(across, STAGES, heights.T, strict=True):
            color = palette(len(STAGES))[STAGES.index(stage)]
            if not np.isnan(values).all():
                axes.scatter([x] * len(values), values, s=14, color=color, marker=STAGE_MARKERS[stage], zorder=2)
    axes.set_xticks(range(len(names)), labels=[titles[name] for name in names])
    axes.set_xlim(-0.6, len(names) - 0.4)


def speedups(trials: Trials | Sequence[TrialRecord]) -> Figure:
    """The measured speedup against the ratio of MACs, with one panel for each runtime and logarithmic axes.

    On the ideal line, the speedup equals the ratio of MACs. The colour is the model and the marker the method. At most
    `TIMED` trials of each model are drawn.
    """
    trials = Trials.of(trials)
    points = _timed_points(trials)
    if not points:
        return message("No speedup was measured.")
    labels = list(dict.fromkeys(label for drawn in points.values() for label, *_ in drawn))
    there = {name for drawn in points.values() for _, name, *_ in drawn}
    looks = {name: look for name, look in method_looks(trials.frame["method"]).items() if name in there}
    ratios = [value for drawn in points.values() for *_, saved, speedup in drawn for value in (saved, speedup)]
    limits = min(0.8, *ratios) / 1.1, max(2.0, *ratios) * 1.1
    with styled():
        columns = min(2, len(points))
        legend_columns = 3 if columns > 1 else 2 if max(map(len, labels)) < 24 else 1
        lines = math.ceil((len(labels) + len(looks) + 2) / legend_columns)
        height = 0.1 + 3.85 * math.ceil(len(points) / columns) + 0.17 * lines
        figure = picture(WIDE if columns > 1 else NARROW, height)
        panels = _panels(figure, len(points), columns, sharex=True, sharey=True)
        for axes, (heading, drawn) in zip(panels, points.items(), strict=True):
            _set_log_axes(axes, limits)
            axes.set_title(heading)
            for label, name, saved, speedup in random.Random(0).sample(drawn, len(drawn)):  # no model hides another
                color = palette(10)[labels.index(label) % 10]
                axes.plot(saved, speedup, looks[name][1], color=color, alpha=0.5, markersize=3.5, markeredgewidth=0)
        for axes in panels[::columns]:
            axes.set_ylabel("Time, dense over compressed")
        handles = [Line2D([], [], color=palette(10)[i % 10], lw=3, label=label) for i, label in enumerate(labels)]
        handles += [
            Line2D([], [], linestyle="none", color="0.4", marker=marker, label=trials.titles[name])
            for name, (_, marker) in looks.items()
        ]
        handles += [
            Line2D([], [], color=DENSE_COLOR, linewidth=0.8, label="ideal: speedup = MACs ratio"),
            Line2D([], [], color=DENSE_COLOR, linewidth=0.8, linestyle=":", label="as fast as dense"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False)
    return figure


def _timed_points(trials: Trials) -> dict[str, list[Point]]:
    """Conditions -> points of the trials that were timed under them."""
    points: dict[str, list[Point]] = {}
    for label, rows in trials.blocks():
        timed = thin(rows[rows["speedup"].notna() & (rows["macs"] > 0) & (rows["dense_macs"] > 0)], TIMED)
        for row in timed.index:
            record = trials.record(row)
            for timing in timings(record):
                speedup, saved = number(timing.speedup), macs_ratio(record, timing)
                if speedup > 0 and saved > 0:
                    points.setdefault(conditions(timing), []).append((label, method_name(record), saved, speedup))
    return points


def _set_log_axes(axes: Axes, limits: tuple[float, float]) -> None:
    """Set two equal logarithmic axes, and draw the ideal line and the line of the dense network."""
    low, high = limits
    axes.plot([low, high], [low, high], color=DENSE_COLOR, linewidth=0.8, zorder=1)
    axes.axhline(1, color=DENSE_COLOR, linewidth=0.8, linestyle=":", zorder=1)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low < tick < high])
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelbottom=True)  # there may be no panel below
    axes.set_xlabel("MACs, dense over compressed")

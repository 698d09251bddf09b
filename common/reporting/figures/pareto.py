"""The deciding metric against the cost of a network, by model and by method, with Pareto fronts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.reporting.figures.style import (
    DENSE_COLOR,
    REFERENCE_COLOR,
    WIDE,
    message,
    method_looks,
    palette,
    picture,
    styled,
)
from common.reporting.frame import Trials
from common.reporting.fronts import DRAWN, front_of, measured, reference_front, thin
from common.reporting.fronts import pareto_front as pareto_front
from common.reporting.intervals import share_interval
from common.reporting.reference import COSTS as REFERENCE_COSTS
from common.reporting.reference import Reference
from common.reporting.tables.splits import metric_name, split_head
from common.reporting.tables.summary import baseline_row
from common.trials import STAGES, TrialRecord

STAGE_MARKERS = {"raw": "o", "recalibrated": "s", "refitted": "D", "finetuned": "^", "pruned": "x"}
STAGE_NAMES = {
    "raw": "raw",
    "recalibrated": "recalibrated",
    "refitted": "refitted",
    "finetuned": "fine-tuned",
    "pruned": "pruned",
}
STAGE_COLORS = [*palette(len(STAGES)), (0.45, 0.45, 0.45)]
PLATE = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
HOLLOW = {"facecolors": "none", "linewidths": 0.7}
"""The look of a trial that was not fine-tuned."""
COSTS = {"params_kept": "Parameters kept (% of dense)", "macs_kept": "MACs kept (% of dense)"}


def pareto(trials: Trials | Sequence[TrialRecord]) -> Figure:
    """The deciding metric after each trial's last stage against its parameters (left) and its MACs (right).

    The marker is the last stage of the trial. The colour is the model, or the stage if there is only one model. A line
    is the Pareto front of a model's trials: no other trial is both smaller and better. A star is the dense network,
    with a bar for its 95% interval where the metric is a share of images. Failed and unmeasured trials are left out.
    Pruned trials are crosses and are never on the front. The networks of ``trials.reference`` are grey dots with a
    dashed front.
    """
    trials = Trials.of(trials)
    groups = {label: measured(rows) for label, rows in trials.blocks()}
    if all(rows.empty for rows in groups.values()):
        return message("No trial was measured.")
    several = len(groups) > 1
    with styled():
        figure = picture(WIDE, 3.2 + (0.16 * max(len(groups), 5) if several else 0))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (name, title) in zip(panels, COSTS.items(), strict=True):
            for index, rows in enumerate(groups.values()):
                if not rows.empty:
                    _draw_stages(axes, rows, name, palette(10)[index % 10] if several else None)
                    draw_reference(axes, trials.reference_for(rows), name)
            axes.set_xlabel(title)
            axes.set_xlim(left=0)
        every = pd.concat(list(groups.values()))
        shown_rows = [rows for rows in groups.values() if not rows.empty]
        references = [found for rows in shown_rows if (found := trials.reference_for(rows))]
        stars = [star for rows in shown_rows for star in _stars(rows, trials.reference_for(rows))]
        fit_height(panels[0], 100 * every["final"], stars)
        metrics = " or ".join(sorted({str(name).capitalize() for name in every["metric"]}))
        split = split_head(every, "validation").removeprefix(metric_name(every))
        panels[0].set_ylabel(f"{metrics}{split}, %")
        reached = set(every["reached"])
        shown = [stage for stage in STAGE_MARKERS if stage in reached]
        handles = _pareto_legend(list(groups), shown, dense_label(shown_rows), reference_handles(references))
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), 2 if several else 5),
            frameon=False,
        )
    return figure


def fit_height(axes: Axes, values: Sequence[float] | pd.Series[float], stars: Sequence[float]) -> None:
    """Limit the y axis so that small differences look small and a few bad trials do not flatten the others.

    Args:
        axes: the axes with all marks. If some of ``values`` lie below the lower limit, a note states how many.
        values: the metric of each trial, in percent.
        stars: metrics that stay inside the limits, such as those of dense networks; NaN if unknown.
    """
    low, high = axes.get_ylim()
    top, tenth = axes.dataLim.ymax, float(np.quantile(values, 0.1))
    bottom = min([tenth - (top - tenth) / 2, *(star - 0.02 * (top - star) for star in stars if not np.isnan(star))])
    below = sum(value < bottom for value in values)
    if below and bottom - low > top - bottom:
        low, high = bottom, top + 0.05 * (top - bottom)
        note = f"{below} of {len(values)} trials lie below"
        axes.text(
            0.5, 0.02, note, transform=axes.transAxes, ha="center", va="bottom", fontsize=7, color="0.35", bbox=PLATE
        )
    if high - low < 2:
        low, high = low - (2 - high + low) / 2, high + (2 - high + low) / 2
    axes.set_ylim(low, high)


def _draw_stages(axes: Axes, rows: pd.DataFrame, cost: str, color: Any) -> None:
    drawn = thin(rows)
    size, alpha, width = (16, 0.65, 0.8) if len(drawn) < 200 else (8, 0.3, 0.6)
    for position, (stage, marker) in enumerate(STAGE_MARKERS.items()):
        at = drawn[drawn["reached"] == stage]
        if not at.empty:
            tint = color or STAGE_COLORS[position]
            x, y = 100 * at[cost], 100 * at["final"]
            hollow = {} if stage in ("finetuned", "pruned") else {"facecolors": "none", "edgecolors": [tint]}
            look: dict[str, Any] = hollow or {"color": tint}
            axes.scatter(x, y, s=size, marker=marker, alpha=alpha, linewidths=width, **look)
    front = front_of(rows, cost)
    if front:
        axes.plot(*zip(*front, strict=True), color=color or DENSE_COLOR, drawstyle="steps-post", zorder=3)
    draw_dense(axes, rows, color or DENSE_COLOR)


def dense_metric(rows: pd.DataFrame) -> float:
    """The metric of the dense network of these trials, in percent; NaN if unknown."""
    return float(100 * rows["dense"][baseline_row(rows)])


def _stars(rows: pd.DataFrame, reference: Reference | None) -> list[float]:
    """Metrics that stay inside a panel, in percent: the dense network's, and a reference's front."""
    return [dense_metric(rows), *(value for _, value in reference_front(reference, "params_kept"))]


def dense_interval(rows: pd.DataFrame) -> tuple[float, float] | None:
    """The 95% interval of the dense network's metric; None if it is no share of a known number of images."""
    row = baseline_row(rows)
    return share_interval(float(rows["dense"][row]), float(rows["images"][row]))


def dense_label(groups: Iterable[pd.DataFrame]) -> str:
    """What a legend calls the dense network."""
    return "dense network" + (", 95% interval" if any(map(dense_interval, groups)) else "")


def draw_dense(axes: Axes, rows: pd.DataFrame, color: Any) -> None:
    """Draw a star for the dense network of these trials, and a bar for its 95% interval if that is known."""
    dense = dense_metric(rows)
    if not np.isnan(dense):
        if limits := dense_interval(rows):
            axes.plot([100, 100], [100 * limit for limit in limits], color=color, linewidth=0.8, zorder=2)
        axes.plot(100, dense, "*", color=color, markersize=10, markeredgecolor="white", zorder=4, clip_on=False)


def draw_reference(axes: Axes, reference: Reference | None, cost: str) -> None:
    """Draw the networks of another work as dots with a dashed front, and its dense network as a star.

    Args:
        axes: of one cost.
        reference: of one model; None draws nothing.
        cost: column of the cost. A reference states parameters and MACs only.
    """
    if reference is None or cost not in REFERENCE_COSTS:
        return
    points = reference.points(cost)
    if not points:
        note = f"MACs of {reference.name}'s dense network unknown"
        axes.text(0.98, 0.02, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color="0.35")
        return
    x, y = zip(*points, strict=True)
    axes.scatter(x, y, s=5, color=REFERENCE_COLOR, alpha=0.5, linewidths=0, zorder=1)
    front = reference_front(reference, cost)
    look: dict[str, Any] = {"color": REFERENCE_COLOR, "linestyle": "--", "drawstyle": "steps-post", "zorder": 2}
    axes.plot(*zip(*front, strict=True), **look)
    if reference.dense:
        star: dict[str, Any] = {"markersize": 8, "markeredgecolor": "white", "zorder": 3, "clip_on": False}
        axes.plot(100, 100 * reference.dense.value, "*", color=REFERENCE_COLOR, **star)


def reference_handles(references: Sequence[Reference]) -> list[Line2D]:
    """The entries of a legend for the works of `draw_reference`."""
    names = dict.fromkeys(f"{each.name}, {each.networks[0].metric} as it reports" for each in references)
    look: dict[str, Any] = {"color": REFERENCE_COLOR, "linestyle": "--", "marker": ".", "markersize": 4}
    return [Line2D([], [], label=name, **look) for name in names]


def _pareto_legend(
    labels: Sequence[str], stages: Sequence[str], dense: str, references: Sequence[Line2D]
) -> list[Line2D]:
    several = len(labels) > 1
    tints = {stage: "0.4" if several else STAGE_COLORS[i] for i, stage in enumerate(STAGE_MARKERS)}
    models = [Line2D([], [], color=palette(10)[i % 10], lw=3, label=label) for i, label in enumerate(labels)]
    marks = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=STAGE_MARKERS[stage],
            color=tints[stage],
            markerfacecolor=tints[stage] if stage == "finetuned" else "none",
            label=STAGE_NAMES[stage],
        )
        for stage in stages
    ]
    front = Line2D([], [], color=DENSE_COLOR, label="Pareto front")
    star = Line2D([], [], linestyle="none", marker="*", color=DENSE_COLOR, markersize=9, label=dense)
    shared = [*marks, front, star, *references]
    if not several:
        return shared
    # A legend is filled column by column. Empty entries keep the models in one column and the marks in the other.
    blank = [Line2D([], [], linestyle="none", label=" ")] * abs(len(models) - len(shared))
    return [*models, *blank, *shared] if len(models) < len(shared) else [*models, *shared, *blank]


def _timed_in(rows: pd.DataFrame) -> str:
    """The conditions of these trials' times; if there are several, their number."""
    found = [str(text) for text in rows.loc[rows["speedup"].notna(), "runtime"].unique()]
    return found[0] if len(found) == 1 else f"{len(found)} conditions of timing" if found else ""


def methods(trials: Trials | Sequence[TrialRecord]) -> Figure:
    """The deciding metric against parameters, MACs and latency, with a row of panels for each model.

    The colour is the method. A point is a trial after its last stage, hollow if it was not fine-tuned; pruned trials
    are left out. A line is the Pareto front of a method's trials. Latency is that of ``record.latency``, as a share
    of the dense network's; its panel leaves out trials that were not timed. The networks of ``trials.reference`` are
    grey dots with a dashed front.
    """
    trials = Trials.of(trials)
    groups = {
        label: rows for label, block in trials.blocks() if not (rows := measured(block[block["status"] == "ok"])).empty
    }
    if not groups:
        return message("No trial was measured.")
    looks = method_looks(pd.concat([rows["method"] for rows in groups.values()]))
    costs = {**COSTS, "latency_kept": "Latency kept (% of dense)"}
    with styled():
        figure = picture(WIDE, 0.6 + 1.6 * len(groups))
        grid = figure.subplots(len(groups), len(costs), sharey="row", squeeze=False)
        for row, (label, rows) in zip(grid, groups.items(), strict=True):
            timed = rows.assign(latency_kept=1 / rows["speedup"].where(rows["speedup"] > 0))
            for axes, cost in zip(row, costs, strict=True):
                for name, part in timed.groupby("method", observed=True):
                    color, marker = looks[str(name)]
                    drawn = thin(part, DRAWN // len(looks))
                    for tuned, some in drawn.groupby(drawn["finetuned"].notna()):
                        fill = {"color": color, "linewidths": 0} if tuned else HOLLOW | {"edgecolors": [color]}
                        axes.scatter(
                            100 * some[cost],
                            100 * some["final"],
                            s=16 if tuned else 8,
                            marker=marker,
                            alpha=0.5,
                            **fill,
                        )
                    if front := front_of(part, cost):
                        axes.plot(*zip(*front, strict=True), color=color, drawstyle="steps-post")
                draw_dense(axes, rows, DENSE_COLOR)
                draw_reference(axes, trials.reference_for(rows), cost)
                axes.set_xlim(left=0)
            fit_height(row[0], 100 * rows["final"], _stars(rows, trials.reference_for(rows)))
            row[0].set_title(label, loc="left", fontweight="bold")
            row[0].set_ylabel(f"{split_head(rows, 'validation')}, %".replace(" (", "\n("))
            row[-1].set_title(_timed_in(rows), loc="right", fontsize=7, color="0.35")
        for axes, title in zip(grid[-1], costs.values(), strict=True):
            axes.set_xlabel(title)
        handles = [
            Line2D([], [], color=color, marker=marker, label=trials.titles[name])
            for name, (color, marker) in looks.items()
        ]
        dense = dense_label(groups.values())
        star = Line2D([], [], linestyle="none", marker="*", color=DENSE_COLOR, markersize=9, label=dense)
        handles.append(star)
        if any(rows["finetuned"].isna().any() for rows in groups.values()):
            hollow = Line2D([], [], linestyle="none", marker="o", color="0.4", label="hollow: not fine-tuned")
            hollow.set_markerfacecolor("none")
            handles.append(hollow)
        handles += reference_handles([found for rows in groups.values() if (found := trials.reference_for(rows))])
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
    return figure

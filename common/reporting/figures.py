"""Figures of runs and of single networks, at the width of a paper's column.

Every function returns a `matplotlib.figure.Figure` and shows nothing; a notebook shows what the last line of a cell
returns, and `save_figure` writes it. No function opens a window or changes matplotlib's settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from common.reporting.masks import sample_masks as sample_masks
from common.reporting.radar import radar as radar
from common.reporting.runs import baseline_record, group_records
from common.reporting.style import MARKERS, WIDE, message, palette, picture, styled
from common.reporting.style import save_figure as save_figure
from common.trials import STAGES, TrialRecord, final_metric, reductions

STAGE_MARKERS = {"raw": "o", "recalibrated": "s", "finetuned": "^", "pruned": "x"}
STAGE_NAMES = {"raw": "raw", "recalibrated": "recalibrated", "finetuned": "fine-tuned", "pruned": "pruned"}
STAGE_COLORS = [*palette(3), (0.45, 0.45, 0.45)]
NOT_METRICS = {"epoch", "lr", "learning_rate", "seconds", "time", "step"}


def pareto(records: Sequence[TrialRecord]) -> Figure:
    """The deciding metric after a trial's last stage against the parameters and against the MACs it kept.

    A point's marker is the last stage its trial reached; with one model its colour is the stage as well, with
    several it is the model. The line is the Pareto front of each model's trials (no other one is both smaller and
    better), the star its dense network. Failed and unmeasured trials are left out; pruned ones are crosses and not
    on the front.
    """
    groups = {label: _points(group) for label, group in group_records(records).items()}
    if not any(groups.values()):
        return message("No trial was measured.")
    with styled():
        figure = picture(WIDE, 3.2 + (0.16 * max(len(groups), 5) if len(groups) > 1 else 0))
        panels = figure.subplots(1, 2, sharey=True)
        stages = {stage for points in groups.values() for stage, _, _ in points}
        for axes, name, title in zip(panels, ("params", "macs"), ("Parameters", "MACs"), strict=True):
            for index, points in enumerate(groups.values()):
                if points:
                    _draw_trials(axes, points, name, palette(10)[index % 10], several=len(groups) > 1)
            axes.set_xlabel(f"{title} kept (% of dense)")
            axes.set_xlim(left=0)
        _fit_height(panels[0], [100 * value for points in groups.values() for _, value, _ in points])
        metrics = sorted({record.metric for record in records})
        panels[0].set_ylabel(f"{' or '.join(metrics).capitalize()} on validation (%)")
        handles = _pareto_legend(list(groups), [stage for stage in STAGE_MARKERS if stage in stages])
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), 2 if len(groups) > 1 else 5),
            frameon=False,
        )
    return figure


def _fit_height(axes: Axes, values: Sequence[float]) -> None:
    """Neither may a few hundredths of a percent look like a cliff, nor a few failed trials flatten all the others."""
    low, high = axes.get_ylim()
    top, tenth = axes.dataLim.ymax, float(np.quantile(values, 0.1))
    bottom = tenth - (top - tenth) / 2
    below = sum(value < bottom for value in values)
    if below and bottom - low > top - bottom:
        low, high = bottom, top + 0.05 * (top - bottom)
        note = f"{below} of {len(values)} trials lie below"
        axes.text(0.5, 0.02, note, transform=axes.transAxes, ha="center", va="bottom", fontsize=7, color="0.35")
    if high - low < 2:
        low, high = low - (2 - high + low) / 2, high + (2 - high + low) / 2
    axes.set_ylim(low, high)


def _points(records: Sequence[TrialRecord]) -> list[tuple[str, float, TrialRecord]]:
    """(last stage or ``pruned``, deciding metric, record) of every trial that was measured."""
    points = []
    for record in records:
        value = final_metric(record)
        if record.status != "failed" and value is not None and math.isfinite(value):
            stage = next(stage for stage in reversed(STAGES) if stage in record.metrics)
            points.append(("pruned" if record.status == "pruned" else stage, value, record))
    return points


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) pairs that no other one beats with a cost and a value at least as good, by cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def _draw_trials(
    axes: Axes, points: Sequence[tuple[str, float, TrialRecord]], name: str, color: Any, several: bool
) -> None:
    placed = [
        (stage, 100 * (1 - gains[name]), 100 * value)
        for stage, value, record in points
        if name in (gains := reductions(record))
    ]
    for position, (stage, marker) in enumerate(STAGE_MARKERS.items()):
        at = [(x, y) for reached, x, y in placed if reached == stage]
        if at:
            tint = color if several else STAGE_COLORS[position]
            axes.scatter(
                [x for x, _ in at], [y for _, y in at], s=16, color=tint, marker=marker, alpha=0.65, linewidths=0.8
            )
    front = pareto_front([(x, y) for stage, x, y in placed if stage != "pruned"])
    if front:
        axes.plot(*zip(*front, strict=True), color=color if several else "0.2", drawstyle="steps-post", zorder=1.5)
    record = baseline_record([record for _, _, record in points])
    dense = record.baseline.get("metrics", {}).get("validation", {}).get(record.metric)
    if dense is not None:
        star = color if several else "0.2"
        axes.plot(100, 100 * dense, "*", color=star, markersize=10, markeredgecolor="white", zorder=4, clip_on=False)


def _pareto_legend(labels: Sequence[str], stages: Sequence[str]) -> list[Line2D]:
    several = len(labels) > 1
    tints = {stage: "0.4" if several else STAGE_COLORS[i] for i, stage in enumerate(STAGE_MARKERS)}
    models = [Line2D([], [], color=palette(10)[i % 10], lw=3, label=label) for i, label in enumerate(labels)]
    marks = [
        Line2D([], [], linestyle="none", marker=STAGE_MARKERS[stage], color=tints[stage], label=STAGE_NAMES[stage])
        for stage in stages
    ]
    front = Line2D([], [], color="0.2", label="Pareto front")
    dense = Line2D([], [], linestyle="none", marker="*", color="0.2", markersize=9, label="dense network")
    shared = [*marks, front, dense]
    if not several:
        return shared
    # A legend is filled column by column: empty entries keep the models in one and the marks in the other.
    blank = [Line2D([], [], linestyle="none", label=" ")] * abs(len(models) - len(shared))
    return [*models, *blank, *shared] if len(models) < len(shared) else [*models, *shared, *blank]


def spectra(spectra: Mapping[str, Sequence[float]], chosen: Mapping[str, int] | None = None) -> Figure:
    """The singular values of every layer over their greatest, against their place in the spectrum.

    Args:
        spectra: layer name -> singular values, greatest first, layers in the order of the network. Values below
            1e-4 of the greatest lie under the picture's lower edge.
        chosen: layer name -> rank that was kept, marked with a dot.

    Raises:
        ValueError: ``chosen`` names a layer without a spectrum, or a rank that the layer does not have.
    """
    if not spectra:
        return message("No layer was decomposed.")
    for name, rank in (chosen or {}).items():
        if name not in spectra or not 1 <= rank <= len(spectra[name]):
            ranks = f"1 to {len(spectra[name])}" if name in spectra else "none: the layer has no spectrum"
            raise ValueError(f"chosen[{name!r}]={rank} is not a rank of that layer; its ranks are {ranks}")
    with styled():
        figure = picture(WIDE * 0.8, max(3.0, 0.8 + 0.135 * min(len(spectra), 24)))
        axes = figure.subplots()
        colors = sns.color_palette("viridis", len(spectra), as_cmap=False)
        lowest = 1.0
        for color, (name, values) in zip(colors, spectra.items(), strict=True):
            ordered = np.asarray(values, dtype=float)
            relative = np.where(ordered > 0, ordered, np.nan) / (ordered[0] if ordered[0] > 0 else 1.0)
            place = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
            axes.plot(place, relative, color=color, label=name)
            lowest = min(lowest, float(np.nanmin(relative, initial=1.0)))
            if chosen and name in chosen:
                at = chosen[name] - 1
                axes.plot(place[at], relative[at], "o", color=color, markeredgecolor="black", zorder=3, clip_on=False)
        axes.set(yscale="log", ylim=(max(lowest, 1e-4) * 0.9, 1.1), xlim=(0, 100))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="Place in the spectrum, i / n (%)", ylabel="Singular value over the greatest, s_i / s_1")
        if chosen:
            axes.legend(
                handles=[Line2D([], [], linestyle="none", marker="o", color="0.6", mec="black", label="chosen rank")]
            )
        _layer_colorbar(figure, axes, list(spectra))
    return figure


def _layer_colorbar(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """A bar that names each colour's layer; of more than 24 layers only some are named, evenly spread."""
    from_cmap = sns.color_palette("viridis", len(names), as_cmap=False)
    colormap = ListedColormap(list(from_cmap))
    norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, max(len(names), 1))
    shown = sorted({round(i) for i in np.linspace(0, len(names) - 1, min(len(names), 24))})
    bar = figure.colorbar(ScalarMappable(norm, colormap), ax=axes, ticks=shown, aspect=40, pad=0.02)
    bar.ax.set_yticks(shown, labels=[names[i] for i in shown])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7, length=0)
    bar.ax.invert_yaxis()
    bar.ax.set_title("Layer", fontsize=8)


def _layer_height(number: int) -> float:
    return 0.9 + 0.15 * max(number, 4)


def sensitivities(values: Mapping[str, float], sizes: Mapping[str, int]) -> Figure:
    """One bar a layer for its sensitivity to decomposition, and next to it its share of the parameters.

    Args:
        values: layer name -> sensitivity in nats, in the order of the network.
        sizes: layer name -> parameters, for the same layers.

    Raises:
        ValueError: the two do not name the same layers.
    """
    if set(values) != set(sizes):
        odd = sorted(set(values) ^ set(sizes))
        raise ValueError(f"values and sizes must name the same layers; only one of them has {', '.join(odd)}")
    if not values:
        return message("No layer was measured.")
    whole = sum(sizes.values()) or 1
    with styled():
        figure = picture(WIDE, _layer_height(len(values)))
        left, right = figure.subplots(1, 2, sharey=True)
        place = range(len(values))
        left.barh(place, list(values.values()), color=palette(2)[0])
        right.barh(place, [100 * sizes[name] / whole for name in values], color=palette(2)[1])
        left.set(xlabel="Sensitivity (nats)", ylim=(len(values) - 0.4, -0.6))
        positive = [value for value in values.values() if value > 0]
        if positive and max(positive) > 100 * min(positive):  # else the greatest would be all there is to see
            left.set_xscale("log")
        left.set_yticks(place, labels=list(values))
        right.set_xlabel("Share of these layers' parameters (%)")
        for axes in (left, right):
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
    return figure


def policy_heatmap(
    probabilities: Mapping[str, Sequence[float]],
    levels: Sequence[str],
    title: str = "",
    before: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """How probable each candidate rank is in each layer, as one panel or as before and after on one colour scale.

    Args:
        probabilities: layer name -> one probability per level.
        levels: the candidates, e.g. ``["10%", "25%", "dense"]``.
        title: a line above the panels.
        before: the same for an earlier state of the policy, for the same layers.

    Raises:
        ValueError: a layer does not hold one probability per level, or ``before`` names other layers.
    """
    if before is not None and set(before) != set(probabilities):
        raise ValueError("before must name the same layers as probabilities")
    panels = {"": probabilities} if before is None else {"Before": before, "After": probabilities}
    for table in panels.values():
        for name, row in table.items():
            if len(row) != len(levels):
                raise ValueError(f"the layer {name!r} holds {len(row)} probabilities for {len(levels)} levels")
    if not probabilities:
        return message("The policy holds no layer.")
    names = list(probabilities)
    grids = {heading: np.array([table[name] for name in names], dtype=float) for heading, table in panels.items()}
    highest = max(float(np.nanmax(grid)) for grid in grids.values())
    with styled(axes_grid=False):
        figure = picture(WIDE if before is not None else WIDE * 0.65, _layer_height(len(names)) + 0.3)
        axes_row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (heading, grid) in zip(axes_row, grids.items(), strict=True):
            sns.heatmap(
                grid, ax=axes, vmin=0, vmax=highest, cmap="viridis", cbar=False, xticklabels=False, yticklabels=False
            )
            axes.set_xticks(np.arange(len(levels)) + 0.5, labels=list(levels), rotation=90 if len(levels) > 6 else 0)
            axes.tick_params(length=0)
            axes.set(xlabel="Candidate rank", title=heading)
        axes_row[0].set_yticks(np.arange(len(names)) + 0.5, labels=names, rotation=0)
        bar = figure.colorbar(axes_row[-1].collections[0], ax=list(axes_row), aspect=30, pad=0.02)
        bar.set_label("Probability")
        bar.ax.tick_params(labelsize=7)
        if title:
            figure.suptitle(title, fontsize=9)
    return figure


def training_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """The losses (left) and the other metrics (right) of each epoch.

    Args:
        history: one mapping per epoch. A key that holds ``loss`` goes to the left; ``epoch`` (else counted from 1)
            is the x axis; learning rates and times are left out; every other number is a metric, a fraction.
    """
    if not history:
        return message("No epoch was trained.")
    keys = list(dict.fromkeys(key for row in history for key in row if key not in NOT_METRICS))
    epochs = [row.get("epoch", number) for number, row in enumerate(history, start=1)]
    with styled():
        figure = picture(WIDE, 2.5)
        panels = figure.subplots(1, 2)
        losses, metrics = [k for k in keys if "loss" in k], [k for k in keys if "loss" not in k]
        for axes, names, scale, label in zip(panels, (losses, metrics), (1, 100), ("Loss", "Metric (%)"), strict=True):
            for index, name in enumerate(names):
                values = [row.get(name) for row in history]
                numbers = [math.nan if value is None else scale * value for value in values]
                marker = MARKERS[index % len(MARKERS)] if len(history) <= 30 else ""
                axes.plot(epochs, numbers, color=palette(10)[index % 10], marker=marker, label=name.replace("_", " "))
            if names:
                axes.legend(frameon=False)
            axes.set(xlabel="Epoch", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure

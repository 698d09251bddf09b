"""Figures of a network's layers: their sensitivities, rank probabilities and the ranks of the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.reporting.facts import method_name, method_order, method_title
from common.reporting.figures.style import WIDE, message, palette, picture, styled
from common.trials import LayerFigures, TrialRecord

Floats = NDArray[np.float64]


def _layer_height(number: int) -> float:
    return 0.9 + 0.15 * max(number, 4)


def sensitivities(values: Mapping[str, float], sizes: Mapping[str, int]) -> Figure:
    """A bar for the sensitivity of each layer (left) and one for its share of the parameters (right).

    Args:
        values: layer name -> sensitivity, in the order of the network. A value that is not finite has no bar.
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
        finite = [value if np.isfinite(value) else 0.0 for value in values.values()]
        left.barh(place, finite, color=palette(2)[0])
        right.barh(place, [100 * sizes[name] / whole for name in values], color=palette(2)[1])
        left.set(xlabel="Sensitivity", ylim=(len(values) - 0.4, -0.6))
        positive = [value for value in finite if value > 0]
        if positive and max(positive) > 100 * min(positive):  # on a linear axis only the greatest would be visible
            left.set_xscale("log")
        for line, value in enumerate(values.values()):
            if not np.isfinite(value):
                left.annotate("not finite", (0, line), (4, 0), ("axes fraction", "data"), "offset points", va="center")
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
    what: str = "Share of the layer's parameters (under a budget: price level)",
) -> Figure:
    """The probability of each candidate in each layer, as one panel or as before and after on one colour scale.

    Args:
        probabilities: layer name -> one probability per level.
        levels: the candidates, e.g. ``["10%", "25%", "dense"]``.
        title: a line above the panels.
        before: the same for an earlier state of the policy, for the same layers.
        what: what the levels are, below each panel.

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
            axes.set(xlabel=fill(what, 34), title=heading)
        axes_row[0].set_yticks(np.arange(len(names)) + 0.5, labels=names, rotation=0)
        bar = figure.colorbar(axes_row[-1].collections[0], ax=list(axes_row), aspect=30, pad=0.02)
        bar.set_label("Probability")
        bar.ax.tick_params(labelsize=7)
        if title:
            figure.suptitle(title, fontsize=9)
    return figure


def rank_heatmap(records: Sequence[TrialRecord], title: str = "") -> Figure:
    """The ranks of the trials: a panel for each method, a row for each layer and a column for each trial.

    Trials with the fewest parameters come first. The colour is the rank as a share of the full rank, or the mean share
    if the method has several ranks. Where the records do not hold the full rank (older logs), the share is that of the
    greatest rank that any of these trials of that method gave the layer, and the bar says so. A layer that stayed
    dense is grey; a layer that is not in the plan is white.

    Args:
        records: trials of one model.
        title: a line above the panels.
    """
    planned = [record for record in records if record.plan and record.params]
    if not planned:
        return message("No trial holds a plan.")
    layers = list(dict.fromkeys(layer for record in planned for layer in record.plan))
    names = method_order(method_name(record) for record in planned)
    panels = {
        name: sorted((r for r in planned if method_name(r) == name), key=lambda record: record.params)
        for name in names
    }
    colors = sns.color_palette("viridis", as_cmap=True).with_extremes(under="0.8", bad="white")
    widths = [max(len(found), len(planned) / (2 * len(names))) for found in panels.values()]
    with styled(axes_grid=False):
        figure = picture(WIDE, _layer_height(min(len(layers), 60)) + 0.7)
        row = figure.subplots(1, len(names), sharey=True, squeeze=False, width_ratios=widths)[0]
        for axes, found in zip(row, panels.values(), strict=True):
            grid = _rank_shares(found, layers)
            image = axes.imshow(grid, aspect="auto", interpolation="nearest", cmap=colors, vmin=0, vmax=1)
            axes.set_title(f"{method_title(found[0])}\n{len(found)} trial{'s' if len(found) > 1 else ''}")
            axes.set_xticks([])
            axes.tick_params(axis="y", length=0)
            axes.spines[:].set_visible(False)
        step = -(-len(layers) // 60)
        row[0].set_yticks(range(0, len(layers), step), labels=layers[::step])
        figure.supxlabel("Trials, fewest parameters first (grey: the layer stayed dense)", fontsize=8)
        bar = figure.colorbar(image, ax=list(row), aspect=30, pad=0.02, extend="min", extendfrac=0.04)
        plans = [(record, layer) for record in planned for layer, made in record.plan.items() if made.ranks]
        held = [record.details.layers.get(layer) for record, layer in plans]
        known = all(figures is not None and figures.full for figures in held)
        bar.set_label("Rank over full rank" if known else "Rank over the greatest tried")
        bar.ax.tick_params(labelsize=7)
        if title:
            figure.suptitle(title, fontsize=9)
    return figure


def _rank_shares(records: Sequence[TrialRecord], layers: Sequence[str]) -> Floats:
    """Mean share of the full ranks, or of the greatest known, ``(layers, trials)``.

    A dense layer has -1, and a layer that is not in the plan NaN.
    """
    greatest: dict[tuple[str, int], int] = {}
    for record in records:
        for layer, made in record.plan.items():
            full = record.details.layers.get(layer, LayerFigures()).full
            full = full if len(full) == len(made.ranks) else made.ranks
            for place, rank in enumerate(full):
                greatest[layer, place] = max(greatest.get((layer, place), 1), rank)
    grid = np.full((len(layers), len(records)), np.nan)
    for column, record in enumerate(records):
        for line, layer in enumerate(layers):
            if layer in record.plan:
                shares = [rank / greatest[layer, place] for place, rank in enumerate(record.plan[layer].ranks)]
                grid[line, column] = np.mean(shares) if shares else -1.0
    return grid

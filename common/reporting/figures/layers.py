"""Figures of a network's layers: their spectra, sensitivities, rank probabilities and the ranks of the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from common.reporting.facts import method_name, method_order, method_title
from common.reporting.figures.style import NARROW, WIDE, message, palette, picture, styled
from common.trials import TrialRecord

Floats = NDArray[np.float64]
LEAST_SHOWN = 1e-4
"""Smallest singular value that the spectra show, as a share of the greatest."""


def spectra(spectra: Mapping[str, Sequence[float]], chosen: Mapping[str, int] | None = None) -> Figure:
    """The singular values of every layer over the layer's greatest, against their place in the spectrum.

    Args:
        spectra: layer name -> singular values, greatest first, layers in the order of the network. Values below
            1e-4 of the greatest and values that are not finite are not shown.
        chosen: layer name -> chosen rank, marked by a dot. If its singular value is not shown, a triangle at the lower
            edge marks it.

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
        width = NARROW + 0.05 * max(0, max(map(len, spectra)) - 24)  # long names must leave room for the curves
        figure = picture(width, max(2.8, 0.8 + 0.135 * min(len(spectra), 24)))
        axes = figure.subplots()
        colors = sns.color_palette("viridis", len(spectra), as_cmap=False)
        curves = {name: _relative(values) for name, values in spectra.items()}
        lowest = min(float(np.nanmin(curve, initial=1.0)) for curve in curves.values())
        bottom, top = max(lowest, LEAST_SHOWN) * 0.9, 1.1
        axes.set(yscale="log", ylim=(bottom, top), xlim=(0, 100))
        below = False
        for color, (name, curve) in zip(colors, curves.items(), strict=True):
            place = 100 * np.arange(1, len(curve) + 1) / len(curve)
            axes.plot(place, curve, color=color, label=name)
            if chosen and name in chosen:
                x, y = place[chosen[name] - 1], curve[chosen[name] - 1]
                hidden = not y >= bottom
                look = {"color": color, "markeredgecolor": "black", "zorder": 3, "clip_on": False}
                axes.plot(x, bottom * (top / bottom) ** 0.025 if hidden else y, "v" if hidden else "o", **look)
                below |= hidden
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="Place in the spectrum (% of its length)", ylabel="Singular value over the greatest")
        if chosen:
            marks = {"o": "chosen rank"} | ({"v": "chosen rank, value below the axis"} if below else {})
            look = {"linestyle": "none", "color": "0.6", "mec": "black"}
            axes.legend(handles=[Line2D([], [], marker=mark, label=label, **look) for mark, label in marks.items()])
        _layer_colorbar(figure, axes, list(spectra))
    return figure


def _relative(values: Sequence[float]) -> Floats:
    """The values over the greatest, ``(n,)``; NaN for a value that is not positive and finite."""
    singular = np.asarray(values, dtype=float)
    usable = np.where(np.isfinite(singular) & (singular > 0), singular, np.nan)
    return usable / np.nanmax(usable, initial=0.0) if np.isfinite(usable).any() else usable


def _layer_colorbar(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """Add a bar that names each colour's layer. Of more than 24 layers, it names 24, evenly spread."""
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
    """A bar for the sensitivity of each layer (left) and one for its share of the parameters (right).

    Args:
        values: layer name -> sensitivity in nats, in the order of the network. A value that is not finite has no bar.
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
        left.set(xlabel="Sensitivity (nats)", ylim=(len(values) - 0.4, -0.6))
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
) -> Figure:
    """The probability of each candidate in each layer, as one panel or as before and after on one colour scale.

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


def rank_heatmap(records: Sequence[TrialRecord], title: str = "") -> Figure:
    """The ranks of the trials: a panel for each method, a row for each layer and a column for each trial.

    Trials with the fewest parameters come first. The colour is the rank as a share of the greatest rank that any of
    these trials of that method gave the layer, or the mean share if the method has several ranks. A layer that stayed
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
        bar.set_label("Rank over the greatest tried")
        bar.ax.tick_params(labelsize=7)
        if title:
            figure.suptitle(title, fontsize=9)
    return figure


def _rank_shares(records: Sequence[TrialRecord], layers: Sequence[str]) -> Floats:
    """Mean share of the greatest ranks, ``(layers, trials)``; -1 for a dense layer, NaN for one not in the plan."""
    greatest: dict[tuple[str, int], int] = {}
    for record in records:
        for layer, made in record.plan.items():
            for place, rank in enumerate(made.ranks):
                greatest[layer, place] = max(greatest.get((layer, place), 1), rank)
    grid = np.full((len(layers), len(records)), np.nan)
    for column, record in enumerate(records):
        for line, layer in enumerate(layers):
            if layer in record.plan:
                shares = [rank / greatest[layer, place] for place, rank in enumerate(record.plan[layer].ranks)]
                grid[line, column] = np.mean(shares) if shares else -1.0
    return grid

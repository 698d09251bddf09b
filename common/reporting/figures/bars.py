"""Bars for a few networks or files side by side, with a panel for each figure of theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from common.reporting.figures.style import WIDE, message, palette, picture, styled


def bars(panels: Mapping[str, Mapping[str, float]]) -> Figure:
    """A panel for each figure, and in it a bar for each network, with its value behind it.

    Each bar starts at zero, so its length may be compared. A value that is missing or not finite has no bar.

    Args:
        panels: heading of a panel, with the unit -> name of a network -> its value. The rows have the
            order of the first panel.
    """
    panels = {heading: values for heading, values in panels.items() if values}
    if not panels:
        return message("Nothing was measured.")
    names = list(dict.fromkeys(name for values in panels.values() for name in values))
    with styled(axes_grid=False):
        figure = picture(WIDE, 0.7 + 0.24 * len(names))
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        places = np.arange(len(names))
        colors = palette(10)
        for axes, (heading, values) in zip(grid, panels.items(), strict=True):
            numbers = [values.get(name, math.nan) for name in names]
            known = [value if math.isfinite(value) else 0.0 for value in numbers]
            axes.barh(places, known, height=0.7, color=[colors[place % 10] for place in places])
            for place, value in enumerate(numbers):
                text = f" {value:.4g}" if math.isfinite(value) else " not measured"
                axes.text(max(0.0, known[place]), place, text, va="center", fontsize=7)
            axes.set_title(heading, loc="left")
            low, high = min(0.0, *known), max(0.0, *known)
            axes.set_xlim(low, (high + 0.3 * (high - low)) or 1.0)
            if low < 0:
                axes.axvline(0, color="0.5", linewidth=0.5)
            axes.set_xticks([])
            axes.spines["bottom"].set_visible(False)
            axes.tick_params(axis="y", length=0)
        grid[0].set_yticks(places, labels=names)
        grid[0].set_ylim(len(names) - 0.4, -0.6)
    return figure

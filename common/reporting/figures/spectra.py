"""The spectra of a network's layers as small multiples, a panel for each stage of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from common.reporting.figures.style import WIDE, message, palette, picture, styled

Floats = NDArray[np.float64]
LEAST_SHOWN = 1e-4
"""Smallest singular value that the spectra show, as a share of the greatest."""
IN_PANEL = 6
"""Maximum number of layers in a panel."""
COLUMNS = 3


def spectra(spectra: Mapping[str, Sequence[float]], chosen: Mapping[str, int] | None = None) -> Figure:
    """The singular values of every layer over the layer's greatest, against their place in the spectrum.

    Layers whose names begin alike, such as those of ``layer1`` in a ResNet, share a panel, at most six.

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
    marked = dict(chosen or {})
    for name, rank in marked.items():
        if name not in spectra or not 1 <= rank <= len(spectra[name]):
            ranks = f"1 to {len(spectra[name])}" if name in spectra else "none: the layer has no spectrum"
            raise ValueError(f"chosen[{name!r}]={rank} is not a rank of that layer; its ranks are {ranks}")
    curves = {name: _relative(values) for name, values in spectra.items()}
    lowest = min(float(np.nanmin(curve, initial=1.0)) for curve in curves.values())
    bottom, top = max(lowest, LEAST_SHOWN) * 0.9, 1.1
    panels = stages(list(spectra))
    lines = math.ceil(len(panels) / COLUMNS)
    with styled():
        figure = picture(WIDE, 0.7 + lines * (1.6 + 0.14 * max(map(len, panels))))
        grid = figure.subplots(lines, COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, names in zip(grid, panels, strict=False):
            axes.set(yscale="log", ylim=(bottom, top), xlim=(0, 100))
            _draw_stage(axes, {name: curves[name] for name in names}, marked)
            axes.set_title(_stage_title(names, panels), loc="left", fontweight="bold")
            axes.tick_params(labelbottom=True)
        grid[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        grid[0].yaxis.set_minor_formatter(NullFormatter())
        figure.supxlabel("Place in the spectrum (% of its length)", fontsize=8)
        figure.supylabel("Singular value over the greatest", fontsize=8)
        if marked:
            look = {"linestyle": "none", "color": "0.6", "markeredgecolor": "black"}
            marks = {"o": "chosen rank"}
            if any(not curves[name][rank - 1] >= bottom for name, rank in marked.items()):
                marks["v"] = "chosen rank, value below the axis"
            handles = [Line2D([], [], marker=mark, label=label, **look) for mark, label in marks.items()]  # type: ignore[arg-type]
            figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False)
    return figure


def stages(names: Sequence[str]) -> list[list[str]]:
    """Split the layers of a network into panels: neighbours whose names begin alike, at most `IN_PANEL` in each.

    A layer with a beginning of its own joins its neighbour if that is alone too.
    """
    groups: list[list[str]] = []
    for name in names:
        last = groups[-1] if groups else []
        alike = bool(last) and _stage(last[-1]) == _stage(name)
        alone = bool(last) and len({_stage(other) for other in last}) == len(last)
        if last and len(last) < IN_PANEL and (alike or (alone and _is_single(name, names))):
            last.append(name)
        else:
            groups.append([name])
    return groups


def _stage(name: str) -> str:
    return name.split(".")[0]


def _stage_title(names: Sequence[str], panels: Sequence[Sequence[str]]) -> str:
    """The stage of a panel's layers; the first and last of them if other panels show the same stage."""
    if len(names) == 1:
        return names[0]
    found = {_stage(name) for name in names}
    if len(found) > 1:
        return ""
    shared = sum(_stage(other[0]) in found for other in panels) > 1
    return f"{names[0]} to {names[-1]}" if shared else found.pop()


def _is_single(name: str, names: Sequence[str]) -> bool:
    return sum(_stage(other) == _stage(name) for other in names) == 1


def _draw_stage(axes: Axes, curves: Mapping[str, Floats], chosen: Mapping[str, int]) -> None:
    """Draw the curves of a panel, their chosen ranks, and a legend below it."""
    bottom, top = axes.get_ylim()
    for color, (name, curve) in zip(palette(IN_PANEL), curves.items(), strict=False):
        place = 100 * np.arange(1, len(curve) + 1) / len(curve)
        axes.plot(place, curve, marker="." if len(curve) == 1 else None, color=color, label=name)
        if name in chosen:
            x, y = place[chosen[name] - 1], curve[chosen[name] - 1]
            hidden = not y >= bottom
            height = bottom * (top / bottom) ** 0.025 if hidden else y
            axes.plot(x, height, "v" if hidden else "o", color=color, mec="black", zorder=3, clip_on=False)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), frameon=False, borderpad=0, labelspacing=0.2)


def _relative(values: Sequence[float]) -> Floats:
    """The values over the greatest, ``(n,)``; NaN for a value that is not positive and finite."""
    singular = np.asarray(values, dtype=float)
    usable = np.where(np.isfinite(singular) & (singular > 0), singular, np.nan)
    return usable / np.nanmax(usable, initial=0.0) if np.isfinite(usable).any() else usable

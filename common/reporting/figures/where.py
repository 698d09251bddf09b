"""Where a network's parameters, MACs and time go before and after compression, and where it errs, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.reporting.facts import layer_conditions
from common.reporting.figures.style import REST, WIDE, message, palette, picture, styled, three_digits
from common.trials import LayerFigures, TrialRecord

Pair = tuple[list[float], list[float]]


def where_it_goes(record: TrialRecord, title: str = "") -> Figure:
    """Four panels with a line for each factored layer: parameters, MACs, time, and the error of the layer's output.

    The first three have a bar for the dense and one for the compressed network. The last line holds all that is not
    factored. Times are of layers in isolation, with their conditions below; without them in the record, the panel says
    so. The error is relative, on calibration data, or that of the weight if no data was used; refitting lowers it.

    Args:
        record: a trial whose layers' figures hold the parameters and MACs of the dense layers.
        title: a line above the panels.
    """
    layers = {name: held for name, held in record.details.layers.items() if held.dense_params > 0}
    if not layers:
        return message("The log does not hold the layers' parameters and MACs.")
    with styled(axes_grid_axis="x"):
        figure = picture(WIDE, 1.3 + 0.17 * len(layers))
        params, macs, time, error = figure.subplots(1, 4, sharey=True)
        for axes, kind, head in ((params, "params", "Parameters"), (macs, "macs", "MACs")):
            before, after = _costs(record, list(layers.values()), kind)
            unit, size = ("G", 1e9) if sum(before) >= 1e9 else ("M", 1e6)
            _bars(axes, (before, after), 1 / size, f"{head} ({unit})")
        if times := _times(record, list(layers)):
            _bars(time, times, 1000, "Time (ms)", fill(layer_conditions(record), 22))
        else:
            time.set_xlabel("Time (ms)")
            time.text(0.5, 0.5, "not timed", transform=time.transAxes, ha="center", color="0.35")
        error.barh(range(len(layers)), [100 * held.error for held in layers.values()], color=palette(3)[2])
        error.set_xlabel("Error of the output (%)")
        params.set_yticks(range(len(layers) + 1), labels=[*layers, REST])
        params.set_ylim(len(layers) + 0.6, -0.6)
        for axes in (params, macs, time, error):
            axes.tick_params(axis="y", length=0)
            axes.set_xlim(left=0)
        figure.legend(*params.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        if title:
            figure.suptitle(title, fontsize=8)
    return figure


def _costs(record: TrialRecord, layers: Sequence[LayerFigures], kind: str) -> Pair:
    """The layers' parameters or MACs (``kind``) before and after, and those of all else."""
    before = [float(getattr(held, f"dense_{kind}")) for held in layers]
    after = [value * float(getattr(held, kind)) for value, held in zip(before, layers, strict=True)]
    whole = float(getattr(record.baseline, kind)), float(getattr(record, kind))
    rest = [max(total - sum(own), 0.0) for total, own in zip(whole, (before, after), strict=True)]
    return [*before, rest[0]], [*after, rest[1]]


def _times(record: TrialRecord, names: Sequence[str]) -> Pair | None:
    """The same of the seconds of a pass; None if they were not measured."""
    found = record.details.layer_times
    if not found or not found.before or not found.after:
        return None
    own = [[held.get(name, 0.0) for name in names] for held in (found.before, found.after)]
    rest = [sum(held.values()) - sum(times) for held, times in zip((found.before, found.after), own, strict=True)]
    return [*own[0], rest[0]], [*own[1], rest[1]]


def _bars(axes: Axes, pair: Pair, scale: float, head: str, below: str = "") -> None:
    """A pair of bars for each line, and the sums and ``below`` under the axis."""
    sums = []
    for side, (label, values) in enumerate(zip(("dense", "compressed"), pair, strict=True)):
        shown = scale * np.array(values)
        axes.barh(np.arange(len(shown)) + 0.4 * side - 0.2, shown, height=0.4, color=palette(2)[side], label=label)
        sums.append(three_digits(shown.sum()))
    axes.set_xlabel("\n".join(filter(None, (head, f"{' → '.join(sums)} in all", below))))

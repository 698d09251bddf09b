"""The time of each layer of a network, before and after compression."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from common.reporting.figures.style import REST, WIDE, message, palette, picture, styled, three_digits


def layer_times(before: Mapping[str, float], after: Mapping[str, float], title: str = "") -> Figure:
    """A pair of bars for each layer, timed in isolation: in the dense network and in the compressed one.

    Args:
        before: layer -> seconds, in the order of the network; ``rest`` for all other operations. For example from
            :func:`common.latency.layer_times`.
        after: the same for the compressed network. The time of a layer is the sum over its factors.
        title: a line above the bars, such as the runtime and the batch.

    Raises:
        ValueError: ``after`` names a layer that ``before`` does not have.
    """
    if not before:
        return message("No layer was timed.")
    for name in after:
        if name not in before:
            raise ValueError(f"after[{name!r}]: before has no such layer; allowed: {', '.join(before)}")
    names = list(before)
    milliseconds = [np.array([1000 * times.get(name, 0.0) for name in names]) for times in (before, after)]
    with styled(axes_grid_axis="x"):
        figure = picture(WIDE * 0.8, 1.0 + 0.2 * len(names))
        axes = figure.subplots()
        places = np.arange(len(names))
        for side, (label, values) in enumerate(zip(("dense", "compressed"), milliseconds, strict=True)):
            text = f"{label}: {three_digits(values.sum())} ms in sum"
            axes.barh(places + 0.4 * side - 0.2, values, height=0.4, color=palette(2)[side], label=text)
        axes.set_yticks(places, labels=[REST if name == "rest" else name for name in names])
        axes.set(ylim=(len(names) - 0.4, -0.6), xlabel="Time of one pass of the batch (ms)")
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, loc="left")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure

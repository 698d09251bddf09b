"""The radar: how each model's accepted network with the fewest parameters compares with the dense one on five axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from common.reporting.facts import COLORS, MARKERS, method_name, method_places, method_title
from common.reporting.figures.style import (
    DASHES,
    NARROW,
    no_accepted_trial,
    palette,
    percent,
    picture,
    styled,
)
from common.reporting.frame import Trials
from common.reporting.runs import check_keep
from common.trials import TrialRecord
from common.trials.best import final_metric, reductions

TITLES = {
    "metric": "Metric over dense",
    "params": "Params\nremoved",
    "macs": "MACs\nremoved",
    "speedup": "Speedup (log)",
    "size": "File size\nremoved",
}


FOLLOWED = {
    ("resnet18", "mnist"): (
        "tdcnn, as reported: Tucker-2, accuracy on test, no size, no comparable time",
        {"metric": 0.991 / 0.9955, "params": 0.8715, "macs": 0.8467, "speedup": math.nan, "size": math.nan},
    )
}
"""Model and data set -> what the work that this follows for HTD reports, see docs/results.md. Its times are those of
whole passes over a test loader on a GPU, so the speedup has a gap."""


def radar(trials: Trials | Sequence[TrialRecord], keep: float = 0.99) -> Figure:
    """One polygon per model: its accepted trial with the fewest parameters on five axes. Further out is better.

    If there is one model alone, each method has a polygon. Where the work that a method follows reports the same
    network and data set, a grey polygon shows it: ``trials.reference`` if there is one, else `FOLLOWED`.

    The axes are the deciding metric over the dense network's; the fractions of parameters, MACs and file size that
    were removed; and the speedup. The speedup has a logarithmic scale, so that 2x slower and 2x faster are equally far
    from 1x. Each axis states its values at the centre and at the rim. A value below the centre's is drawn at the
    centre, and a value that was not measured leaves a gap.

    Args:
        trials: of any number of models.
        keep: a trial is accepted if it kept this fraction of the dense metric on validation, in [0, 1].

    Raises:
        ValueError: ``keep`` is not in [0, 1].
    """
    check_keep(keep)
    trials = Trials.of(trials)
    best = {label: trials.best(rows, keep).get("params") for label, rows in _blocks(trials)}
    chosen = {label: record for label, record in best.items() if record is not None}
    if not chosen:
        return no_accepted_trial(keep)
    networks = dict.fromkeys((record.model, record.dataset) for record in chosen.values())
    followed = [found for network in networks if (found := _followed(trials, network, keep))]
    values = {label: _gains(record) for label, record in chosen.items()}
    # The methods of one model have the colours that they have in the other pictures.
    places = method_places(map(method_name, chosen.values())) if len(networks) == 1 else {}
    ranges = _radar_ranges([*values.values(), *(gains for _, gains in followed)], keep)
    with styled():
        long = sum(len(label) > 34 for label in best) + 2 * len(followed)
        figure = picture(NARROW, 3.1 + 0.16 * (len(best) + long))
        axes = figure.add_subplot(projection="polar")
        _draw_radar_grid(axes, ranges)
        for index, (label, gains) in enumerate(values.items()):
            title = method_title(chosen[label])
            place = places.get(method_name(chosen[label]), index)
            color = COLORS[place % len(COLORS)] if places else palette(10)[index % 10]
            named = "" if label.endswith(f", {title}") else f", {title}"
            text = f"{label}: trial {chosen[label].trial}{named}{_missing(gains)}"
            look = {"color": color, "linestyle": DASHES[index // 10 % len(DASHES)], "zorder": 3}
            line = _draw_polygon(axes, ranges, gains, text, {**look, "marker": MARKERS[place % len(MARKERS)]})
            if len(values) == 1 and not np.isnan(line).any():  # the fills of several models would mix their colours
                axes.fill(_angles(ranges), line, color=color, alpha=0.08)
        for text, gains in followed:
            grey = {"color": "0.55", "linestyle": "--", "linewidth": 1.0, "marker": ".", "zorder": 2}
            _draw_polygon(axes, ranges, gains, text, grey)
        tested = "tested " if all("test" in record.metrics for record in chosen.values()) else ""
        heading = f"Fewest parameters of {tested}trials with ≥ {percent(keep)} of the dense metric"
        lines, names = axes.get_legend_handles_labels()
        without = [label for label, record in best.items() if record is None]
        lines += [Line2D([], [], linestyle="none")] * len(without)
        names += [fill(f"{label}: no accepted trial", 58) for label in without]
        figure.legend(lines, names, loc="outside lower center", title=heading, title_fontsize=7, frameon=False)
    return figure


def _followed(trials: Trials, network: tuple[str, str], keep: float) -> tuple[str, dict[str, float]] | None:
    """The label and the gains of another work's network of one model and data set; None if none is known."""
    frame = trials.frame
    rows = frame[(frame["model"] == network[0]) & (frame["dataset"] == network[1])]
    reference = trials.reference_for(rows)
    gains = reference.gains(keep) if reference else None
    if reference is None or gains is None:
        return FOLLOWED.get(network)
    text = f"{reference.name}: its fewest parameters, {reference.networks[0].metric} as it reports{_missing(gains)}"
    return text, gains


def _blocks(trials: Trials) -> list[tuple[str, pd.DataFrame]]:
    """A block for each model; if there is one model, a block for each method."""
    blocks = list(trials.blocks())
    if len(blocks) != 1 or len(trials.titles) < 2:
        return blocks
    ((label, rows),) = blocks
    return [(f"{label}, {trials.titles[str(method)]}", part) for method, part in rows.groupby("method", observed=True)]


def _angles(ranges: Mapping[str, tuple[float, float]]) -> NDArray[np.float64]:
    return np.linspace(0, 2 * np.pi, len(ranges), endpoint=False)


def _draw_polygon(
    axes: Any, ranges: Mapping[str, tuple[float, float]], gains: Mapping[str, float], label: str, look: dict[str, Any]
) -> list[float]:
    """Draw a closed polygon and return its radii."""
    angles = _angles(ranges)
    radii = [_radius(gains[name], low, high, name) for name, (low, high) in ranges.items()]
    axes.plot([*angles, angles[0]], [*radii, radii[0]], label=fill(label, 58), clip_on=False, **look)
    return radii


def _gains(record: TrialRecord) -> dict[str, float]:
    """The values of one trial on the axes; NaN for what was not measured."""
    found = reductions(record)
    dense = record.baseline.metric(record.metric)
    value, size = final_metric(record), record.baseline.size_bytes
    return {
        "metric": value / dense if value is not None and dense > 0 else math.nan,
        "params": found.get("params", math.nan),
        "macs": found.get("macs", math.nan),
        "speedup": found.get("speedup", math.nan),
        "size": 1 - record.size_bytes / size if size > 0 else math.nan,
    }


def _missing(gains: Mapping[str, float]) -> str:
    names = [
        TITLES[name].split(" (")[0].replace("\n", " ").lower() for name, value in gains.items() if math.isnan(value)
    ]
    return f" ({', '.join(names)} not measured)" if names else ""


def _radar_ranges(gains: Sequence[Mapping[str, float]], keep: float) -> dict[str, tuple[float, float]]:
    """Round values at the centre and at the rim of each axis, wide enough for every polygon."""
    metrics = [g["metric"] for g in gains if not math.isnan(g["metric"])]
    speedups = [g["speedup"] for g in gains if g["speedup"] > 0]
    rim = math.ceil(max([1.0, *metrics]) * 20 - 1e-9) / 20
    slow = math.floor(math.log2(min([0.5, *speedups])))
    fast = math.ceil(math.log2(max([2.0, *speedups])))
    return {
        "metric": (max(0.0, min(0.9, math.floor(keep * 20 - 1e-9) / 20)), rim),
        "params": (0.0, 1.0),
        "macs": (0.0, 1.0),
        "speedup": (2.0**slow, 2.0**fast),
        "size": (0.0, 1.0),
    }


def _radius(value: float, low: float, high: float, name: str) -> float:
    """``value`` as a distance from the centre in [0, 1]; NaN stays NaN."""
    if math.isnan(value) or (name == "speedup" and value <= 0):
        return math.nan
    if name == "speedup":
        value, low, high = math.log2(value), math.log2(low), math.log2(high)
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _draw_radar_grid(axes: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    angles = _angles(ranges)
    shown = {name: (lambda v: f"{v:g}×") if name == "speedup" else percent for name in ranges}
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], labels=[])
    axes.spines["polar"].set_visible(False)
    axes.set_xticks(
        angles, labels=[f"{TITLES[n]}\n{shown[n](low)} → {shown[n](high)}" for n, (low, high) in ranges.items()]
    )
    axes.tick_params(axis="x", labelsize=7, pad=4)
    for angle, text in zip(angles, axes.get_xticklabels(), strict=True):
        side = round(float(np.sin(angle)), 6)
        text.set_horizontalalignment("center" if side == 0 else "left" if side > 0 else "right")
    place = list(ranges).index("speedup")  # the other axes are linear, so their middle needs no label
    spot = (angles[place], _radius(1.0, *ranges["speedup"], "speedup"))
    axes.plot(*spot, marker="o", color="0.35", markersize=2.5, linestyle="none", zorder=2)
    plate = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
    look = {"fontsize": 7, "color": "0.35", "va": "center", "zorder": 2, "bbox": plate}  # never over the data
    axes.annotate(shown["speedup"](1.0), spot, (4, 0), textcoords="offset points", **look)

"""Every picture of a report. Each is drawn only on request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from common.reporting import figures
from common.reporting.facts import layer_conditions
from common.reporting.frame import Trials, is_accepted
from common.reporting.fronts import thin
from common.trials import LayerTimes, TrialRecord

TOGETHER = 6
"""Maximum number of blocks in a picture that has a row of panels for each."""
HEATMAP_TRIALS = 400


@dataclass(frozen=True)
class Entry:
    """A picture: the name of its files, a caption that says what it shows, and the function that draws it."""

    name: str
    caption: str
    draw: Callable[[], Figure]


def gallery(trials: Trials, keep: float = 0.99) -> Iterator[Entry]:
    """The pictures for which these trials hold data.

    The radar and the Pareto front are always included. If there is nothing to draw, they say so.
    """
    frame = trials.frame
    yield Entry(
        "radar",
        "The accepted network with the fewest parameters of each model, or of each method if there is one model, on "
        "validation. Grey: what the work that this follows reports. Each axis runs from the first value "
        "at the centre to the second at the rim, the speedup on a logarithmic scale.",
        partial(figures.radar, trials, keep),
    )
    yield Entry(
        "pareto", "Every measured trial after its last stage, and the Pareto fronts.", partial(figures.pareto, trials)
    )
    labels = list(frame["label"].unique())
    pages = [labels[start : start + TOGETHER] for start in range(0, len(labels), TOGETHER)]
    for place, page in enumerate(pages, start=1):
        some, end = trials.only(label=page), f"-{place}" if len(pages) > 1 else ""
        rows = some.frame
        if rows["final"].notna().any():
            caption = "Methods compared: every trial after its last stage, and each method's Pareto front."
            yield Entry(f"methods{end}", caption, partial(figures.methods, some))
        if rows["finetuned"].notna().any():
            caption = "Before and after fine-tuning: every fine-tuned trial, stage by stage."
            yield Entry(f"stages{end}", caption, partial(figures.stages, some, keep))
        if is_accepted(rows, keep).any():
            caption = "Progress of the searches over the number of trials and over the time spent in them."
            yield Entry(f"progress{end}", caption, partial(figures.progress, some, keep))
    if frame["speedup"].notna().any():
        caption = "The measured speedup against the ratio of MACs."
        yield Entry("speedups", caption, partial(figures.speedups, trials))
    taken: set[str] = set()
    for label, rows in trials.blocks():
        slug = _slug(label, taken)
        planned = rows[rows["params"] > 0]
        if not planned.empty:
            caption = f"{label}: the rank that each trial gave each layer."
            yield Entry(
                f"ranks-{slug}", caption, partial(_ranks, trials, list(thin(planned, HEATMAP_TRIALS).index), label)
            )
        holders = rows.index[rows["spectra"] == 1]
        best = trials.best(rows, keep).get("params")
        if len(holders):
            caption = f"{label}: the singular values of each layer" + (
                f", and the ranks of trial {best.trial} of {best.run}." if best else "."
            )
            yield Entry(f"spectra-{slug}", caption, partial(_spectra, trials.record(holders[0]), best))
        if best and any(held.dense_params > 0 for held in best.details.layers.values()):
            caption = f"{label}: where parameters, MACs and time go in the dense network and in trial {best.trial} of "
            caption += f"{best.run}, and the error of each layer's output."
            yield Entry(f"where-{slug}", caption, partial(figures.where_it_goes, best))
        timed = trials.best(rows, keep).get("speedup")
        times = timed.details.layer_times if timed else None
        if timed and times and times.before and times.after:
            caption = f"{label}: time of each layer, timed in isolation, in the dense network and in "
            caption += f"trial {timed.trial} of {timed.run}."
            yield Entry(f"times-{slug}", caption, partial(_times, times, layer_conditions(timed)))


def _slug(label: str, taken: set[str]) -> str:
    """``label`` as a unique part of a file name."""
    base = re.sub(r"[^\w.]+", "-", label).strip("-.")[:60] or "model"
    slug, number = base, 2
    while slug in taken:
        slug, number = f"{base}-{number}", number + 1
    taken.add(slug)
    return slug


def _ranks(trials: Trials, rows: list[int], label: str) -> Figure:
    return figures.rank_heatmap([trials.record(row) for row in rows], label)


def _spectra(holder: TrialRecord, best: TrialRecord | None) -> Figure:
    """The spectra that a search logged with its first trial. The chosen rank of a layer is its last rank."""
    values = holder.details.spectra
    ranks = {layer: made.ranks[-1] for layer, made in (best.plan if best else {}).items() if made.ranks}
    chosen = {layer: rank for layer, rank in ranks.items() if 1 <= rank <= len(values.get(layer, ()))}
    return figures.spectra({layer: spectrum for layer, spectrum in values.items() if spectrum}, chosen)


def _times(times: LayerTimes, where: str) -> Figure:
    """The times of layers that a search logged with a chosen network."""
    before, after = (
        {layer: seconds for layer, seconds in held.items() if seconds >= 0} for held in (times.before, times.after)
    )
    shared = {layer: after[layer] for layer in before if layer in after}
    return figures.layer_times(before, shared, where)

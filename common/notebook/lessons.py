"""Tables that teach: plans side by side, methods at one size, and what the kinds of layers weigh."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import nn

from common.data import DataBundle
from common.display import Display, count, share
from common.network import profile
from common.network.inputs import to_network
from common.network.shapes import trace_layers
from common.planning import RankPlan
from common.planning.costs import plan_cost
from common.planning.methods import method_of
from common.reporting.facts import method_title
from common.reporting.intervals import interval_text
from common.trials import STAGES, TrialRecord, change, final_metric

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "convolutions": (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    "Linear": (nn.Linear,),
}
"""Kinds of layers that are weighed apart."""
BYTES = 4
"""Of a weight in float32."""
_SHAPES: dict[str, Callable[[Any], str]] = {
    "Parameters": count,
    "MACs": count,
    "Error": "{:.1%}".format,
    "Params Red.": lambda removed: f"{-removed:+.1%}",
    "MACs Red.": lambda removed: f"{-removed:+.1%}",
    "Of PyTorch's": "{:+.2%}".format,
    "Size (MB)": "{:.2f}".format,
    "Latency (ms)": "{:.2f}".format,
    "Speedup": "{:.2f}x".format,
}


def readable(frame: pd.DataFrame, title: str) -> Display:
    """Format a table of :mod:`common.notebook.evidence`: units, percentages, and no column without a value.

    Args:
        frame: the table. A column of fractions that is not known here is taken for a metric.
        title: a line above it.
    """
    kept = [name for name in map(str, frame) if frame[name].notna().any() and (frame[name].astype(str) != "").any()]
    rows = [[_cell(name, value) for name, value in zip(kept, row, strict=True)] for row in frame[kept].to_numpy()]
    return Display(title, kept, rows) if rows else Display(f"{title}: nothing was asked for")


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "-"
    return _SHAPES.get(name, "{:.2%}".format if isinstance(value, float) else str)(value)


def plans_table(model: nn.Module, data: DataBundle, plans: Sequence[RankPlan]) -> Display:
    """A row for each plan: how many layers it factors, and what is left of the parameters and MACs."""
    x = data.example().to(next(model.parameters()).device)
    whole = profile(model, x)
    dense = whole.params, whole.macs
    shapes = trace_layers(model, x)
    rows = []
    for plan in plans:
        settings = plan.display().title.partition(" by ")[2]
        params, macs = plan_cost(shapes, dense, plan)
        cells = [count(params), change(params, dense[0]), count(macs), change(macs, dense[1])]
        name = method_of(plan.method, plan.rule)[1].title
        rows.append([name, settings.rpartition(":")[0], f"{len(plan.factored)} of {len(plan.layers)}", *cells])
    total = ["dense", "", "", count(dense[0]), "", count(dense[1]), ""]
    headings = ("method", "rule", "layers factored", "parameters", "change", "MACs", "change")
    return Display("What each rule keeps", headings, rows, total if rows else ())


def equal_sizes(records: Sequence[TrialRecord], budget: float | None) -> Display:
    """The lesson: methods at one size, each fine-tuned in the same way.

    A method has its given plan that fills the budget best, and one row more for the best trial of the search that
    fits it; of those that were tested, if any was.

    Args:
        records: the trials of one search.
        budget: the fraction of the parameters that each may keep; None compares nothing.
    """
    fit = [r for r in records if budget and r.status == "ok" and r.params <= budget * r.baseline.params]
    if budget is None or not fit:
        return Display("No methods were compared at one size" + ("" if budget else ": compare_at is None"))
    chosen: dict[str, TrialRecord] = {}
    for record in sorted(fit, key=lambda record: record.params):
        exponent = record.details.rule_settings.get("exponent", 1)
        if record.details.sampler == "given":
            name = method_title(record) + (f", exponent {exponent}" if exponent != 1 else "")
            chosen[name] = record
        else:
            name = f"{method_title(record)}, searched"
            chosen[name] = max(chosen.get(name, record), record, key=_standing)
    rows = [[name, *_row(record)] for name, record in sorted(chosen.items(), key=lambda pair: pair[1].trial)]
    first = max(chosen.values(), key=lambda record: "test" in record.metrics)  # its baseline was tested with it
    dense, images, metric = first.baseline, first.baseline.images, first.metric
    reached = dense.metric(metric, "test")
    test = "-" if math.isnan(reached) else _tested(reached, images.get("test", 0))
    total = ["dense", "", count(dense.params), count(dense.macs), f"{dense.metric(metric):.2%}", "", "", "", test, ""]
    headings = (
        "method",
        "trial",
        "parameters",
        "MACs",
        "raw",
        "recalibrated",
        "refitted",
        "fine-tuned",
        "test",
        "speedup",
    )
    counted = f"{images.get('validation', 0):,} images of validation, and {images.get('test', 0):,} images of test"
    notes = [f"{metric.capitalize()} on {counted}. A dash: not done, or it was not better."]
    if "[" in test:
        notes.append(
            "In brackets the 95% interval. Where intervals overlap, the test does not tell the methods apart."
        )
    return Display(f"One size, {len(rows)} ways: at most {budget:.0%} of the parameters", headings, rows, total, notes)


def _standing(record: TrialRecord) -> tuple[bool, float]:
    return "test" in record.metrics, final_metric(record) or 0.0


def _row(record: TrialRecord) -> list[str]:
    metric, images = record.metric, record.baseline.images
    reached = [record.metrics.get(stage, {}).get(metric) for stage in STAGES]
    costs = [
        f"{count(value)} ({change(value, whole)})"
        for value, whole in ((record.params, record.baseline.params), (record.macs, record.baseline.macs))
    ]
    test = record.metrics.get("test", {}).get(metric)
    speedup = record.latency.speedup if record.latency else None
    tau = record.details.rule_settings.get("tau")
    return [
        f"{record.trial}" + (f" (tau={tau:.3g})" if tau is not None else ""),
        *costs,
        *("-" if value is None else f"{value:.2%}" for value in reached),
        "-" if test is None else _tested(test, images.get("test", 0)),
        f"{speedup:.2f}x" if speedup else "-",
    ]


def _tested(value: float, images: int) -> str:
    return f"{value:.2%}" + interval_text(value, images)


def memory_table(networks: Mapping[Any, nn.Module], data: DataBundle) -> Display:
    """What convolutions, Linear layers and the rest of each network weigh in memory, and which MACs they take.

    Args:
        networks: title, or number of a trial -> network. The first is the dense one.
        data: gives an example input.
    """
    rows = []
    for title, network in networks.items():
        found = profile(network, to_network(data.example(), network))
        modules = dict(network.named_modules())
        weights, macs = [], []
        for kinds in KINDS.values():
            layers = [layer for name, layer in found.layers.items() if isinstance(modules[name], kinds)]
            weights.append(sum(layer.params for layer in layers))
            macs.append(sum(layer.macs for layer in layers))
        weights.append(found.params - sum(weights))
        cells = [f"{BYTES * number / 1e6:.1f} MB ({share(number, found.params)})" for number in weights]
        cells += [f"{count(number)} ({share(number, found.macs)})" for number in macs]
        rows.append(
            [str(title) if isinstance(title, str) else f"trial {title}", *cells, f"{found.size_bytes / 1e6:.1f} MB"]
        )
    headings = ["network", *KINDS, "the rest", *(f"MACs of {kind}" for kind in KINDS), "file"]
    return Display("Memory of the weights by kind of layer, in float32", headings, rows)


def shown_trial(records: Sequence[TrialRecord], best: Mapping[str, TrialRecord]) -> TrialRecord:
    """The accepted trial with the fewest parameters; if none was accepted, the trial with the highest metric.

    Raises:
        ValueError: no trial was measured.
    """
    if "params" in best:
        return best["params"]
    measured = [record for record in records if record.status == "ok"]
    if not measured:
        raise ValueError("no trial was measured; see the log for the reasons")
    return max(measured, key=lambda record: final_metric(record) or 0.0)

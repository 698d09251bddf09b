"""Reports of a method, a metric and a runtime that the suite does not know, written from outside ``common``."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from matplotlib.text import Text

import analyze_results
from common.reporting import figures
from common.reporting.facts import COLORS_APART
from common.reporting.figures.style import method_looks
from common.reporting.frame import Trials
from common.trials import Baseline, Details, PlannedLayer, Timing, TrialRecord, TrialWriter

TITLES = {"svd": "SVD", "ring": "Tensor Ring", "butterfly": ""}


def record(method: str, number: int) -> TrialRecord:
    """Make a trial that a user's program has measured."""
    timing = Timing(median_s=0.01, speedup=2.0 + number / 10, runtime="My NPU", batch_size=4)
    return TrialRecord(
        run=f"own-{method}",
        trial=number,
        status="ok",
        model="mine",
        dataset="mine_too",
        method=method,
        method_title=TITLES[method],
        rule="by hand",
        metric="f1",
        plan={"conv": PlannedLayer(method=method, ranks=[8 - number]), "head": PlannedLayer(dense="too small")},
        metrics={"raw": {"f1": 0.8}, "finetuned": {"f1": 0.89 + number / 1000}},
        params=300 - 10 * number,
        macs=4000,
        size_bytes=1500,
        latency=timing,
        seconds=2.0,
        seed=0,
        baseline=Baseline(params=1000, macs=9000, size_bytes=5000, metrics={"validation": {"f1": 0.9}}),
        environment={},
        details=Details(sampler="dice", rule_settings={"spread": 2}, latencies=[timing]),
    )


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for method in TITLES:
        with TrialWriter(tmp_path / "logs", f"own-{method}") as writer:
            for number in range(3):
                writer.write(record(method, number))
    return tmp_path / "logs"


def test_the_report_shows_it(logs: Path, tmp_path: Path) -> None:
    assert analyze_results.main([str(logs), "--out", str(tmp_path / "results")]) == 0
    page = unescape((tmp_path / "results" / "report.html").read_text())
    for shown in ("ring", "butterfly", "by hand", "spread=2", "dice", "My NPU, batch 4", "too small", "F1"):
        assert shown in re.sub("<[^>]*>", "|", page), shown
    assert {"methods.png", "stages.png", "ranks-mine-mine_too.png"} <= {
        path.name for path in (tmp_path / "results").iterdir()
    }


def test_the_figures_name_it_by_its_title_or_else_by_its_name() -> None:
    records = [record(method, number) for method in TITLES for number in range(3)]
    for draw in (figures.methods, figures.stages, figures.progress, figures.speedups, figures.rank_heatmap):
        figure = draw(records)
        figure.draw_without_rendering()
        shown = {part for text in figure.findobj(Text) for part in text.get_text().split("\n")}
        assert {"SVD", "Tensor Ring", "butterfly"} <= shown, draw.__name__


def test_it_has_a_look_of_its_own_and_the_same_in_every_figure_and_report() -> None:
    every = Trials.of([record(method, 0) for method in TITLES])
    looks = method_looks(every.frame["method"])
    assert len({color for color, _ in looks.values()}) == len({marker for _, marker in looks.values()}) == 3
    some = every.only(method=["ring"])
    assert method_looks(some.frame["method"]) == {"ring": looks["ring"]}
    assert method_looks([*reversed(TITLES)]) == looks
    many = method_looks([f"method {number}" for number in range(3 * COLORS_APART)])
    assert len(set(many.values())) == len(many)

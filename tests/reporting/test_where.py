from __future__ import annotations

import numpy as np
import pytest

from common.reporting import figures
from common.reporting.facts import layer_conditions
from tests.records import DENSE_MACS, DENSE_PARAMS, make_record
from tests.reporting.drawn import assert_inside_the_page, texts

LAYERS = {
    "a": {"error": 0.1, "params": 0.25, "macs": 0.5, "dense_params": 1_000_000, "dense_macs": 200_000_000},
    "b": {"error": 0.3, "params": 0.1, "macs": 0.2, "dense_params": 8_000_000, "dense_macs": 100_000_000},
}
TIMES = {"runtime": "PyTorch eager", "before": {"a": 0.002, "b": 0.001, "rest": 0.003}, "after": {"a": 0.001}}


def test_bars_by_hand() -> None:
    record = make_record(details={"layers": LAYERS, "layer_times": TIMES}, params=1_500_000, macs=150_000_000)
    figure = figures.where_it_goes(record, "net")
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]  # type: ignore[attr-defined]
    rest = DENSE_PARAMS / 1e6 - 9
    assert widths[0] == pytest.approx([1, 8, rest, 0.25, 0.8, 1.5 - 1.05])  # millions, dense, then compressed
    rest = DENSE_MACS / 1e6 - 300
    assert widths[1] == pytest.approx([200, 100, rest, 100, 20, 30])
    assert widths[2] == pytest.approx([2, 1, 3, 1, 0, 0])
    assert widths[3] == pytest.approx([10, 30])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "all else"]
    shown = texts(figure)
    for text in (
        "Parameters (M)\n11.2 → 1.50 in all",
        "MACs (M)\n555 → 150 in all",
        "Time (ms)\n6.00 → 1.00 in all\nPyTorch eager",
        "net",
    ):
        assert text in shown
    assert np.isfinite(np.concatenate(widths)).all()
    assert_inside_the_page(figure)


def test_the_conditions_of_the_times_are_those_of_the_timing_in_the_same_runtime() -> None:
    timed = {"runtime": "PyTorch eager", "threads": 2, "batch_size": 1, "speedup": 2.0}
    faster = {**timed, "runtime": "ONNX Runtime", "threads": 1}
    record = make_record(latency=faster, details={"latencies": [faster, timed], "layer_times": TIMES})
    assert layer_conditions(record) == "PyTorch eager, 2 threads, batch 1"
    assert layer_conditions(make_record(details={"layer_times": TIMES})) == "PyTorch eager"


def test_without_times_or_costs_it_says_so() -> None:
    assert "not timed" in texts(figures.where_it_goes(make_record(details={"layers": LAYERS})))
    older = {"a": {"error": 0.1, "params": 0.25, "macs": 0.5}}
    assert "does not hold" in texts(figures.where_it_goes(make_record(details={"layers": older})))

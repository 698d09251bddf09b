from __future__ import annotations

import numpy as np
import pytest

from common.reporting import figures
from tests.records import make_baseline, make_record
from tests.reporting.drawn import texts


def test_stages_by_hand() -> None:
    tuned = make_record(method="svd")
    untuned = make_record(trial=1, metrics={"raw": {"accuracy": 0.1}})
    (axes,) = figures.stages([tuned, untuned], keep=0.9).axes
    heights = [float(np.asarray(points.get_offsets())[0, 1]) for points in axes.collections]
    assert heights == pytest.approx([81.23, 93.12, 94.71])
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()[-2:]] == [[95, 95], [85.5, 85.5]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["SVD"]
    assert "90% of it" in texts(axes.get_figure())  # type: ignore[arg-type]
    assert "No trial was fine-tuned" in texts(figures.stages([untuned]))


def test_speedups_by_hand() -> None:
    several = [{"speedup": 2.0, "runtime": "eager"}, {"speedup": 3.0, "runtime": "ONNX Runtime"}]
    record = make_record(macs=make_baseline()["macs"] // 4, details={"latencies": several})
    figure = figures.speedups([record, make_record(trial=1, status="failed", latency=None, macs=0)])
    assert [axes.get_title() for axes in figure.axes] == ["eager", "ONNX Runtime"]
    for axes, speedup in zip(figure.axes, (2.0, 3.0), strict=True):
        ideal, _, point = axes.get_lines()
        assert np.asarray(ideal.get_xydata()).tolist() == [
            [*pair] for pair in zip(*[axes.get_xlim()] * 2, strict=True)
        ]
        assert np.asarray(point.get_xydata())[0] == pytest.approx([4.0, speedup])
        assert axes.get_xscale() == axes.get_yscale() == "log"
    assert "No speedup" in texts(figures.speedups([make_record(latency=None)]))

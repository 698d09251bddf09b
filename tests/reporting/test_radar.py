from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from common.reporting import figures
from tests.records import make_baseline, make_record
from tests.reporting.drawn import texts


def polygons(figure: Figure) -> dict[str, Any]:
    """Label -> line of each closed polygon of a radar."""
    lines = figure.axes[0].get_lines()
    return {str(line.get_label()): line for line in lines if len(np.atleast_1d(line.get_xdata())) > 1}


def radii(figure: Figure) -> list[list[float]]:
    return [[float(r) for r in line.get_ydata()] for line in polygons(figure).values()]


def test_radar_radii_by_hand() -> None:
    half = make_record(
        params=make_baseline()["params"] // 4,
        macs=make_baseline()["macs"] // 2,
        size_bytes=make_baseline()["size_bytes"],
        latency={"speedup": 1.0},
        metrics={"raw": {"accuracy": 0.95}},
    )
    (found,) = radii(figures.radar([half]))
    # metric: 100% on 90..100%; 3/4 and 1/2 removed; 1x in the middle of 0.5x..2x; no byte saved; back to the start
    assert found == pytest.approx([1.0, 0.75, 0.5, 0.5, 0.0, 1.0], abs=1e-6)
    slow, fast = (
        radii(figures.radar([make_record(latency={"speedup": speedup}, metrics={"raw": {"accuracy": 0.95}})]))[0][3]
        for speedup in (1 / 1.5, 1.5)
    )
    assert 0.5 - slow == pytest.approx(fast - 0.5)
    assert slow < 0.5


def test_radar_states_scales_networks_and_models_without_one() -> None:
    records = [
        make_record(trial=3, model="resnet18", latency={"speedup": 5.0}),
        make_record(trial=9, model="vgg16", latency=None, params=2_000_000),
        make_record(trial=1, model="alexnet", metrics={"raw": {"accuracy": 0.1}}),
    ]
    figure = figures.radar(records, keep=0.99)
    shown = texts(figure)
    for text in (
        "Fewest parameters of trials with ≥ 99%",
        "resnet18 (cifar10): trial 3, Tucker-2",
        "vgg16 (cifar10): trial 9, Tucker-2 (speedup not measured)",
        "alexnet (cifar10): no accepted trial",
        "Params\nremoved\n0% → 100%",
        "Metric over dense\n90% → 100%",
        "Speedup (log)\n0.5× → 8×",
        "1×",
    ):
        assert text in shown
    assert len(polygons(figure)) == 2
    assert [math.isnan(line[3]) for line in radii(figure)] == [False, True]


def test_the_radars_metric_axis_never_starts_below_zero() -> None:
    assert "0% → 100%" in texts(figures.radar([make_record()], keep=0))
    tested = make_record(metrics={"raw": {"accuracy": 0.95}, "test": {"accuracy": 0.95}})
    assert "Fewest parameters of tested trials" in texts(figures.radar([tested]))


def test_radar_clips_a_network_that_grew() -> None:
    assert radii(figures.radar([make_record(params=20_000_000)]))[0][1] == 0


def test_radar_says_that_nothing_was_accepted() -> None:
    shown = texts(figures.radar([make_record(status="failed", metrics={})]))
    assert "No accepted trial" in shown
    assert "99%" in shown
    with pytest.raises(ValueError, match="keep="):
        figures.radar([], keep=2)


def test_methods_of_one_model_and_the_work_that_it_follows_are_overlaid() -> None:
    records = [
        make_record(dataset="mnist", method="htd"),
        make_record(dataset="mnist", trial=1, method="svd", params=3_000_000),
        make_record(dataset="mnist", trial=2, method="tucker2", metrics={"raw": {"accuracy": 0.1}}),
    ]
    figure = figures.radar(records)
    found = polygons(figure)
    assert [label.split("\n")[0] for label in found] == [
        "resnet18 (mnist), SVD: trial 1",
        "resnet18 (mnist), HTD: trial 0",
        "tdcnn, as reported: Tucker-2, accuracy on test, no size,",
    ]
    reported = [float(radius) for radius in list(found.values())[-1].get_ydata()]
    assert reported[1:3] == pytest.approx([0.8715, 0.8467])
    assert all(math.isnan(radius) for radius in reported[3:5])
    assert "resnet18 (mnist), Tucker-2: no accepted trial" in texts(figure)
    assert "tdcnn" not in texts(figures.radar([make_record()]))

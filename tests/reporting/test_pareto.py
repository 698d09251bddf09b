from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import same_color

from common.reporting import figures
from tests.records import make_baseline, make_record
from tests.reporting.drawn import marks_of, texts


def test_pareto_front_by_hand() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.5), (2.0, 0.8), (4.0, 0.85), (3.0, 0.7)]
    assert figures.pareto_front(points) == [(1.0, 0.5), (2.0, 0.8), (3.0, 0.9)]
    assert figures.pareto_front([]) == []


def test_pareto_of_one_model() -> None:
    dense = make_baseline()["params"]
    records = [
        make_record(trial=0, params=dense // 2, metrics={"raw": {"accuracy": 0.8}}),
        make_record(trial=1, params=dense // 4, metrics={"raw": {"accuracy": 0.8}, "finetuned": {"accuracy": 0.94}}),
        make_record(trial=2, params=dense, metrics={"raw": {"accuracy": 0.99}}, status="pruned"),
        make_record(trial=3, status="failed", metrics={"raw": {"accuracy": 1.0}}),
        make_record(trial=4, metrics={"raw": {"accuracy": float("nan")}}),
    ]
    figure = figures.pareto(records)
    left, right = figure.axes
    assert left.get_xlabel() == "Parameters kept (% of dense)"
    assert right.get_xlabel() == "MACs kept (% of dense)"
    assert left.get_ylabel() == "Accuracy (validation), %"
    offsets = [np.asarray(points.get_offsets()).tolist() for points in left.collections]
    assert sorted(offset for group in offsets for offset in group) == pytest.approx(
        np.array([[25, 94], [50, 80], [100, 99]]), abs=1e-4
    )
    front, star = left.get_lines()
    assert np.asarray(front.get_xydata()) == pytest.approx(np.array([[25, 94]]), abs=1e-4)
    assert np.asarray(star.get_xydata()).tolist() == [[100, 95]]
    assert star.get_marker() == "*"
    shown = texts(figure)
    for name in ("raw", "fine-tuned", "pruned", "Pareto front", "dense network"):
        assert name in shown
    assert "recalibrated" not in shown.splitlines()


@pytest.mark.parametrize("draw", [figures.pareto, figures.methods, figures.stages])
def test_the_dense_networks_interval_is_drawn_where_it_is_known(draw: Any) -> None:
    counted = make_baseline(images={"validation": 1000}, metrics={"validation": {"accuracy": 0.95}})
    assert "dense network, 95% interval" in texts(draw([make_record(baseline=counted)]))
    assert "n=1000" in texts(draw([make_record(baseline=counted)]))
    assert "95% interval" not in texts(draw([make_record()]))


def test_pareto_is_not_flattened_by_a_few_failures() -> None:
    good = [make_record(trial=n, metrics={"raw": {"accuracy": 0.93 + 0.001 * n}}) for n in range(20)]
    bad = make_record(trial=20, metrics={"raw": {"accuracy": 0.1}})
    figure = figures.pareto([*good, bad])
    assert figure.axes[0].get_ylim()[0] > 85
    assert "1 of 21 trials lie below" in texts(figure)
    assert "lie below" not in texts(figures.pareto(good))
    half = [make_record(trial=n, metrics={"raw": {"accuracy": 0.1 + 0.04 * n}}) for n in range(20)]
    assert figures.pareto(half).axes[0].get_ylim()[0] < 10  # if most trials are spread widely, all are shown


def test_pareto_of_several_models() -> None:
    unet = make_baseline(metrics={"validation": {"dice": 0.9}})
    records = [
        make_record(),
        make_record(model="vgg16"),
        make_record(model="unet", metric="dice", metrics={"raw": {"dice": 0.8}}, baseline=unet),
    ]
    figure = figures.pareto(records)
    stars = [line for line in figure.axes[0].get_lines() if line.get_marker() == "*"]
    assert len(stars) == 3
    assert not same_color(stars[0].get_color(), stars[1].get_color())
    assert figure.axes[0].get_ylabel() == "Accuracy or Dice (validation), %"
    assert "unet (cifar10)" in texts(figure)


def test_pareto_without_a_measurement() -> None:
    assert "No trial was measured" in texts(figures.pareto([make_record(status="failed", metrics={})]))
    assert "No trial was measured" in texts(figures.pareto([]))


@pytest.mark.parametrize("dense", [0.05, 0.5, 0.895, 0.95, 0.99])
@pytest.mark.parametrize("picture", [figures.pareto, figures.methods])
def test_the_dense_networks_star_always_lies_inside_the_axes(dense: float, picture: Any) -> None:
    base = make_baseline(metrics={"validation": {"accuracy": dense}})
    good = [make_record(trial=n, baseline=base, metrics={"raw": {"accuracy": 0.9 + 0.001 * n}}) for n in range(20)]
    bad = make_record(trial=20, baseline=base, metrics={"raw": {"accuracy": 0.1}})
    for records in (good, [*good, bad], [*good, bad, make_record(model="other", trial=21)]):
        stars = [inside for mark, inside in marks_of(picture(records)) if mark == "*"]
        assert stars
        assert all(stars)
    figure = picture([*good, bad])
    assert ("1 of 21 trials lie below" in texts(figure)) == (figure.axes[0].get_ylim()[0] > 10)


@pytest.mark.parametrize(
    "changes",
    [
        {"params": 90_000_000, "macs": 10**10, "size_bytes": 10**9},
        {"params": 1, "macs": 1, "size_bytes": 1},
        {"latency": {"speedup": 1e-6, "median_s": 1.0}},
        {"latency": {"speedup": 1e6, "median_s": 1.0}},
        {"metrics": {"raw": {"accuracy": -0.5}}, "seconds": 0.0},
        {"metrics": {"raw": {"accuracy": 9.0}}, "seconds": 1e6},
    ],
)
def test_marks_of_extreme_networks_lie_inside(changes: dict[str, Any]) -> None:
    records = [make_record(), make_record(trial=1, **changes)]
    figures_of = [draw(records, 0.0) for draw in (figures.radar, figures.progress, figures.stages)]
    figures_of += [draw(records) for draw in (figures.pareto, figures.methods, figures.speedups)]
    for figure in figures_of:
        assert all(inside for _, inside in marks_of(figure, cut_off=True))


def test_methods_by_hand() -> None:
    dense = make_baseline()["params"]
    records = [
        make_record(trial=0, method="svd", params=dense // 2, metrics={"raw": {"accuracy": 0.8}}),
        make_record(trial=1, method="htd", params=dense // 4, latency={"speedup": 4.0}),
        make_record(trial=2, method="htd", params=dense, status="pruned"),
    ]
    figure = figures.methods(records)
    params, _, latency = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "Parameters kept (% of dense)",
        "MACs kept (% of dense)",
        "Latency kept (% of dense)",
    ]
    assert (params.get_title(loc="left"), params.get_ylabel()) == (
        "resnet18 (cifar10)",
        "Accuracy\n(validation), %",
    )
    assert latency.get_title(loc="right") == "2 conditions of timing"
    shown = [np.asarray(points.get_offsets()).tolist() for points in params.collections]
    assert shown == [[pytest.approx([50, 80])], [pytest.approx([25, 94.71], abs=1e-5)]]
    hollow = [len(np.asarray(points.get_facecolor())) == 0 for points in params.collections]
    assert hollow == [True, False]  # the first was not fine-tuned
    assert np.asarray(latency.collections[1].get_offsets())[0] == pytest.approx([25, 94.71])
    assert texts(figure).count("Tucker-2") == 0

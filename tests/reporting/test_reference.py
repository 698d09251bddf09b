from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import same_color

from common.reporting import figures
from common.reporting.figures.style import REFERENCE_COLOR
from common.reporting.frame import Trials
from common.reporting.html.interactive import page_data, shown_rows
from common.reporting.reference import Reference
from tests.records import DENSE_PARAMS, make_record
from tests.reporting.drawn import assert_inside_the_page, texts

DENSE: dict[str, Any] = {"model": "resnet18", "ranks": {}, "params": 1000, "macs": 500, "accuracy": 0.99}
SMALL: dict[str, Any] = {"model": "resnet18", "ranks": {"conv1": [3, 2]}, "params": 100, "macs": 100, "accuracy": 0.98}
BETTER: dict[str, Any] = {
    "model": "resnet18",
    "ranks": {"conv1": [4, 4]},
    "params": 200,
    "macs": 50,
    "accuracy": 0.985,
}
WORSE = {"model": "resnet18", "ranks": {"conv1": [4, 3]}, "params": 150, "macs": 200, "accuracy": 0.90}
"""Its parameters are fewer than those of `BETTER`, but it is on neither front."""


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    return path


def beside(path: Path, *lines: dict[str, Any]) -> Trials:
    return Trials.of([make_record()]).beside(Reference.read(write(path / "peer.jsonl", *lines)))


def fronts(axes: Any) -> list[list[list[float]]]:
    """The points of each dashed grey line."""
    lines = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert all(same_color(line.get_color(), REFERENCE_COLOR) for line in lines)
    return [np.asarray(line.get_xydata()).round(6).tolist() for line in lines]


@pytest.mark.parametrize("draw", [figures.pareto, figures.methods])
def test_the_fronts_of_another_work_are_drawn(tmp_path: Path, draw: Any) -> None:
    figure = draw(beside(tmp_path, DENSE, SMALL, WORSE, BETTER))
    left, right, *others = figure.axes
    assert fronts(left) == [[[10, 98], [20, 98.5]]]
    assert fronts(right) == [[[10, 98.5]]]
    assert not any(fronts(axes) for axes in others)  # it states no times
    assert left.get_ylim()[0] < 98 < 98.5 < left.get_ylim()[1]
    assert "peer, accuracy as it reports" in texts(figure)
    assert_inside_the_page(figure)
    without = draw([make_record()])
    assert not any(fronts(axes) for axes in without.axes)
    assert "as it reports" not in texts(without)


def test_the_page_holds_the_fronts(tmp_path: Path) -> None:
    trials = beside(tmp_path, DENSE, SMALL, WORSE, BETTER)
    (model,) = json.loads(page_data(trials, 0.99, shown_rows(trials, 0.99)))["models"].values()
    held = {"params_kept": [[10, 98], [20, 98.5]], "macs_kept": [[10, 98.5]], "time_kept": []}
    assert model["reference"] == {"name": "peer", "fronts": held}


def test_the_radar_takes_the_smallest_that_kept_enough(tmp_path: Path) -> None:
    trials = beside(tmp_path, DENSE, SMALL, WORSE, BETTER)
    reference = trials.reference_for(trials.frame)
    assert reference is not None
    for keep, smallest in ((0.0, SMALL), (0.99, BETTER)):
        gains = reference.gains(keep)
        assert gains is not None
        assert gains["metric"] == pytest.approx(smallest["accuracy"] / 0.99)
        assert gains["params"] == pytest.approx(1 - smallest["params"] / 1000)
        assert gains["macs"] == pytest.approx(1 - smallest["macs"] / 500)
        assert math.isnan(gains["speedup"])
    assert reference.gains(1.0) is None  # none kept all of the accuracy
    shown = texts(figures.radar(trials)).replace("\n", " ")
    assert "peer: its fewest parameters, accuracy as it reports (speedup, file size removed not measured)" in shown


def test_a_file_without_a_dense_network_is_set_beside_the_runs_own(tmp_path: Path) -> None:
    quarter = SMALL | {"params": DENSE_PARAMS // 4}
    figure = figures.pareto(beside(tmp_path, quarter))
    assert fronts(figure.axes[0])[0] == [[pytest.approx(25, abs=1e-4), 98]]
    assert not fronts(figure.axes[1])
    assert "MACs of peer's dense network unknown" in texts(figure)


def test_another_data_set_or_metric_is_left_out(tmp_path: Path) -> None:
    for change in ({"dataset": "mnist"}, {"model": "vgg16"}, {"metric": "dice", "dice": 0.5}):
        with pytest.raises(
            ValueError, match=r"reference='peer' has networks of .* none of them .* resnet18 \(cifar10\)"
        ):
            beside(tmp_path, DENSE | change, SMALL | change)
        figure = figures.pareto(beside(tmp_path, DENSE, SMALL, DENSE | change, BETTER | change))
        assert fronts(figure.axes[0]) == [[[10, 98]]]


def test_a_metric_stands_under_its_name(tmp_path: Path) -> None:
    line = {"model": "unet", "ranks": {"up.0": [2]}, "params": 10, "metric": "dice", "dice": 0.624}
    (network,) = Reference.read(write(tmp_path / "arsvd.jsonl", line)).networks
    assert (network.metric, network.value, network.macs) == ("dice", 0.624, None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "line 1: "),
        ("[1]", "line 1: "),
        (json.dumps(DENSE | {"metric": ["accuracy"]}), "line 1: metric=['accuracy']: it must be the name of a metric"),
        (json.dumps(DENSE | {"params": 0}), "params=0: input should be greater than 0"),
        (json.dumps(DENSE | {"params": 10.5}), "params=10.5: "),
        (json.dumps(DENSE | {"accuracy": 1.5}), "value=1.5: input should be less than or equal to 1"),
        (json.dumps(DENSE | {"accuracy": float("nan")}), "line 1: "),
        (json.dumps(DENSE | {"ranks": {"conv1": [0]}}), "ranks=0: input should be greater than 0"),
        (json.dumps({key: value for key, value in DENSE.items() if key != "accuracy"}), "there is no key 'accuracy'"),
        ("\n\n", "holds no network"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "peer.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=r"reference=.*peer\.jsonl") as caught:
        Reference.read(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("baseline", [{"metrics": {}}, {"params": 0}])
def test_a_run_without_dense_figures_stands_beside_a_file_without_them(
    tmp_path: Path, baseline: dict[str, Any]
) -> None:
    reference = Reference.read(write(tmp_path / "peer.jsonl", SMALL))
    trials = Trials.of([make_record(baseline=baseline)]).beside(reference)
    found = trials.reference_for(trials.frame)
    assert found
    assert found.dense is None
    assert figures.pareto(trials).axes

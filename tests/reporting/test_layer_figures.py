from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

from common.reporting import figures
from common.reporting.figures.spectra import stages
from tests.records import make_record
from tests.reporting.drawn import marks_of, texts


def test_spectra() -> None:
    values = {f"layer{n}.conv": np.geomspace(n + 1, 0.01, 10 + n).tolist() for n in range(20)}
    figure = figures.spectra(values, {"layer3.conv": 5})
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    curves = [line for line in lines if line.get_marker() == "None"]
    assert len(curves) == 20
    assert {axes.get_yscale() for axes in figure.axes[:4]} == {"log"}
    third = np.asarray(curves[3].get_xydata())
    assert third[0] == pytest.approx([100 / 13, 1.0])
    assert third[-1] == pytest.approx([100, 0.01 / 4])
    (mark,) = (line for line in lines if line.get_marker() == "o")
    assert np.asarray(mark.get_xydata())[0] == pytest.approx([100 * 5 / 13, values["layer3.conv"][4] / 4])
    shown = texts(figure)
    assert all(name in shown for name in values)
    for text in ("chosen rank", "Place in the spectrum (%", "over the greatest"):
        assert text in shown


def test_spectra_of_odd_layers() -> None:
    figure = figures.spectra({"dead": [0.0, 0.0], "thin": [2.0], "deficient": [1.0, 1e-12, 0.0]})
    assert len(figure.axes[0].get_lines()) == 3
    assert figure.axes[0].get_ylim()[0] == pytest.approx(0.9e-4)
    many = texts(figures.spectra({f"l{n}": [2.0, 1.0] for n in range(60)}))
    assert sum(line.startswith("l") for line in many.splitlines()) == 60
    assert "No layer" in texts(figures.spectra({}))


def test_layers_that_begin_alike_share_a_panel() -> None:
    resnet = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "fc"]
    assert stages(resnet) == [["conv1"], resnet[1:3], resnet[3:5], ["fc"]]
    vgg = [*(f"features.{n}" for n in range(13)), *(f"classifier.{n}" for n in (0, 3, 6))]
    assert [len(panel) for panel in stages(vgg)] == [6, 6, 1, 3]
    assert stages(["a", "b", "c"]) == [["a", "b", "c"]]


def test_every_panel_is_named_and_a_stage_in_two_panels_says_which_part() -> None:
    names = ["conv1", *(f"features.{n}" for n in range(8)), "fc.0", "fc.1"]
    figure = figures.spectra({name: [2.0, 1.0] for name in names} | {"fc.1": [3.0]})
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles == ["conv1", "features.0 to features.5", "features.6 to features.7", "fc"]
    single = figure.axes[3].get_lines()[1]
    assert (len(single.get_xdata()), single.get_marker()) == (1, ".")  # type: ignore[arg-type]


ODD_SPECTRA: dict[str, dict[str, list[float]]] = {
    "steep": {name: np.geomspace(1, end, 32).tolist() for name, end in (("a", 1e-2), ("b", 1e-7), ("c", 1e-9))},
    "flat": {"a": [3.0, 3.0, 3.0]},
    "of one value": {"a": [2.0]},
    "all zero": {"a": [0.0, 0.0, 0.0]},
    "zeros behind": {"a": [1.0, 0.5, 0.0, 0.0], "b": [1.0]},
    "one of zeros among others": {"a": [1.0, 0.1, 0.01], "b": [0.0, 0.0]},
    "not finite": {"a": [math.inf, 1.0, math.nan, 0.1], "b": [math.nan, math.nan]},
    "not in order": {"a": [0.1, 5.0, 0.2]},
    "tiny": {"a": [1e-300, 1e-310]},
}


@pytest.mark.parametrize("name", ODD_SPECTRA)
def test_every_chosen_rank_has_its_mark_inside_the_spectra(name: str) -> None:
    spectra = ODD_SPECTRA[name]
    for place in range(max(map(len, spectra.values()))):
        chosen = {layer: min(place + 1, len(values)) for layer, values in spectra.items()}
        marks = marks_of(figures.spectra(spectra, chosen))
        assert [inside for _, inside in marks] == [True] * len(spectra)
        for (mark, _), (layer, values) in zip(marks, spectra.items(), strict=True):
            usable = [value for value in values if 0 < value < math.inf]
            value = values[chosen[layer] - 1]
            assert mark == ("o" if value in usable and value >= 1e-4 * max(usable) else "v")


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=6), st.data())
@tries(max_examples=25)
def test_marks_lie_inside_the_spectra_whatever_the_values(values: list[float], data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, len(values)))
    ((_, inside),) = marks_of(figures.spectra({"a": values}, {"a": rank}))
    assert inside


def test_a_mark_below_the_axis_is_a_triangle_with_a_legend() -> None:
    spectra = {"a": [1.0, 0.5, 1e-9]}
    assert "chosen rank, value below the axis" in texts(figures.spectra(spectra, {"a": 3}))
    assert "below" not in texts(figures.spectra(spectra, {"a": 2}))
    assert "rank" not in texts(figures.spectra(spectra))


def test_a_sensitivity_that_is_not_finite_is_named_and_has_no_bar() -> None:
    values = {"a": math.inf, "b": 0.5, "c": math.nan}
    figure = figures.sensitivities(values, dict.fromkeys(values, 1))
    figure.draw_without_rendering()
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.0, 0.5, 0.0]  # type: ignore[attr-defined]
    assert texts(figure).count("not finite") == 2


@pytest.mark.parametrize("chosen", [{"a": 0}, {"a": 3}, {"b": 1}])
def test_spectra_refuses_a_rank_that_is_not_there(chosen: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is not a rank of that layer"):
        figures.spectra({"a": [2.0, 1.0]}, chosen)


def test_sensitivities() -> None:
    figure = figures.sensitivities({"conv1": 0.2, "fc": 0.05}, {"fc": 3000, "conv1": 1000})
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [0.2, 0.05]  # type: ignore[attr-defined]
    assert [bar.get_width() for bar in right.patches] == [25, 75]  # type: ignore[attr-defined]
    assert [label.get_text() for label in left.get_yticklabels()] == ["conv1", "fc"]
    assert left.yaxis_inverted()  # the first layer stands on top
    assert left.get_xlabel() == "Sensitivity"
    assert "(%)" in right.get_xlabel()
    assert "No layer" in texts(figures.sensitivities({}, {}))
    with pytest.raises(ValueError, match="fc"):
        figures.sensitivities({"conv1": 1.0}, {"conv1": 1, "fc": 2})


def test_policy_heatmap_before_and_after_share_one_scale() -> None:
    after = {"conv1": [0.1, 0.9], "conv2": [0.5, 0.5]}
    before = {"conv2": [0.4, 0.6], "conv1": [0.7, 0.3]}
    figure = figures.policy_heatmap(after, ["10%", "dense"], "Policy $5", before)
    first, second, bar = figure.axes
    for axes, cells in ((first, [[0.7, 0.3], [0.4, 0.6]]), (second, [[0.1, 0.9], [0.5, 0.5]])):
        mesh = axes.collections[0]
        values = mesh.get_array()
        assert values is not None
        assert np.reshape(values, (2, 2)).tolist() == cells  # both in the order of the layers of `after`
        assert mesh.get_clim() == (0, 0.9)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["10%", "dense"]
        assert axes.get_xlabel() == "Share of the layer's parameters\n(under a budget: price level)"
    assert (first.get_title(), second.get_title(), bar.get_ylabel()) == ("Before", "After", "Probability")
    assert [label.get_text() for label in first.get_yticklabels()] == ["conv1", "conv2"]
    assert "Policy $5" in texts(figure)


def test_policy_heatmap_of_one_state_and_wrong_shapes() -> None:
    assert len(figures.policy_heatmap({"a": [1.0]}, ["dense"]).axes) == 2  # the panel and its colour bar
    assert "no layer" in texts(figures.policy_heatmap({}, ["dense"]))
    with pytest.raises(ValueError, match=r"'a' holds 1 probabilities for 2"):
        figures.policy_heatmap({"a": [1.0]}, ["10%", "dense"])
    with pytest.raises(ValueError, match="same layers"):
        figures.policy_heatmap({"a": [1.0]}, ["dense"], before={"b": [1.0]})


def test_sensitivities_that_differ_by_powers_of_ten_are_on_a_logarithmic_axis() -> None:
    sizes = {"a": 1, "b": 2, "c": 3}
    assert figures.sensitivities({"a": 5.0, "b": 0.001, "c": 0.0}, sizes).axes[0].get_xscale() == "log"
    assert figures.sensitivities({"a": 5.0, "b": 1.0, "c": 0.0}, sizes).axes[0].get_xscale() == "linear"


def test_rank_heatmap_is_relative_to_full_rank_where_it_is_known() -> None:
    figures_of = {"layers": {"a": {"error": 0.1, "params": 0.2, "macs": 0.2, "full": [64, 32]}}}
    record = make_record(plan={"a": {"method": "tucker2", "ranks": [16, 16]}}, details=figures_of)
    heat, bar = figures.rank_heatmap([record]).axes
    assert np.asarray(heat.images[0].get_array()).tolist() == [[(16 / 64 + 16 / 32) / 2]]
    assert bar.get_ylabel() == "Rank over full rank"


def test_rank_heatmap_by_hand() -> None:
    def plan(first: int, second: list[int]) -> dict[str, Any]:
        return {"a": {"method": "svd", "ranks": [first]}, "b": {"ranks": second} if second else {"dense": "why"}}

    records = [
        make_record(trial=0, params=300, plan=plan(8, [4, 10])),
        make_record(trial=1, params=100, plan=plan(2, [2, 10])),
        make_record(trial=2, params=200, plan=plan(4, [])),
        make_record(trial=3, params=50, plan={"a": {"ranks": [5]}}, method="htd"),
        make_record(trial=4, params=0, plan=plan(9, [9]), status="failed"),
    ]
    figure = figures.rank_heatmap(records, "net")
    tucker, htd, bar = figure.axes
    grids = [np.ma.asarray(axes.images[0].get_array()).filled(np.nan).tolist() for axes in (tucker, htd)]
    assert grids[0] == [[0.25, 0.5, 1.0], [0.75, -1.0, 1.0]]  # fewest parameters first; -1 is dense
    assert grids[1][0] == [1.0]
    assert math.isnan(grids[1][1][0])
    assert tucker.get_title() == "Tucker-2\n3 trials"
    assert htd.get_title() == "HTD\n1 trial"
    assert "greatest" in bar.get_ylabel()
    assert "grey: the layer stayed dense" in texts(figure)
    assert "No trial holds a plan" in texts(figures.rank_heatmap([make_record(plan={})]))

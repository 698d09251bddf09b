from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.text import Text

from common.reporting import figures
from common.reporting.figures.gallery import gallery
from common.reporting.figures.style import method_looks, palette
from common.reporting.frame import Trials
from common.reporting.html.report import SECTIONS
from common.reporting.runs import Log
from tests.make_logs import write_logs
from tests.records import foreign_record, make_baseline, make_record


def texts(figure: Figure) -> str:
    """Every text that the drawn figure holds."""
    figure.draw_without_rendering()
    return "\n".join(t.get_text() for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible())


def assert_inside_the_page(figure: Figure) -> None:
    box = figure.get_tightbbox()  # inches, of what is really drawn
    width, height = figure.get_size_inches()
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01


def polygons(figure: Figure) -> dict[str, Any]:
    """Label -> line of each closed polygon of a radar."""
    lines = figure.axes[0].get_lines()
    return {str(line.get_label()): line for line in lines if len(np.atleast_1d(line.get_xdata())) > 1}


def radii(figure: Figure) -> list[list[float]]:
    return [[float(r) for r in line.get_ydata()] for line in polygons(figure).values()]


def test_save_figure_writes_both_files_and_the_same_bytes_for_the_same_records(tmp_path: Path) -> None:
    paths = figures.save_figure(figures.radar([make_record()]), tmp_path / "new" / "v1.2")
    assert [path.name for path in paths] == ["v1.2.png", "v1.2.pdf"]
    before = [path.read_bytes() for path in paths]
    assert before[0].startswith(b"\x89PNG")
    assert before[1].startswith(b"%PDF")
    figures.save_figure(figures.radar([make_record()]), tmp_path / "new" / "v1.2")
    assert [path.read_bytes() for path in paths] == before


def test_a_notebook_gets_a_png() -> None:
    figure = figures.pareto([make_record()])
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_matplotlibs_settings_stay_as_they_were(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figures.save_figure(figures.radar([make_record()]), tmp_path / "radar")
    figures.training_curves([{"loss": 1.0}])
    assert dict(matplotlib.rcParams) == before


HOSTILE: dict[str, dict[Any, Any]] = {
    "latex": {"text.usetex": True},
    "fonts": {"font.family": "No Such Font", "font.size": 30, "mathtext.fontset": "cm", "axes.unicode_minus": False},
    "sizes": {
        "figure.dpi": 20,
        "savefig.dpi": 20,
        "figure.figsize": (1, 1),
        "lines.linewidth": 9,
        "xtick.labelsize": 20,
    },
    "saving": {"savefig.format": "svg", "savefig.bbox": "tight", "savefig.transparent": True, "pdf.fonttype": 3},
    "colours": {"figure.facecolor": "black", "savefig.facecolor": "black", "text.color": "red", "image.cmap": "jet"},
    "axes": {
        "axes.grid": False,
        "axes.spines.top": True,
        "axes.formatter.limits": (0, 0),
        "xtick.minor.visible": True,
    },
    "layout": {"figure.autolayout": True, "figure.constrained_layout.use": False, "axes.xmargin": 0.4},
    "sketch": {"path.sketch": (1, 100, 2), "path.effects": [], "axes.prop_cycle": "cycler('color', ['r'])"},
}


def saved_in_every_way(folder: Path) -> list[bytes]:
    """Pictures of every kind: with text alone, with many marks, with a colour bar, as they are saved and shown."""
    folder.mkdir()
    made = [
        figures.pareto([]),
        figures.radar([make_record()]),
        figures.pareto([make_record(), make_record(trial=1, model="b")]),
        figures.spectra({"a": [1.0, 0.5, 0.01], "b": [1.0]}, {"a": 2}),
        figures.rank_heatmap([make_record()]),
        figures.policy_heatmap({"a": [0.5, 0.5]}, ["1", "2"]),
        figures.training_curves([{"loss": 1.0, "accuracy": 0.5}, {"loss": 0.5, "accuracy": 0.7}]),
    ]
    contents = []
    for place, figure in enumerate(made):
        contents += [path.read_bytes() for path in figures.save_figure(figure, folder / str(place))]
        contents.append(figure._repr_png_())  # type: ignore[attr-defined]
        figure.savefig(folder / "own.png")
        contents.append((folder / "own.png").read_bytes())
        figure.canvas.print_figure(
            folder / "canvas.png", dpi=100, facecolor="w", bbox_inches="tight"
        )  # as Jupyter does
        contents.append((folder / "canvas.png").read_bytes())
    return contents


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return saved_in_every_way(tmp_path_factory.mktemp("pictures") / "plain")


@pytest.mark.parametrize("settings", HOSTILE)
def test_the_users_own_settings_change_no_picture(settings: str, undisturbed: list[bytes], tmp_path: Path) -> None:
    with matplotlib.rc_context(HOSTILE[settings]):
        before = dict(matplotlib.rcParams)
        assert saved_in_every_way(tmp_path / settings) == undisturbed
        assert dict(matplotlib.rcParams) == before


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


def test_radar_states_its_scales_its_networks_and_who_is_missing() -> None:
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


def test_the_radars_metric_starts_at_nothing_at_least() -> None:
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
    assert left.get_ylabel() == "Accuracy on validation (%)"
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


def test_pareto_is_not_flattened_by_a_few_failures() -> None:
    good = [make_record(trial=n, metrics={"raw": {"accuracy": 0.93 + 0.001 * n}}) for n in range(20)]
    bad = make_record(trial=20, metrics={"raw": {"accuracy": 0.1}})
    figure = figures.pareto([*good, bad])
    assert figure.axes[0].get_ylim()[0] > 85
    assert "1 of 21 trials lie below" in texts(figure)
    assert "lie below" not in texts(figures.pareto(good))
    half = [make_record(trial=n, metrics={"raw": {"accuracy": 0.1 + 0.04 * n}}) for n in range(20)]
    assert figures.pareto(half).axes[0].get_ylim()[0] < 10  # a spread that is the rule is shown whole


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
    assert figure.axes[0].get_ylabel() == "Accuracy or dice on validation (%)"
    assert "unet (cifar10)" in texts(figure)


def test_pareto_without_a_measurement() -> None:
    assert "No trial was measured" in texts(figures.pareto([make_record(status="failed", metrics={})]))
    assert "No trial was measured" in texts(figures.pareto([]))


def test_spectra() -> None:
    values = {f"layer{n}.conv": np.geomspace(n + 1, 0.01, 10 + n).tolist() for n in range(20)}
    figure = figures.spectra(values, {"layer3.conv": 5})
    axes = figure.axes[0]
    curves = [line for line in axes.get_lines() if line.get_marker() == "None"]
    assert len(curves) == 20
    assert axes.get_yscale() == "log"
    assert "(%" in axes.get_xlabel()
    assert "over the greatest" in axes.get_ylabel()
    third = np.asarray(curves[3].get_xydata())
    assert third[0] == pytest.approx([100 / 13, 1.0])
    assert third[-1] == pytest.approx([100, 0.01 / 4])
    (mark,) = (line for line in axes.get_lines() if line.get_marker() == "o")
    assert np.asarray(mark.get_xydata())[0] == pytest.approx([100 * 5 / 13, values["layer3.conv"][4] / 4])
    shown = texts(figure)
    assert all(name in shown for name in values)
    assert "chosen rank" in shown


def test_spectra_of_odd_layers() -> None:
    figure = figures.spectra({"dead": [0.0, 0.0], "thin": [2.0], "deficient": [1.0, 1e-12, 0.0]})
    assert len(figure.axes[0].get_lines()) == 3
    assert figure.axes[0].get_ylim()[0] == pytest.approx(0.9e-4)
    many = texts(figures.spectra({f"l{n}": [2.0, 1.0] for n in range(60)}))
    assert sum(line.startswith("l") for line in many.splitlines()) == 24
    assert "No layer" in texts(figures.spectra({}))


def marks_of(figure: Figure, cut_off: bool = False) -> list[tuple[str, bool]]:
    """The marker of each mark and whether its centre lies inside its axes; with ``cut_off`` of clipped ones too."""
    figure.draw_without_rendering()
    found = []
    for axes in figure.axes:
        box = axes.get_window_extent().padded(0.5)
        for line in axes.get_lines():
            if line.get_marker() not in (None, "None", "", " ") and (cut_off or not line.get_clip_on()):
                places = axes.transData.transform(np.asarray(line.get_xydata()))
                found += [(str(line.get_marker()), box.contains(x, y)) for x, y in places]
    return found


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


def test_a_mark_whose_value_is_not_shown_says_so() -> None:
    spectra = {"a": [1.0, 0.5, 1e-9]}
    assert "chosen rank, value below the axis" in texts(figures.spectra(spectra, {"a": 3}))
    assert "below" not in texts(figures.spectra(spectra, {"a": 2}))
    assert "rank" not in texts(figures.spectra(spectra))


@pytest.mark.parametrize("dense", [0.05, 0.5, 0.895, 0.95, 0.99])
@pytest.mark.parametrize("picture", [figures.pareto, figures.methods])
def test_the_dense_networks_star_lies_inside_whatever_the_trials_reached(dense: float, picture: Any) -> None:
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
    assert left.get_xlabel() == "Sensitivity (nats)"
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
        assert axes.get_xlabel() == "Candidate rank"
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


def test_training_curves() -> None:
    history = [
        {"epoch": 1, "train_loss": 2.0, "loss": 2.1, "accuracy": 0.5, "lr": 0.1},
        {"epoch": 2, "train_loss": 1.0, "loss": float("nan"), "accuracy": 0.75, "lr": 0.01},
    ]
    left, right = figures.training_curves(history).axes
    assert [line.get_label() for line in left.get_lines()] == ["train loss", "validation loss"]
    assert [line.get_label() for line in right.get_lines()] == ["accuracy"]
    assert np.asarray(left.get_lines()[0].get_xydata()).tolist() == [[1, 2], [2, 1]]
    assert np.asarray(right.get_lines()[0].get_xydata()).tolist() == [[1, 50], [2, 75]]
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == ("Epoch", "Loss", "Validation metric (%)")
    assert "No epoch" in texts(figures.training_curves([]))


def test_names_in_any_script_are_drawn(tmp_path: Path) -> None:
    odd = "網絡_ü $x^2$ \\frac"
    shown = texts(figures.pareto([make_record(model="a"), make_record(model="a$b$")]))
    assert "a$b$ (cifar10)" in shown
    for name, figure in {
        "radar": figures.radar([make_record(model=odd)]),
        "pareto": figures.pareto([make_record(model=odd), make_record(model="b")]),
        "spectra": figures.spectra({odd: [2.0, 1.0]}),
    }.items():
        assert len(figures.save_figure(figure, tmp_path / name)) == 2


def test_sensitivities_that_differ_by_powers_of_ten_are_on_a_logarithmic_axis() -> None:
    sizes = {"a": 1, "b": 2, "c": 3}
    assert figures.sensitivities({"a": 5.0, "b": 0.001, "c": 0.0}, sizes).axes[0].get_xscale() == "log"
    assert figures.sensitivities({"a": 5.0, "b": 1.0, "c": 0.0}, sizes).axes[0].get_xscale() == "linear"


def test_methods_look_the_same_in_every_figure() -> None:
    alone, among = method_looks(["htd"]), method_looks(["htd", "svd", "my own"])
    assert list(among) == ["svd", "htd", "my own"]
    assert alone["htd"] == among["htd"]
    assert len({marker for _, marker in among.values()}) == 3


def test_the_first_four_colours_are_told_apart_by_the_colour_blind() -> None:
    """With protanopia and deuteranopia (Machado, Oliveira & Fernandes 2009); seaborn's own order has 13 for 40."""
    seen = (
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    )
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    four = np.array([*palette(4), (1, 1, 1)])
    linear = np.where(four <= 0.04045, four / 12.92, ((four + 0.055) / 1.055) ** 2.4)
    for blindness in (np.eye(3), *seen):
        light = np.clip(linear @ np.transpose(blindness), 0, 1) @ xyz.T / [0.9505, 1, 1.089]
        root = np.where(light > 0.008856, np.cbrt(light), 7.787 * light + 16 / 116)
        lab = np.stack([116 * root[:, 1] - 16, *(np.diff(root.T, axis=0) * [[-500], [-200]])], axis=1)
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
        assert apart[~np.eye(5, dtype=bool)].min() > 40
    looks = method_looks(["svd", "arsvd", "tucker2", "htd"])
    assert all(same_color(color, first) for (color, _), first in zip(looks.values(), palette(4), strict=True))


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
    assert (params.get_title(loc="left"), params.get_ylabel()) == ("resnet18 (cifar10)", "Accuracy (%)")
    shown = [np.asarray(points.get_offsets()).tolist() for points in params.collections]
    assert shown == [[pytest.approx([50, 80])], [pytest.approx([25, 94.71], abs=1e-5)]]
    assert np.asarray(latency.collections[1].get_offsets())[0] == pytest.approx([25, 94.71])
    assert texts(figure).count("Tucker-2") == 0


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


def test_progress_by_hand() -> None:
    dense = make_baseline()["params"]
    shares, good = (0.5, 0.8, 0.1, 0.2), {"raw": {"accuracy": 0.95}}
    records = [
        make_record(trial=n, params=round(share * dense), metrics=good if share > 0.1 else {"raw": {"accuracy": 0.1}})
        for n, share in enumerate(shares)
    ]
    figure = figures.progress(records)
    trials, spent = (np.asarray(axes.get_lines()[0].get_xydata()) for axes in figure.axes)
    assert trials[:, 0].tolist() == [1, 2, 3, 4]
    assert trials[:, 1] == pytest.approx([50, 50, 50, 20], abs=1e-4)
    assert spent[:, 0] == pytest.approx([n * 41.7 / 60 for n in (1, 2, 3, 4)])
    assert [axes.get_xlabel() for axes in figure.axes] == ["Trials made", "Time spent in trials (min)"]
    assert "No accepted trial" in texts(figures.progress(records[2:3]))


def test_progress_keeps_a_model_without_a_long_search() -> None:
    searched = [make_record(trial=n) for n in range(10)]
    rule = make_record(trial=10, rule="energy", details={"sampler": "energy"})
    small = [make_record(run="v", model="vgg16", trial=n) for n in range(3)]
    figure = figures.progress([*searched, rule, *small])
    assert [axes.get_title("left") for axes in figure.axes[::2]] == ["resnet18 (cifar10)", "vgg16 (cifar10)"]
    assert [len(axes.get_lines()) for axes in figure.axes[::2]] == [1, 1]  # the rule's one trial gives way


def test_progress_says_how_many_searches_have_a_line() -> None:
    good, bad = ({"raw": {"accuracy": value}} for value in (0.95, 0.5))
    searches = [
        make_record(run=f"r{seed}", seed=seed, trial=n, metrics=good if seed < 1 else bad)
        for seed in range(3)
        for n in range(10)
    ]
    titles = [axes.get_title("left") for axes in figures.progress(searches).axes]
    assert titles[0] == "resnet18 (cifar10): 1 of 3 searches"
    assert figures.progress(searches[:10]).axes[0].get_title("left") == "resnet18 (cifar10)"


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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    """Every picture of 4 models x 4 methods."""
    folder = tmp_path_factory.mktemp("logs")
    trials = Trials.read([Log(path) for path in write_logs(folder, 40)])
    return {entry.name: entry.draw() for entry in gallery(trials)}


PICTURES = ["radar", "pareto", "methods", "stages", "progress", "speedups", "ranks-unet-brain_tumor"]


def test_the_gallery_is_complete(pictures: dict[str, Figure]) -> None:
    models = ("alexnet-imagenette", "resnet18-cifar10", "unet-brain_tumor", "vgg16-cifar10")
    each = {f"{kind}-{model}" for kind in ("ranks", "spectra", "times") for model in models}
    assert set(pictures) == {*PICTURES, *each}


@pytest.mark.parametrize(
    "name", [*PICTURES, "spectra-resnet18-cifar10", "ranks-resnet18-cifar10", "times-vgg16-cifar10"]
)
def test_no_two_texts_overlap_at_4_models_and_4_methods(name: str, pictures: dict[str, Figure]) -> None:
    figure = pictures[name]
    figure.draw_without_rendering()
    undrawn = {
        id(tick.label1)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_visible() and text.get_text().strip() and id(text) not in undrawn
    ]
    assert len(boxes) > 10
    overlapping = [
        (one, other)
        for place, (one, box) in enumerate(boxes)
        for other, second in boxes[:place]
        if box.shrunk(0.9, 0.9).overlaps(second.shrunk(0.9, 0.9))
    ]
    assert overlapping == []
    assert_inside_the_page(figure)


def test_a_gallery_without_an_accepted_trial_has_what_can_be_drawn() -> None:
    failed = [make_record(trial=n, status="failed", metrics={}, latency=None, params=0) for n in range(3)]
    assert [entry.name for entry in gallery(Trials.of(failed))] == ["radar", "pareto"]
    names = [make_record(model=name) for name in ("a/b", "a b", "網絡")]
    slugs = [entry.name for entry in gallery(Trials.of(names)) if entry.name.startswith("ranks")]
    assert slugs == ["ranks-a-b-cifar10", "ranks-a-b-cifar10-2", "ranks-網絡-cifar10"]


def test_every_picture_has_a_place_in_the_report(pictures: dict[str, Figure]) -> None:
    placed = {kind for *_, kinds in SECTIONS for kind in kinds}
    assert {name.split("-")[0] for name in pictures} == placed


def test_shapes_that_no_search_wrote_are_left_out() -> None:
    plan = {"a": {"method": "svd", "ranks": 16}, "b": {"method": "svd", "ranks": ["x"]}}
    details = {"spectra": {"a": [1.0, 0.5], "b": [1.0]}, "layer_times": [1, 2]}
    drawn = {entry.name: entry.draw() for entry in gallery(Trials.of([foreign_record(plan=plan, details=details)]))}
    assert "spectra-resnet18-cifar10" in drawn
    assert "times-resnet18-cifar10" not in drawn


def test_many_models_share_pages() -> None:
    trials = Trials.of([make_record(model=f"m{n}") for n in range(8)])
    assert {"methods-1", "methods-2"} <= {entry.name for entry in gallery(trials)}


DRAWN = ["radar", "radar of one", "radar of runs", "pareto", "spectra", "sensitivities", "heatmap", "curves"]
DRAWN += ["methods", "stages", "progress", "speedups", "speedups of one", "speedups of three", "ranks"]


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_smaller_than_seven_points_or_outside_the_page(name: str, tmp_path: Path) -> None:
    layers = [f"layer{n}.0.downsample.0" for n in range(20)]
    many = [make_record(model=f"a_long_model_name_{n}") for n in range(6)]
    dense = [make_baseline(metrics={"validation": {"accuracy": value}}) for value in (0.95, 0.94)]
    timings = [{"speedup": 2.0, "runtime": name} for name in ("eager", "compiled", "ONNX Runtime")]
    runs = [make_record(run=f"resnet18-cifar10-seed{n}", baseline=base, latency=None) for n, base in enumerate(dense)]
    figure = {
        "radar": lambda: figures.radar(many),
        "radar of one": lambda: figures.radar([make_record(model="cnn")]),
        "radar of runs": lambda: figures.radar(runs),
        "pareto": lambda: figures.pareto(many),
        "methods": lambda: figures.methods(many),
        "stages": lambda: figures.stages(many[:1]),
        "progress": lambda: figures.progress(many[:1]),
        "speedups": lambda: figures.speedups(many),
        "speedups of one": lambda: figures.speedups(many[:1]),
        "speedups of three": lambda: figures.speedups([make_record(details={"latencies": timings})]),
        "ranks": lambda: figures.rank_heatmap(many[:1], "net"),
        "spectra": lambda: figures.spectra({layer: [2.0, 1.0] for layer in layers}, {layers[0]: 1}),
        "sensitivities": lambda: figures.sensitivities(dict.fromkeys(layers, 0.5), dict.fromkeys(layers, 10)),
        "heatmap": lambda: figures.policy_heatmap({la: [0.5, 0.5] for la in layers}, ["10%", "dense"], "Policy"),
        "curves": lambda: figures.training_curves([{"loss": 1.0, "accuracy": 0.5}] * 3),
    }[name]()
    figures.save_figure(figure, tmp_path / name)
    drawn = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text().strip()]
    assert drawn
    assert min(float(text.get_fontsize()) for text in drawn) >= 7
    assert_inside_the_page(figure)

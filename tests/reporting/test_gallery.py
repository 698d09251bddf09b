from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from common.reporting import figures
from common.reporting.figures.gallery import gallery
from common.reporting.frame import Trials
from common.reporting.html.report import SECTIONS
from common.reporting.runs import Log
from tests.make_logs import write_logs
from tests.records import foreign_record, make_baseline, make_record
from tests.reporting.drawn import assert_inside_the_page


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    """Every picture of 4 models x 4 methods."""
    folder = tmp_path_factory.mktemp("logs")
    trials = Trials.read([Log(path) for path in write_logs(folder, 40)])
    return {entry.name: entry.draw() for entry in gallery(trials)}


PICTURES = ["radar", "pareto", "methods", "stages", "progress", "speedups", "ranks-unet-brain_tumor"]


def test_the_gallery_is_complete(pictures: dict[str, Figure]) -> None:
    models = ("alexnet-imagenette", "resnet18-cifar10", "unet-brain_tumor", "vgg16-cifar10")
    each = {f"{kind}-{model}" for kind in ("ranks", "spectra", "times", "where") for model in models}
    assert set(pictures) == {*PICTURES, *each}


@pytest.mark.parametrize(
    "name",
    [*PICTURES, "spectra-resnet18-cifar10", "ranks-resnet18-cifar10", "times-vgg16-cifar10", "where-vgg16-cifar10"],
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


def test_a_gallery_without_an_accepted_trial_holds_the_other_pictures() -> None:
    failed = [make_record(trial=n, status="failed", metrics={}, latency=None, params=0) for n in range(3)]
    assert [entry.name for entry in gallery(Trials.of(failed))] == ["radar", "pareto"]
    names = [make_record(model=name) for name in ("a/b", "a b", "網絡")]
    slugs = [entry.name for entry in gallery(Trials.of(names)) if entry.name.startswith("ranks")]
    assert slugs == ["ranks-a-b-cifar10", "ranks-a-b-cifar10-2", "ranks-網絡-cifar10"]


def test_every_picture_has_a_place_in_the_report(pictures: dict[str, Figure]) -> None:
    placed = {kind for *_, kinds in SECTIONS for kind in kinds}
    assert {name.split("-")[0] for name in pictures} == placed


def test_pictures_of_malformed_details_are_left_out() -> None:
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

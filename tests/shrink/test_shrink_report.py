"""``python -m common.shrink`` and its report; ``tests/scripts/test_wheel.py`` runs it as a stranger would."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from common.compression import load_compressed
from common.data import DATASETS, DataBundle, load_data
from common.planning import Budget, plan_of
from common.reporting import figures
from common.shrink import ShrinkSteps, Shrunk, finetuning, loading, shrink
from common.shrink import __main__ as command
from common.shrink.deployment import DIVERGENCE, DeployedFile, files_table
from common.shrink.loading import Examples
from common.shrink.report import Report
from common.training import TrainingSettings, train
from tests.networks import same_weights, tiny_cnn, tiny_digits

CHEAP = ShrinkSteps(measure=False, improve=0, refit=False, recalibrate=False)


@pytest.fixture(scope="module")
def found() -> Shrunk:
    return shrink(tiny_cnn(), [torch.randn(32, 3, 8, 8)], Budget(params=0.5), steps=CHEAP)


def table(column: str, **changes: Any) -> pd.DataFrame:
    row = {"Network": "small", "Precision": "int8", column: 0.75, "Size (MB)": 1.5, "Latency (ms)": 2.0}
    rows = [{**row, "Network": "dense", "Speedup": 1.0, "Note": ""}, {**row, "Speedup": None, "Note": ""} | changes]
    return pd.DataFrame(rows)


def test_accuracy_is_shown_with_its_interval_and_failures_with_their_reason(found: Shrunk) -> None:
    data = tiny_digits()
    files = table("accuracy", Note="no <file>")
    report = Report("net on digits", "python -m common.shrink --x", found, files, Examples([], data))
    text = report.text()
    assert re.search(r"dense, int8 +75\.00% \(65\.\d+% to 82\.\d+%\) +1\.500 +2\.000 +1\.00x", text)
    assert re.search(r"small, int8 .* 2\.000 +-$", text, re.MULTILINE)
    assert f"on the {data.test_images()} images of the test split, with its 95% interval" in text
    assert "small, int8: no <file>." in text
    assert str(found.plan) in text
    page = report.html()
    assert "no &lt;file&gt;." in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 1
    assert "python -m common.shrink --x" in page


def test_without_targets_the_divergence_is_shown(found: Shrunk) -> None:
    report = Report("net", "", found, table(DIVERGENCE), Examples([torch.zeros(2, 3, 8, 8)]))
    assert re.search(r"dense, int8 +0\.75 +1\.5", report.text())
    assert "no targets" in report.text()
    assert "nearer to the dense ones" in report.html()


def test_files_without_targets_are_judged_by_their_divergence(
    found: Shrunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(network: object, path: Path, *_: object, **__: object) -> Path:
        path.write_bytes(b"file")
        return path

    monkeypatch.setattr("common.shrink.deployment.export_onnx", write)
    monkeypatch.setattr("common.shrink.deployment.OnnxNetwork", lambda path: found.model)
    timed = SimpleNamespace(median_s=0.002, speedup=1.0, note="")
    monkeypatch.setattr("common.shrink.deployment.measure_files", lambda files, *_, **__: [timed for _ in files])
    files = [DeployedFile("dense", tiny_cnn(), "float32", tmp_path / "dense.onnx")]
    row = files_table(files, Examples([torch.randn(16, 3, 8, 8)])).iloc[0]
    assert row[DIVERGENCE] == pytest.approx(row["Of PyTorch's"])  # the dense network is 0 away from itself
    assert row[DIVERGENCE] > 0


def test_bars_show_what_was_measured() -> None:
    figure = figures.bars({"Size": {"a": 1.0, "b": 2.0}, "Time": {"b": float("nan")}, "None": {}})
    figure.draw_without_rendering()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Size", "Time"]
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["1", "2"]
    assert [text.get_text().strip() for text in figure.axes[1].texts] == ["not measured"] * 2


SMALL = ("--dataset", "digits", "--image-size", "8", "--limit", "64", "--images", "64", "--rounds", "3")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((*SMALL, "--network", "resnet20"), "a Budget needs params or macs or latency"),
        ((*SMALL, "--network", "resnet20", "--params", "2"), r"Budget(params=2.0): it must be in (0, 1]"),
        ((*SMALL, "--network", "resnet20", "--params", "0.5"), "its weights would be random"),
        ((*SMALL, "--network", "resnet20", "--params", "0.5", "--method", "htdd"), "did you mean 'htd'?"),
        ((*SMALL, "--params", "0.5"), "give a network, or weights that name one"),
        ((*SMALL, "--params", "0.5", "--finetune-epochs", "-1"), "--learning-rate: epochs=-1.0: "),
        ((*SMALL, "--params", "0.5", "--finetune-epochs", "1", "--learning-rate", "0"), "learning_rate=0.0: "),
        (
            (*SMALL, "--network", "nosuch", "--params", "0.5", "--rounds", "2"),
            "rounds=2: it must be a whole number of at least 3",
        ),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_written(
    arguments: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.*"))


def test_the_command_fine_tunes_both_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "load_network", lambda *_, **__: tiny_cnn(width=24))
    monkeypatch.setattr(command, "shrink", lambda *given, **_: shrink(*given, steps=CHEAP))
    monkeypatch.setattr(finetuning, "evaluate", lambda *_: {"accuracy": 0.5})  # none is worse
    arguments = [*SMALL, "--network", "my_module:build", "--params", "0.5", "--finetune-epochs", "2"]
    assert command.main([*arguments, "--rounds", "3", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for row in ("dense, float32", "dense-tuned, float32", "small, int8", "small-tuned, float32", "small-tuned, int8"):
        assert f"\n{row} " in shown
    assert "dense, int8" not in shown
    dense = tiny_cnn(width=24)
    small, tuned = (load_compressed(tmp_path / f"{name}.safetensors", dense) for name in ("small", "small-tuned"))
    assert not same_weights(small, tuned)
    assert plan_of(small) == plan_of(tuned)
    assert not (tmp_path / "dense.safetensors").exists()


def test_the_small_network_outlives_a_training_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "load_network", lambda *_, **__: tiny_cnn(width=24))
    monkeypatch.setattr(command, "shrink", lambda *given, **_: shrink(*given, steps=CHEAP))
    arguments = [*SMALL, "--network", "my_module:build", "--params", "0.5", "--finetune-epochs", "2"]
    assert command.main([*arguments, "--learning-rate", "1e30", "--out", str(tmp_path)]) == command.INCOMPLETE
    shown = capsys.readouterr().out
    for title in ("dense-tuned", "small-tuned"):
        assert f"{title} is left out, fine-tuning failed: FloatingPointError: the loss is " in shown
    assert "\nsmall, int8 " in shown
    assert plan_of(load_compressed(tmp_path / "small.safetensors", tiny_cnn(width=24)))


def test_interrupted_fine_tuning_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, small, settings = tiny_cnn(width=8), tiny_cnn(width=8, seed=1), TrainingSettings(epochs=2.0, amp="off")
    wanted, _ = finetuning.finetuned(dense, small, tiny_digits(), settings)
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "evaluate", lambda *_: pytest.fail("killed after the first training"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            finetuning.finetuned(dense, small, tiny_digits(), settings, checkpoints=tmp_path)
    assert [file.name.partition("-tuned-")[0] for file in tmp_path.iterdir()] == ["dense"]
    epochs: list[str] = []

    def counted(*arguments: Any, description: str, **options: Any) -> list[dict[str, float]]:
        return train(*arguments, description=description, on_epoch=lambda _: epochs.append(description), **options)

    monkeypatch.setattr(finetuning, "train", counted)
    found, history = finetuning.finetuned(dense, small, tiny_digits(), settings, checkpoints=tmp_path)
    assert epochs == ["small-tuned", "small-tuned"]
    assert len(history) == 2
    assert found.keys() == wanted.keys()
    assert all(same_weights(found[title], wanted[title]) for title in found)
    other, _ = finetuning.finetuned(tiny_cnn(width=6, seed=3), small, tiny_digits(), settings, checkpoints=tmp_path)
    assert len(epochs) == 6  # another network takes nothing from these files
    assert not any(same_weights(other[title], found[title]) for title in other.keys() & found.keys())
    finetuning.remove_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dataset", "varied"), [("cifar10", True), ("digits", False)])
def test_fine_tuning_varies_the_images_as_the_data_set_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dataset: str, varied: bool
) -> None:
    loaded: list[bool | None] = []

    def load(name: str, *_: Any, augment: bool | None = None, **__: Any) -> DataBundle:
        loaded.append(DATASETS[name].augment if augment is None else augment)
        return load_data("digits", None, 8, limit=64, augment=loaded[-1])

    def learn(_: object, __: object, data: DataBundle, *___: Any, **____: Any) -> None:
        raise ValueError(f"it learns with augment={data.source['augment']}")

    monkeypatch.setattr(command, "load_data", load)
    monkeypatch.setattr(loading, "load_data", load)
    monkeypatch.setattr(command, "load_network", lambda *_, **__: tiny_cnn(width=24))
    monkeypatch.setattr(command, "shrink", lambda *given, **_: shrink(*given, steps=CHEAP))
    monkeypatch.setattr(command, "finetuned", learn)
    arguments = ["--dataset", dataset, "--network", "resnet20", "--params", "0.5", "--finetune-epochs", "1"]
    assert command.main([*arguments, "--out", str(tmp_path)]) == 2
    assert f"it learns with augment={varied}" in capsys.readouterr().err
    assert loaded == [False, varied]


def test_fine_tuning_needs_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "load_examples", lambda *_, **__: Examples([torch.randn(4, 3, 8, 8)]))
    arguments = [*SMALL, "--network", "resnet20", "--params", "0.5", "--finetune-epochs", "1"]
    assert command.main([*arguments, "--out", str(tmp_path)]) == 2
    assert "finetune_epochs needs targets, and the data has none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_network_that_cannot_be_exported_is_saved_all_the_same(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> Path:
        raise kind("ONNX knows no such operation")

    monkeypatch.setattr("common.shrink.deployment.export_onnx", refuse)
    monkeypatch.setattr(command, "load_network", lambda *_, **__: tiny_cnn(width=24))
    monkeypatch.setattr(command, "shrink", lambda *given, **_: shrink(*given, steps=CHEAP))
    arguments = [*SMALL, "--network", "my_module:build", "--params", "0.5", "--out", str(tmp_path)]
    assert command.main(arguments) == command.INCOMPLETE
    shown = capsys.readouterr().out
    assert shown.startswith("my_module:build on digits: params 0.5, by mixed\nThe small network keeps ")
    assert "small, int8: ONNX knows no such operation." in shown
    assert {path.name for path in tmp_path.iterdir()} == {
        "small.safetensors",
        *(f"report.{e}" for e in ("txt", "html", "png")),
    }
    assert load_compressed(tmp_path / "small.safetensors", tiny_cnn(width=24)) is not None
    assert (tmp_path / "report.txt").read_text() in shown

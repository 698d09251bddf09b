from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from common.compression import save_compressed
from common.data.normalization import IMAGENET, remember_normalization
from common.models import build_model
from common.network.provenance import get_provenance
from common.notebook.colab import RunKeeper
from common.notebook.config import ClassifierConfig, CompareConfig
from common.notebook.evidence import compare_networks
from common.notebook.steps import decompose, dense_network, load_data_of, search
from common.planning.decompositions import Decompositions
from tests.networks import same_weights
from tests.records import make_record


def config(model: str | None) -> ClassifierConfig:
    return ClassifierConfig(limit=16, batch_size=8, dense_epochs=1.0, dense_learning_rate=0.001, model=model)


@pytest.mark.parametrize(("asked", "built"), [(None, "resnet18"), ("resnet18", "resnet18"), ("resnet34", "resnet34")])
def test_the_resnet18_notebook_also_builds_resnet34(asked: str | None, built: str) -> None:
    data = load_data_of(config(asked))
    model, history = dense_network(config(asked), "resnet18", data)
    provenance = get_provenance(model)
    assert provenance is not None
    assert (provenance.builder, len(history)) == (built, 1)


def test_another_model_is_refused() -> None:
    data = load_data_of(config(None))
    with pytest.raises(ValueError, match=r"model='vgg16' is unknown.*allowed: resnet18, resnet34"):
        dense_network(config("vgg16"), "resnet18", data)
    with pytest.raises(ValueError, match=r"model='resnet34' is unknown.*allowed: alexnet"):
        dense_network(config("resnet34"), "alexnet", data)


def test_weights_may_be_used_without_training(tmp_path: Path) -> None:
    dense = build_model("resnet18", 10)
    saved = str(save_compressed(dense, tmp_path / "dense.safetensors"))
    given = dataclasses.replace(config(None), dense_epochs=0.0, weights=saved)
    model, history = dense_network(given, "resnet18", load_data_of(given))
    assert history == []
    assert same_weights(model, dense)


def test_an_untrained_network_is_refused() -> None:
    untrained = dataclasses.replace(config(None), dense_epochs=0.0)
    with pytest.raises(
        ValueError, match=r"^dense_epochs=0\.0 leaves the network untrained, and its weights, or those"
    ):
        dense_network(untrained, "resnet18", load_data_of(untrained))


def test_weights_of_another_scale_are_refused(tmp_path: Path) -> None:
    dense = build_model("resnet18", 10)
    remember_normalization(dense, IMAGENET)
    saved = str(save_compressed(dense, tmp_path / "dense.safetensors"))
    given = dataclasses.replace(config(None), weights=saved)
    with pytest.raises(ValueError, match=r"^the network was trained on pixels normalised by \{'mean': \[0\.485, "):
        dense_network(given, "resnet18", load_data_of(given))
    with pytest.raises(ValueError, match=r"^models: .*dense\.safetensors: the network was trained on pixels"):
        compare_networks([saved], load_data_of(given))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 32}, "image_size=32: alexnet needs at least 63 pixels"),
        ({"image_size": 64, "distill_features": "features.0,featurs.3"}, "distill_features='featurs.3' is unknown"),
        ({"image_size": 64, "svd_ranks": "16,5000"}, r"^svd_ranks='16,5000': ranks=5000 for .* number in 1\.\.4096"),
        ({"image_size": 64, "compare_at": 1e-5}, "^compare_at=1e-05: svd keeps at least 0.0008, at rank 1"),
        ({"image_size": 64, "budget_macs": 1e-4}, "^budget_macs=0.0001: htd keeps at least 0.00"),
        ({"image_size": 64, "method": "mixed", "budget_macs": 1e-4}, "^budget_macs=0.0001: mixed keeps at least 0.00"),
    ],
)
def test_unsuitable_settings_are_refused_before_training(changes: Any, sentence: str) -> None:
    wrong = dataclasses.replace(config(None), **changes)
    with pytest.raises(ValueError, match=sentence):
        dense_network(wrong, "alexnet", load_data_of(wrong))


def test_the_best_method_for_each_layer_may_be_searched_under_a_budget(tmp_path: Path) -> None:
    mixed = dataclasses.replace(config(None), method="mixed", budget_params=0.3, dense_epochs=0.0)
    dense = build_model("resnet18", 10)
    given = dataclasses.replace(mixed, weights=str(save_compressed(dense, tmp_path / "dense.safetensors")))
    model, _ = dense_network(given, "resnet18", load_data_of(given))
    assert same_weights(model, dense)
    assert given.search_settings().method == "mixed"


@pytest.mark.filterwarnings("ignore:too few calibration patches")  # of 16 images
def test_a_run_continues_with_its_dense_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dataclasses.replace(config(None), logs=str(tmp_path), run="mine", trials=1, finetune_top=0, keep=0.01)
    data = load_data_of(mine)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("common.training.loop.evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            dense_network(mine, "resnet18", data)
    model, history = dense_network(mine, "resnet18", data)
    assert len(history) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine-dense.checkpoint", "mine-dense.safetensors"]
    with monkeypatch.context() as patch:  # stopped before the first line of the log, yet nothing is trained again
        patch.setattr("common.training.loop._Run.train_epoch", stop)
        again, known = dense_network(mine, "resnet18", data)
    assert known == history
    assert same_weights(again, model)
    with monkeypatch.context() as patch:
        patch.setattr("common.search.session.RunningSearch._measure_given", stop)
        search(mine, model, data, [], decompose(mine, model, data))
    again, history = dense_network(mine, "resnet18", data)
    assert history == []
    assert same_weights(again, model)
    assert search(mine, again, data, [], decompose(mine, again, data)).remaining == 0
    assert not (tmp_path / "mine-dense.checkpoint").exists()


@pytest.mark.parametrize("name", ["refit", "finetune_dense"])
def test_steps_after_the_search_can_be_left_out(name: str) -> None:
    without: dict[str, Any] = {name: False}
    assert getattr(config(None).search_settings(), name)
    assert not getattr(dataclasses.replace(config(None), **without).search_settings(), name)


def test_settings_of_the_distillation_reach_the_training() -> None:
    asked = dataclasses.replace(config(None), distillation=0.25, distill_features="layer1, layer4")
    settings = asked.search_settings().finetune
    assert (settings.distillation, settings.features) == (0.25, ("layer1", "layer4"))


def test_networks_that_started_from_imagenet_are_compared_on_its_scale() -> None:
    one, other = (load_data_of(CompareConfig(limit=16, batch_size=8, pretrained=p)) for p in (False, True))
    assert other.normalization == IMAGENET != one.normalization


def test_on_colab_a_training_is_copied_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = tmp_path / "drive"
    monkeypatch.setattr(RunKeeper.__init__, "__defaults__", (drive,))
    mine = dataclasses.replace(config(None), logs=str(tmp_path / "logs"), run="mine", dense_epochs=2.0)
    kept: list[str] = []

    def stop(*_: Any, **__: Any) -> None:
        kept.extend(sorted(path.name for path in drive.iterdir()))

    with monkeypatch.context() as patch:
        patch.setattr("common.notebook.steps.save_compressed", stop)
        dense_network(mine, "resnet18", load_data_of(mine))
    assert kept == ["mine-dense.checkpoint"]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_refitted_networks_leave_drive_when_the_search_is_done(
    finished: bool, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay if the Drive did not take the log that says so."""
    logs, drive = tmp_path / "logs", tmp_path / "drive"
    monkeypatch.setattr(RunKeeper.__init__, "__defaults__", (drive,))
    mine = dataclasses.replace(config(None), logs=str(logs), run="mine")
    for folder in (logs, drive):
        folder.mkdir(exist_ok=True)
        for name in ("mine.log", "mine-trial0.safetensors", "mine-trial0-refitted.safetensors"):
            (folder / name).write_text("")
    if full:
        (logs / "mine.log").write_text("the end")
        monkeypatch.setattr("common.notebook.steps.RunKeeper.keep", lambda *_, **__: None)
    result = SimpleNamespace(finished=finished, records=[make_record(run="mine", trial=0)], log=logs / "mine.log")
    monkeypatch.setattr("common.notebook.steps.search_ranks", lambda *_, **__: result)
    network = nn.Flatten()
    assert search(mine, network, load_data_of(mine), [], Decompositions(network)).log == result.log
    for folder in (logs, drive):
        assert (folder / "mine-trial0.safetensors").exists()
        assert (folder / "mine-trial0-refitted.safetensors").exists() is not (finished and not full)

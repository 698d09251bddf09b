"""A user's architecture, in one file outside ``common``: it is built, trained, compressed, saved and named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from common.calibration import calibrate
from common.compression import compress, load_compressed, save_compressed
from common.data.tasks import TASKS
from common.models import MODELS, Architecture, build_model, check_image_size, relatives
from common.network.provenance import get_provenance
from common.notebook.config import ClassifierConfig
from common.notebook.evidence import compare_networks
from common.notebook.steps import dense_network
from common.planning import Budget, plan_ranks
from common.search import SearchSettings, search_ranks
from common.training import TrainingSettings, evaluate, train
from tests.networks import tiny_digits


def build_lenet(num_classes: int, channels: int) -> nn.Module:
    if channels < 2:
        raise ValueError(f"channels={channels}: it must be at least 2")
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * channels, num_classes),
    )


LENET = Architecture("lenet", "a small LeNet", build_lenet, arguments={"channels": 8}, min_size=4)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """What ``MODELS.add(LENET)`` does, for these tests alone."""
    with MODELS.including(LENET):
        yield


def test_it_is_built_with_its_own_arguments() -> None:
    provenance = get_provenance(build_model("lenet", 10))
    assert provenance is not None
    assert (provenance.builder, provenance.arguments) == ("lenet", {"num_classes": 10, "channels": 8})
    assert LENET.task in TASKS
    assert relatives("lenet") == ("lenet",)
    with pytest.raises(ValueError, match="channels=1: it must be at least 2"):
        build_model("lenet", 10, channels=1)
    with pytest.raises(ValueError, match="width=8: lenet takes no such argument; allowed: num_classes, channels"):
        build_model("lenet", 10, width=8)
    with pytest.raises(ValueError, match="image_size=3: lenet needs at least 4 pixels"):
        check_image_size("lenet", 3)


def test_it_is_trained_compressed_and_built_again_from_a_file(tmp_path: Path) -> None:
    data, model = tiny_digits(), build_model("lenet", 10, channels=16)
    train(model, data, TrainingSettings(epochs=1.0, amp="off"))
    moments = calibrate(model, data.calibration)
    plan = plan_ranks(model, data.example(), "htd", Budget(params=0.6), moments=moments)
    small = compress(model, plan, moments=moments)
    saved = save_compressed(small, tmp_path / "small.safetensors")
    assert evaluate(load_compressed(saved), data.test) == evaluate(small.eval(), data.test)
    table = compare_networks([save_compressed(model, tmp_path / "dense.safetensors"), saved], data)
    assert list(table["Model"]) == ["lenet", "lenet"]


def test_it_is_searched_and_logged(tmp_path: Path) -> None:
    settings = SearchSettings(method="svd", trials=2, finetune_top=0)
    model = build_model("lenet", 10)
    result = search_ranks(model, tiny_digits(), settings, logs=tmp_path, run="own", on_trial=lambda _: None)
    assert {record.model for record in result.records} == {"lenet"}


def test_a_notebook_can_be_about_it(tmp_path: Path) -> None:
    config = ClassifierConfig(
        image_size=8, batch_size=32, dense_epochs=0.5, svd_ranks="2", arsvd_taus="", logs=str(tmp_path)
    )
    model, history = dense_network(config, "lenet", tiny_digits())
    assert (len(history), sum(1 for _ in model.parameters())) == (1, 6)


def test_it_is_named_where_a_model_is_unknown() -> None:
    with pytest.raises(ValueError, match=r"model='lenett' is unknown \(did you mean 'lenet'\?\); allowed: .*lenet$"):
        build_model("lenett", 10)

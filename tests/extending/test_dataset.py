"""A user's data set, in one file outside ``common``: it is loaded, used in training and searches, and named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.calibration import calibrate
from common.compression import compress, load_compressed, save_compressed
from common.data import DATASETS, DataBundle, DataSet, Normalization, ReadSettings, Splits, SplitSizes, load_data
from common.notebook.config import ClassifierConfig, SegmentationConfig
from common.notebook.steps import load_data_of
from common.planning import Budget, plan_ranks
from common.search import SearchSettings, search_ranks
from common.training import TrainingSettings, evaluate, train
from tests.networks import tiny_cnn


def read(settings: ReadSettings) -> Splits:
    """Make grey images whose brightness is given by their class."""
    from common.data import tensor_splits

    generator = torch.Generator().manual_seed(settings.split_seed)
    labels = torch.arange(400) % 10
    noise = torch.randint(0, 20, (400, 8, 8), generator=generator)
    images = (labels.view(-1, 1, 1) * 20 + noise).to(torch.uint8)
    tensors = (images[:300], labels[:300], images[300:], labels[300:])
    return tensor_splits("shades", tensors, tuple(map(str, range(10))), SplitSizes(60, 40), settings)


SHADES = DataSet("shades", "grey images of ten shades, 8 x 8", read, Normalization((0.4,), (0.25,)), image_size=8)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """What ``DATASETS.add(SHADES)`` does, for these tests alone."""
    with DATASETS.including(SHADES):
        yield


def shades(**changes: int) -> DataBundle:
    return load_data("shades", **{"batch_size": 20, **changes})  # type: ignore[arg-type]


def test_it_is_loaded_and_can_be_loaded_again_elsewhere() -> None:
    data = shades()
    sizes = [len(getattr(data, split).dataset) for split in ("train", "calibration", "validation", "test")]
    assert sizes == [200, 40, 60, 100]
    assert (data.name, data.task, data.metric, data.image_size) == ("shades", "classification", "accuracy", 8)
    again = load_data(**dict(data.source))
    assert torch.equal(next(iter(again.test))[0], next(iter(data.test))[0])
    assert not torch.equal(next(iter(shades(split_seed=1).test))[0], next(iter(data.test))[0])


def test_a_network_is_trained_on_it_compressed_and_saved(tmp_path: Path) -> None:
    data, model = shades(), tiny_cnn()
    train(model, data, TrainingSettings(epochs=4.0, amp="off"))
    accuracy = evaluate(model, data.test)["accuracy"]
    assert accuracy > 0.5
    moments = calibrate(model, data.calibration)
    plan = plan_ranks(model, data.example(), "svd", Budget(params=0.7), moments=moments)
    small = compress(model, plan, moments=moments)
    save_compressed(small, tmp_path / "small.safetensors")
    loaded = load_compressed(tmp_path / "small.safetensors", model)
    assert evaluate(loaded, data.test) == evaluate(small, data.test)


def test_it_is_searched_on_and_logged(tmp_path: Path) -> None:
    settings = SearchSettings(method="svd", trials=2, finetune_top=0)
    result = search_ranks(tiny_cnn(), shades(), settings, logs=tmp_path, run="own", on_trial=lambda _: None)
    assert {record.dataset for record in result.records} == {"shades"}


def test_notebooks_take_it_where_its_task_fits(tmp_path: Path) -> None:
    config = ClassifierConfig(dataset="shades", image_size=8, batch_size=20, logs=str(tmp_path))
    assert load_data_of(config).name == "shades"
    with pytest.raises(ValueError, match=r"dataset='shades' is unknown; allowed: coco, phantoms$"):
        SegmentationConfig.from_notebook({"dataset": "shades", "logs": str(tmp_path)})


def test_it_is_named_where_a_data_set_is_unknown() -> None:
    with pytest.raises(
        ValueError, match=r"dataset='shade' is unknown \(did you mean 'shades'\?\); allowed: .*shades$"
    ):
        load_data("shade")

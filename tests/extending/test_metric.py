"""A user's metric, in one file outside ``common``: it decides in training and searches, and is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import analyze_results
from common.compression import compress, load_compressed, save_compressed
from common.data import METRICS, DataBundle, Metric, load_data
from common.planning import Budget, plan_ranks
from common.search import SearchSettings, search_ranks
from common.training import TrainingSettings, evaluate, train
from tests.networks import bright_images, tiny_cnn


def in_top_three(logits: Tensor, targets: Tensor) -> Tensor:
    """For each image whether its class is among the three greatest logits, ``(N,)``."""
    return (logits.topk(3, dim=1).indices == targets[:, None]).any(1)


TOP3 = Metric("top3", "classification", in_top_three, lambda rows: float(rows.double().mean()))
ERROR = Metric("error", "classification", in_top_three, lambda rows: 1 - float(rows.double().mean()), False)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """What ``METRICS.add(TOP3)`` and ``METRICS.add(ERROR)`` do, for these tests alone."""
    with METRICS.including(TOP3), METRICS.including(ERROR):
        yield


def digits() -> DataBundle:
    return load_data("digits", image_size=8, batch_size=32, limit=96, metric="top3")


def test_it_is_measured_beside_the_others() -> None:
    model, data = tiny_cnn(), digits()
    found = evaluate(model, data.validation)
    logits = torch.cat([model(inputs) for inputs, _ in data.validation])
    targets = torch.cat([targets for _, targets in data.validation])
    expected = (logits.argsort(1, descending=True)[:, :3] == targets[:, None]).any(1).double().mean()
    assert found["top3"] == pytest.approx(float(expected))
    assert found.keys() == {"accuracy", "top3", "error", "loss"}
    assert found["accuracy"] <= found["top3"] == 1 - found["error"]


def test_it_decides_which_epoch_is_the_best() -> None:
    model, data = tiny_cnn(), digits()
    history = train(model, data, TrainingSettings(epochs=3.0, amp="off", recalibrate=False))
    assert evaluate(model, data.validation)["top3"] == max(entry["top3"] for entry in history)


def test_it_decides_in_a_search_its_log_and_its_report(tmp_path: Path) -> None:
    settings = SearchSettings(method="svd", trials=3, finetune_top=1)
    result = search_ranks(tiny_cnn(), digits(), settings, logs=tmp_path, run="own", on_trial=lambda _: None)
    assert {record.metric for record in result.records} == {"top3"}
    assert all("top3" in record.metrics["recalibrated"] for record in result.records if record.status == "ok")
    assert analyze_results.main([str(tmp_path / "own.log"), "--out", str(tmp_path / "results")]) == 0
    assert "top3" in (tmp_path / "results" / "report.html").read_text()


def test_a_compressed_network_is_judged_by_it(tmp_path: Path) -> None:
    model, data = tiny_cnn(), digits()
    small = compress(model, plan_ranks(model, data.example(), "svd", Budget(params=0.7)))
    loaded = load_compressed(save_compressed(small, tmp_path / "small.safetensors"), model)
    assert evaluate(loaded, data.test)["top3"] == evaluate(small, data.test)["top3"]


def test_it_is_named_where_a_metric_is_unknown_or_does_not_fit() -> None:
    batches = torch.utils.data.DataLoader(bright_images(40), batch_size=20)
    assert DataBundle.from_loaders(batches, batches, batches, metric="top3").metric == "top3"
    with pytest.raises(
        ValueError, match=r"metric='top' is unknown \(did you mean 'top3'\?\); allowed: accuracy, .*top3"
    ):
        DataBundle.from_loaders(batches, batches, batches, metric="top")
    for other in ("dice", "error"):  # of another task; less of it is better
        with pytest.raises(ValueError, match=rf"metric='{other}' is unknown; allowed: accuracy, top3$"):
            DataBundle.from_loaders(batches, batches, batches, metric=other)

"""Searches on the user's own data loaders."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from common.data import DataBundle
from common.search import SearchSettings, search_ranks
from common.training import TrainingSettings
from common.trials import TrialRecord, read_log
from tests.networks import Returning, bright_images, tiny_cnn

SETTINGS = SearchSettings(
    method="svd",
    trials=2,
    finetune_top=1,
    finetune=TrainingSettings(epochs=1.0, learning_rate=0.02, amp="off"),
    sensitivity_images=8,
)


def images(count: int = 48) -> TensorDataset:
    return bright_images(count)


class Stream(IterableDataset[tuple[Tensor, ...]]):
    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return zip(*images().tensors, strict=True)


class Killed(Exception):
    pass


def shuffled() -> DataBundle:
    return DataBundle.from_loaders(*(DataLoader(images(), batch_size=16, shuffle=True) for _ in range(4)))


def without_times(records: list[TrialRecord]) -> list[tuple[Any, ...]]:
    """The parts of the records that do not depend on the clock. Which trials are tested depends on their speedups."""
    return [(record.trial, record.plan, record.metrics["recalibrated"], record.status) for record in records]


def test_a_stopped_search_on_shuffled_loaders_continues_to_the_same_result(tmp_path: Path) -> None:
    whole = search_ranks(tiny_cnn(), shuffled(), SETTINGS, logs=tmp_path, run="whole", on_trial=lambda _: None)

    def kill(record: TrialRecord) -> None:
        if record.trial == 1:
            raise Killed

    with pytest.raises(Killed):
        search_ranks(tiny_cnn(), shuffled(), SETTINGS, logs=tmp_path, run="own", on_trial=kill)
    torch.rand(7)
    found = search_ranks(tiny_cnn(), shuffled(), SETTINGS, logs=tmp_path, run="own", on_trial=lambda _: None)
    assert found.finished
    assert without_times(found.records) == without_times(whole.records)
    assert any("test" in record.metrics for record in found.records)
    assert {record.dataset for record in found.records} == {"custom"}


def test_a_search_on_loaders_without_a_length(tmp_path: Path) -> None:
    loader = DataLoader(Stream(), batch_size=16)
    data = DataBundle.from_loaders(loader, loader)
    result = search_ranks(tiny_cnn(), data, SETTINGS, logs=tmp_path, run="own", on_trial=lambda _: None)
    records, skipped = read_log(result.log)
    assert not skipped
    assert [record.status for record in records] == ["ok", "ok"]
    assert result.finished


@pytest.mark.parametrize("mode", ["always", "in training"])
def test_a_network_that_returns_no_tensor_is_refused_before_anything_is_written(tmp_path: Path, mode: str) -> None:
    model = Returning(lambda x, training: OrderedDict(out=x, features=x[:, :5]) if mode == "always" or training else x)
    with pytest.raises(
        ValueError, match=r"must return one tensor, but it returns an OrderedDict \(keys out, features\)"
    ):
        search_ranks(model, shuffled(), SETTINGS, logs=tmp_path / "logs", run="own")
    assert not list((tmp_path / "logs").iterdir())


def test_a_network_of_fewer_classes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = tiny_cnn()
    model.head = nn.Linear(32, 5)
    with pytest.raises(ValueError, match="outputs for 5 classes and the data 'custom' has 10"):
        search_ranks(model, shuffled(), SETTINGS, logs=tmp_path / "logs", run="own")
    assert not list((tmp_path / "logs").iterdir())


@pytest.mark.parametrize("shape", [(3, 32), (2, 8, 8, 8)])
def test_signals_and_volumes_are_searched_too(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind = {2: nn.Conv1d, 4: nn.Conv3d}[len(shape)]
    network = nn.Sequential(
        kind(shape[0], 8, 3, padding=1), nn.ReLU(), kind(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    ).eval()
    x = torch.randn(48, *shape)
    network(x[:1])
    targets = (x.flatten(1).mean(1) > 0).long()
    data = DataBundle.from_loaders(*(DataLoader(TensorDataset(x, targets), batch_size=16) for _ in range(3)))
    found = search_ranks(network, data, SETTINGS, logs=tmp_path, run="own", on_trial=lambda _: None)
    assert found.finished
    assert all(record.status == "ok" for record in found.records)

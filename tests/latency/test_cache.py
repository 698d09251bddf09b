from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.compression import compress
from common.latency import RUNTIMES, breakdown, layer_times, measured_latencies, operation_runtimes
from common.latency import cache as latency_cache
from common.latency.cache import current_conditions, read_table, table_path
from common.latency.network import network_fingerprint
from common.latency.operations import Operation
from common.latency.pieces import needed_operations
from common.latency.timing import time_operations, without_drift
from common.network.shapes import trace_layers
from common.planning import Budget, Fixed, plan_ranks
from tests.latency.reasons import with_reasons
from tests.networks import tiny_cnn

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class FakeTimer:
    """Stands in for the clock: one microsecond for each channel, and a given time for the whole network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, whole: float = 1.0) -> None:
        self.timed: list[Operation] = []
        self.small = 0
        self.slower = 1.0
        self.baseline_median_s, self.median_s, self.note = 2 * whole, whole, ""
        monkeypatch.setattr(latency_cache, "time_operations", self.time)
        monkeypatch.setattr(breakdown, "time_operations", self.time)
        monkeypatch.setattr(breakdown, "measure_latency", self.whole)
        monkeypatch.setattr(latency_cache, "measure_latencies", self.wholes)

    def whole(self, *_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(**vars(self))

    def wholes(self, models: Sequence[nn.Module], *_: Any, **__: Any) -> list[SimpleNamespace]:
        self.small = len(models)
        return [self.whole() for _ in models]

    def time(self, operations: Sequence[Operation], *_: Any) -> dict[Operation, float]:
        self.timed += operations
        return {operation: self.slower * 1e-6 * sum(operation.channels) for operation in operations}


def test_what_was_measured_comes_back_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = FakeTimer(monkeypatch)
    model = tiny_cnn()
    first = measured_latencies(model, X, "onnxruntime", "svd", folder=tmp_path).table
    assert set(timer.timed) == set(needed_operations(trace_layers(model, X).values(), ("svd",)))
    timer.timed.clear()
    again = measured_latencies(model, X, "onnxruntime", "svd", folder=tmp_path).table
    assert not timer.timed
    assert again.to_json() == first.to_json()
    few = timer.small
    assert few >= 3  # all layers small, and the halves
    more = measured_latencies(model, X, "onnxruntime", "tucker2", folder=tmp_path).table
    assert timer.timed
    assert timer.small > few  # by both methods
    assert set(more.seconds) > set(first.seconds)
    assert set(more.seconds) - set(first.seconds) <= set(timer.timed) <= set(more.seconds)
    timer.timed.clear()
    refreshed = measured_latencies(model, X, "onnxruntime", "svd", folder=tmp_path, refresh=True).table
    assert set(timer.timed) >= set(first.seconds)
    assert refreshed.to_json() == more.to_json()  # what others need stays


@pytest.mark.parametrize("slower", [0.5, 1.0, 3.0])
def test_entries_of_a_slower_day_are_rescaled_to_the_existing_ones(
    slower: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = FakeTimer(monkeypatch)
    first = measured_latencies(tiny_cnn(), X, "eager", "svd", folder=tmp_path).table.seconds
    timer.slower = slower
    more = measured_latencies(tiny_cnn(), X, "eager", "tucker2", folder=tmp_path).table.seconds
    assert more.keys() > first.keys()
    assert {operation: more[operation] for operation in first} == first  # not what it took on that day
    assert more == pytest.approx({operation: 1e-6 * sum(operation.channels) for operation in more})


def test_networks_fitted_to_former_times_are_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTimer(monkeypatch)
    measured_latencies(tiny_cnn(), X, "eager", "svd", folder=tmp_path)
    two = measured_latencies(tiny_cnn(width=64), X, "eager", "svd", folder=tmp_path).table
    assert len(two.networks) == 2
    one = measured_latencies(tiny_cnn(), X, "eager", "svd", folder=tmp_path, refresh=True).table
    assert set(one.networks) < set(two.networks)
    assert set(one.seconds) == set(two.seconds)
    assert measured_latencies(tiny_cnn(width=64), X, "eager", "svd", folder=tmp_path).table.networks == two.networks


def test_a_table_of_another_machine_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = FakeTimer(monkeypatch)
    model = tiny_cnn()
    here = current_conditions("eager", 2)
    measured_latencies(model, X, "eager", "svd", folder=tmp_path)
    for change in (
        {"processor": "another"},
        {"threads": 99},
        {"version": "0"},
        {"batch": 7},
        {"runtime": "onnxruntime"},
    ):
        there = replace(here, **change)
        assert table_path(there, tmp_path) != table_path(here, tmp_path)
        assert not read_table(table_path(there, tmp_path), there).seconds
    file = table_path(here, tmp_path)
    values = json.loads(file.read_text())
    values["conditions"]["processor"] = "another"
    file.write_text(json.dumps(values))  # a file that was copied over
    timer.timed.clear()
    with pytest.warns(UserWarning, match="was measured under .*another.*; its times are measured again"):
        measured_latencies(model, X, "eager", "svd", folder=tmp_path)
    assert timer.timed


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 0}',
        '{"format": 2, "seconds": [], "networks": {"of before": [1.0, -1e-9]}}',
        '{"format": 4, "seconds": [[1]], "networks": {}}',
    ],
)
def test_a_broken_file_is_measured_again_with_a_warning(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = FakeTimer(monkeypatch)
    file = table_path(current_conditions("eager", 2), tmp_path)
    file.write_text(content)
    with pytest.warns(UserWarning, match="cannot be read .* measured again"):
        table = measured_latencies(tiny_cnn(), X, "eager", "svd", folder=tmp_path).table
    assert len(timer.timed) == len(table.seconds) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measured_latencies(tiny_cnn(), X, "eager", "svd", folder=tmp_path).table.seconds == table.seconds


def test_the_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = current_conditions("eager", 1)
    monkeypatch.delenv("LOW_RANK_CNN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert table_path(conditions).parent == tmp_path / "cache" / "low-rank-cnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert table_path(conditions).parent == Path.home() / ".cache" / "low-rank-cnn"
    monkeypatch.setenv("LOW_RANK_CNN_CACHE", str(tmp_path / "mine"))
    assert table_path(conditions).parent == tmp_path / "mine"


def test_a_budget_of_latency_keeps_to_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOW_RANK_CNN_CACHE", str(tmp_path))
    timer = FakeTimer(monkeypatch, whole=2e-3)
    model = tiny_cnn(width=64)
    measured = measured_latencies(model, X, "eager", "svd")
    plan = plan_ranks(model, X, "svd", Budget(latency=1.0, runtime="eager"), latencies=measured)
    assert timer.timed
    assert plan.settings["dense_s"] == timer.baseline_median_s
    assert plan.settings["predicted_s"] <= timer.baseline_median_s
    assert plan.settings["runtime"] == "eager"
    again = measured_latencies(model, X, "eager", "svd")  # from the disk
    assert again.network_seconds(plan.layers) == pytest.approx(plan.settings["predicted_s"])
    assert list(tmp_path.glob("latency-eager-*.json"))


def test_times_that_vary_raise_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = FakeTimer(monkeypatch)
    timer.note = "the ratios vary"
    with pytest.warns(UserWarning, match="other work disturbs the latency table: the ratios vary"):
        measured_latencies(tiny_cnn(), X, "eager", "svd", folder=tmp_path)


def test_ranks_that_were_never_timed_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOW_RANK_CNN_CACHE", str(tmp_path))
    FakeTimer(monkeypatch)
    model = tiny_cnn(width=64)
    measured = measured_latencies(model, X, "eager", "svd")
    with pytest.raises(ValueError, match="round_to=11: a budget of latency takes only timed ranks"):
        plan_ranks(model, X, "svd", Budget(latency=0.9, runtime="eager", round_to=11), latencies=measured)


def test_where_a_runtime_merges_factors_they_are_timed_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = FakeTimer(monkeypatch, whole=1.0)
    model = tiny_cnn()
    plan = plan_ranks(model, X, "tucker2", Fixed({"conv": (16, 5)}, only_if_smaller=False))
    times = layer_times(compress(model, plan), X, "onnxruntime", plan)
    assert list(times) == ["stem.0", "conv", "shortcut", "head", "rest"]
    assert times["conv"] == pytest.approx(1e-6 * (16 + 5 + 5 + 32))  # the first factor saves nothing
    assert all(operation.channels != (16, 16) for operation in timer.timed)


def test_the_layers_and_the_rest_make_up_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTimer(monkeypatch, whole=1.0)
    model = tiny_cnn()
    times = layer_times(model, X, "eager")
    assert list(times) == ["stem.0", "conv", "shortcut", "head", "rest"]
    assert times["conv"] == pytest.approx(48e-6)
    assert sum(times.values()) == pytest.approx(1.0)


def test_the_factors_of_a_layer_count_as_that_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTimer(monkeypatch, whole=1.0)
    model = tiny_cnn()
    plan = plan_ranks(model, X, "tucker2", Fixed({"conv": (4, 5)}, only_if_smaller=False))
    times = layer_times(compress(model, plan), X, "eager", plan)
    assert list(times) == ["stem.0", "conv", "shortcut", "head", "rest"]
    assert times["conv"] == pytest.approx(1e-6 * (16 + 4 + 4 + 5 + 5 + 32))


@pytest.mark.parametrize("runtime", with_reasons(operation_runtimes()))
def test_every_kind_of_operation_can_be_timed(runtime: str) -> None:
    operations = [
        Operation((3, 16), (3, 3), (9, 9), (5, 5)),
        Operation((16, 8), (3, 1), (9, 9), (9, 9)),
        Operation((16, 24), (1, 3), (9, 9), (9, 5), groups=2),
        Operation((16, 8), (2, 2), (4, 4), (8, 8), transposed=True),
        Operation((16, 8), (3, 3), (4, 4), (8, 8), transposed=True),
        Operation((4, 4), (2, 2), (8, 8), (11, 11), transposed=True),  # with a dilation of 3
        Operation((16, 10), (1, 1), (1, 1), (1, 1), linear=True),
        Operation((16, 10), (1, 1), (7, 1), (7, 1), linear=True),
    ]
    found = time_operations([*operations, operations[0]], runtime, batch=2, runs=3)
    assert list(found) == operations
    assert all(0 < seconds < 1 for seconds in found.values())


def timed_on_a_drifting_machine(
    operations: int, part: int, drift: float, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logarithms of the true seconds, the seconds of four rounds, and the number of each one's part."""
    rng = np.random.default_rng(0)
    logs = rng.normal(-8, 1, operations)
    first = np.arange(4)[:, None] * operations  # parts of different rounds have different numbers
    parts = (first + np.array([rng.permutation(operations) for _ in range(4)]) // part).astype(np.int64)
    speeds = rng.normal(0, drift, parts.max() + 1)
    return logs, np.exp(logs + speeds[parts] + rng.normal(0, noise, parts.shape)), parts


def spread(seconds: np.ndarray, logs: np.ndarray) -> float:
    """Deviation of times from the true ones, but for one factor on all of them."""
    return float(np.std(np.log(seconds) - logs))


@pytest.mark.parametrize(("operations", "part"), [(60, 6), (300, 20), (1000, 60)])
def test_a_machine_that_changes_its_speed_leaves_the_times_alone(operations: int, part: int) -> None:
    logs, seconds, parts = timed_on_a_drifting_machine(operations, part, drift=0.15, noise=0.0)
    assert spread(without_drift(seconds, parts), logs) < 1e-3 < 0.05 < spread(np.median(seconds, axis=0), logs)


@pytest.mark.parametrize("drift", [0.0, 0.15, 0.5])
def test_taking_out_the_drift_hardly_adds_noise(drift: float) -> None:
    logs, still, _ = timed_on_a_drifting_machine(300, 20, 0.0, noise=0.07)
    logs, seconds, parts = timed_on_a_drifting_machine(300, 20, drift, noise=0.07)
    seconds[2, 7] *= 50  # an interruption
    assert spread(without_drift(seconds, parts), logs) < 1.2 * spread(np.median(still, axis=0), logs)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_operations_always_timed_together_get_the_median_of_their_rounds(order: tuple[int, ...]) -> None:
    seconds = np.array([[1.0, 4.0], [1.0, 4.0], [1.0, 4.0], [10.0, 40.0]])[list(order)]
    assert without_drift(seconds, np.array([[0, 0], [1, 1], [2, 2], [3, 3]])) == pytest.approx([1.0, 4.0])


@pytest.mark.parametrize("runtime", operation_runtimes())
@pytest.mark.parametrize("cost", [0.0, 1e-3])
def test_the_moment_of_timing_does_not_change_an_operations_time(
    runtime: str, cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = [Operation((8, width), (1, 1), (4, 4), (4, 4)) for width in range(1, 61)]
    timed: list[tuple[Operation, ...]] = []

    def seconds(_: object, part: Sequence[Operation], *__: Any) -> np.ndarray:
        timed.append(tuple(part))
        widths = np.array([operation.channels[1] for operation in part])
        slower = 1 + len(timed) % 5 / 10
        return np.tile(slower * (1e-3 * widths + (cost if runtime == "onnxruntime" else 0.0)), (2, 1))

    monkeypatch.setattr("common.latency.timing.PART_BYTES", 6 * 1024)
    clock = type(RUNTIMES[runtime])
    monkeypatch.setattr(clock, "operation_seconds", seconds)
    slow_cost = 1.2 * cost  # the profile's, at the middle speed of the machine
    if runtime == "onnxruntime":
        monkeypatch.setattr(clock, "clock_cost", lambda _: slow_cost)
    found = time_operations(operations, runtime)
    assert list(found) == operations
    assert len(set(timed)) == len(timed) >= 4 * 5  # parts of other operations in every round
    assert sum(map(len, timed)) == 4 * len(operations)
    expected = [1.2e-3 * operation.channels[1] for operation in operations]
    assert list(found.values()) == pytest.approx(expected, rel=0.02)


class Repeated(torch.nn.Module):
    """One layer called many times; the module's text does not show how often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.conv, self.times = torch.nn.Conv2d(3, 3, 3, padding=1), times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = self.conv(x)
        return x


def test_the_same_modules_called_more_often_are_another_network() -> None:
    one, many, same = (network_fingerprint(Repeated(times), X) for times in (1, 50, 50))
    assert one != many == same


def test_bad_arguments_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"model is of torch\.float64: latency tables are measured in torch\.float32"):
        measured_latencies(tiny_cnn().double(), X.double(), "eager")
    with pytest.raises(ValueError, match="runtime='compile' is unknown; allowed: eager, channels_last, onnx"):
        time_operations([], "compile")
    with pytest.raises(ValueError, match="method='fastest' is unknown; allowed: svd"):
        measured_latencies(tiny_cnn(), X, "eager", "fastest")
    (folder := tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^folder='.*file' must be a folder, but there is a file of that name"):
        measured_latencies(tiny_cnn(), X, "eager", folder=folder)
    with monkeypatch.context() as patch:
        patch.setenv("LOW_RANK_CNN_CACHE", str(folder))
        with pytest.raises(ValueError, match=r"^LOW_RANK_CNN_CACHE='.*file' must be a folder"):
            measured_latencies(tiny_cnn(), X, "eager")
    with pytest.raises(ValueError, match="x is on meta"):
        layer_times(tiny_cnn(), X.to("meta"), "eager")
    with pytest.raises(ValueError, match="runtime='compile' is unknown"):
        layer_times(tiny_cnn(), X, "compile")
    with pytest.raises(ValueError, match="device='meta': latency tables"):
        measured_latencies(tiny_cnn(), X.to("meta"), "eager")


def test_a_single_image_is_a_batch_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTimer(monkeypatch)
    model = tiny_cnn()
    found = measured_latencies(model, X[0], "eager", "svd", folder=tmp_path)
    assert found.table.conditions.batch == 1
    assert found.fingerprint == measured_latencies(model, X[:1], "eager", "svd", folder=tmp_path).fingerprint
    assert layer_times(model, X[0], "eager") == layer_times(model, X[:1], "eager")

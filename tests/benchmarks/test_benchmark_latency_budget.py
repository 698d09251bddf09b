from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import latency_budget
from benchmarks.latency_budget import HEADS, Setting, measure, with_decaying_spectra
from common.compression import compress
from common.data import load_data
from common.latency import Latency, LatencyTable
from common.latency.cache import current_conditions
from common.latency.network import NetworkLatencies, network_fingerprint
from common.latency.pieces import needed_operations
from common.latency.table import WholeNetwork
from common.models import build_model
from common.network.shapes import trace_layers
from common.planning import Budget
from common.planning.decompositions import Decompositions
from common.training import evaluate

SECONDS, WHOLE = 1e-6, 5e-3
"""Of a channel of an operation, and of the dense network."""


@pytest.fixture(scope="module")
def setting() -> Setting:
    """A setting with an invented table of operations."""
    torch.manual_seed(0)
    model = with_decaying_spectra(build_model("resnet20", 10)).eval()
    x = torch.randn(1, 3, 16, 16)
    operations = needed_operations(trace_layers(model, x).values(), ("spatial_svd",))
    table = LatencyTable(current_conditions("eager", 1), {op: SECONDS * sum(op.channels) for op in operations})
    table.networks[network_fingerprint(model, x)] = WholeNetwork(WHOLE)
    return Setting("resnet20", model, x, Decompositions(model), NetworkLatencies.of(table, model, x), 4)


def test_every_row_is_there(setting: Setting) -> None:
    rows = [dict(zip(HEADS, row, strict=True)) for row in measure(setting, [0.5], ["spatial_svd"], 3, 0.001)]
    by_macs, by_latency = rows
    assert by_macs["budget"] == "macs=0.5"
    assert by_macs["MACs ratio"] >= 2
    assert by_latency["divergence"] <= by_macs["divergence"]
    assert by_latency["gain"] == pytest.approx(by_macs["ms"] / by_latency["ms"])
    for row in rows:
        assert row["accuracy"] is None  # there is no data
        assert row["error"] == pytest.approx(row["predicted"] / row["ms"] - 1)


def test_a_machine_that_has_become_slower_is_told_from_a_wrong_prediction(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything now takes twice as long as in the table."""

    def layers_seconds(network: nn.Module) -> float:
        shapes = trace_layers(network, setting.x)
        seconds = {op: SECONDS * sum(op.channels) for op in needed_operations(shapes.values(), ())}
        return LatencyTable(setting.latencies.table.conditions, seconds).layers_seconds(shapes)

    rest = WHOLE - layers_seconds(setting.model)
    assert rest > 0

    def slower(networks: Sequence[nn.Module], *_: Any, **__: Any) -> list[Latency]:
        times = [2 * (rest + layers_seconds(network)) for network in networks]
        return [Latency(time, 0, 2 * WHOLE / time, 2 * WHOLE, "eager", 1, 1, "contiguous") for time in times]

    monkeypatch.setattr(latency_budget, "measure_latencies", slower)
    for values in measure(setting, [0.5, 0.25], ["spatial_svd"], 3, 0.001):
        row = dict(zip(HEADS, values, strict=True))
        assert row["error"] == pytest.approx(-0.5, abs=0.02)
        assert row["in turn"] == pytest.approx(0, abs=0.1)  # operations are believed in, see TRUST


def test_measured_divergence_and_accuracy_of_a_network_with_data(setting: Setting) -> None:
    data = load_data("digits", image_size=16, limit=64)
    doubled = {name: [(0.5, 1.0), (1.0, 2.0)] for name in trace_layers(setting.model, setting.x)}
    measured = dataclasses.replace(setting, divergences=doubled, data=data)
    plan = measured.plan("spatial_svd", Budget(macs=0.5))
    assert measured.divergence(plan) == pytest.approx(2 * setting.divergence(plan), rel=1e-6)
    network = compress(setting.model, plan, decompositions=setting.kept)
    accuracy = measured.accuracy(network)
    assert accuracy == pytest.approx(100 * evaluate(network, data.test)["accuracy"])

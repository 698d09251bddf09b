from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.latency_budget import HEADS, Setting, measure, with_decaying_spectra
from common.compression import compress
from common.data import load_data
from common.latency_cache import current_conditions, network_fingerprint
from common.metrics import evaluate
from common.models import build_model
from common.planning import Budget
from common.planning.latency_table import LatencyTable, WholeNetwork, needed_operations
from common.planning.layers import Decompositions, trace_layers


@pytest.fixture(scope="module")
def setting() -> Setting:
    """With a table that was never measured: a millionth of a second for each channel."""
    torch.manual_seed(0)
    model = with_decaying_spectra(build_model("resnet20", 10)).eval()
    x = torch.randn(1, 3, 16, 16)
    operations = needed_operations(trace_layers(model, x).values(), ("spatial_svd",))
    table = LatencyTable(current_conditions("eager", 1), {op: 1e-6 * sum(op.channels) for op in operations})
    table.networks[network_fingerprint(model, x)] = WholeNetwork(5e-3)
    return Setting("resnet20", model, x, Decompositions(model), table, 4)


def test_every_row_is_there(setting: Setting) -> None:
    rows = [dict(zip(HEADS, row, strict=True)) for row in measure(setting, [0.5], ["spatial_svd"], 3, 0.001)]
    by_macs, by_latency = rows
    assert by_macs["budget"] == "macs=0.5"
    assert by_macs["MACs ratio"] >= 2
    assert by_latency["harm"] <= by_macs["harm"]
    assert by_latency["gain"] == pytest.approx(by_macs["ms"] / by_latency["ms"])
    for row in rows:
        assert row["accuracy"] is None  # there is no data
        assert row["error"] == pytest.approx(row["predicted"] / row["ms"] - 1)
        if row["speedup"] is not None:
            assert row["of share"] == pytest.approx(row["predicted"] / 5 * row["speedup"] - 1)


def test_measured_harm_and_accuracy_of_a_network_with_data(setting: Setting) -> None:
    data = load_data("digits", image_size=16, limit=64)
    doubled = {name: [(0.5, 1.0), (1.0, 2.0)] for name in trace_layers(setting.model, setting.x)}
    measured = dataclasses.replace(setting, harms=doubled, data=data)
    plan = measured.plan("spatial_svd", Budget(macs=0.5))
    assert measured.harm(plan) == pytest.approx(2 * setting.harm(plan), rel=1e-6)
    network = compress(setting.model, plan, decompositions=setting.kept)
    accuracy = measured.accuracy(network)
    assert accuracy == pytest.approx(100 * evaluate(network, data.test)["accuracy"])

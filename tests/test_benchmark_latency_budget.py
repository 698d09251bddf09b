from __future__ import annotations

import pytest
import torch

from benchmarks.latency_budget import HEADS, Setting, measure, with_decaying_spectra
from common.latency_cache import current_conditions, network_fingerprint
from common.models import build_model
from common.planning.latency_table import LatencyTable, needed_operations
from common.planning.layers import Decompositions, trace_layers


def test_every_row_is_there() -> None:
    """With a table that was never measured: a millionth of a second for each channel."""
    torch.manual_seed(0)
    model = with_decaying_spectra(build_model("resnet20", 10)).eval()
    x = torch.randn(1, 3, 16, 16)
    operations = needed_operations(trace_layers(model, x).values(), ("spatial_svd",))
    table = LatencyTable(current_conditions("eager", 1), {op: 1e-6 * sum(op.channels) for op in operations})
    table.networks[network_fingerprint(model, x)] = 5e-3
    setting = Setting("resnet20", model, x, Decompositions(model), table, 4)
    rows = [dict(zip(HEADS, row, strict=True)) for row in measure(setting, [0.5], ["spatial_svd"], 3, 0.001)]
    by_macs, by_latency = rows
    assert by_macs["budget"] == "macs=0.5"
    assert by_macs["MACs ratio"] >= 2
    assert by_latency["harm"] <= by_macs["harm"]
    assert by_latency["gain"] == pytest.approx(by_macs["ms"] / by_latency["ms"])
    for row in rows:
        assert row["error"] == pytest.approx(row["predicted"] / row["ms"] - 1)

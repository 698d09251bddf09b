from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

import pytest
import tensorly
import tltorch
import torch

from benchmarks.latency import HEADS, TINY, compressed, in_turn, measure
from common.network import profile
from common.planning import Budget, RankPlan, plan_ranks


@pytest.fixture(autouse=True)
def _torch_tensors() -> None:
    tensorly.set_backend("pytorch")


def options_of(**settings: Any) -> Namespace:
    common = {"methods": ["tucker2"], "batches": [2], "round_to": 1, "latency": None, "rounds": 3, "round_s": 0.001}
    return Namespace(**common | settings)


def test_every_row_is_there() -> None:
    options = options_of(runtimes=["eager", "channels_last", "onnxruntime"])
    rows = [dict(zip(HEADS, row, strict=True)) for row in measure("unet", TINY["unet"], options)]
    ways = ["dense", "tucker2", "tltorch tucker", "TensorLy tucker"]
    runtimes = ["PyTorch eager", "PyTorch channels_last", "ONNX Runtime", "better of PyTorch"]
    assert [(row["runtime"], row["by"]) for row in rows] == [(runtime, way) for runtime in runtimes for way in ways]
    found = {(row["runtime"], row["by"]): row for row in rows}
    assert found["PyTorch eager", "dense"]["MACs ratio"] == 1
    for way in ways[1:]:
        assert found["PyTorch eager", way]["MACs ratio"] >= 2  # the budget keeps a half
        assert found["PyTorch eager", way]["params"] < 1
    for row in rows:
        assert row["ms"] > 0
        if row["speedup"] is not None:
            assert row["share"] == pytest.approx(row["speedup"] / row["MACs ratio"])


def test_a_share_of_the_time_limits_the_plans_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Budget] = []

    def plan(
        model: torch.nn.Module, x: torch.Tensor, method: str, budget: Budget, latencies: object, **named: Any
    ) -> RankPlan:
        asked.append(budget)
        assert latencies == "measured"
        return plan_ranks(model, x, method, replace(budget, latency=None), **named)

    monkeypatch.setattr("benchmarks.latency.plan_ranks", plan)
    monkeypatch.setattr("benchmarks.latency.measured_latencies", lambda *_: "measured")
    measure("unet", TINY["unet"], options_of(methods=["svd"], runtimes=["channels_last", "eager"], latency=0.9))
    assert asked == [Budget(macs=0.5, latency=0.9, runtime="channels_last")]


@pytest.mark.parametrize("name", TINY)
def test_the_peers_have_the_ranks_of_tucker2(name: str) -> None:
    """TensorLy's three convolutions cost what ours cost; TensorLy-Torch has its kernel factors besides."""
    case = TINY[name]
    dense, x = case.make().eval(), torch.randn(1, *case.shape)
    networks = compressed(case.budget, dense, x, ["tucker2"], round_to=1)
    ours, sequence, factorized = (networks[what] for what in ("tucker2", "TensorLy tucker", "tltorch tucker"))
    assert (profile(sequence, x).macs, profile(sequence, x).params) == (profile(ours, x).macs, profile(ours, x).params)
    convolutions = [m for m in factorized.modules() if isinstance(m, tltorch.FactorizedConv)]
    kernels = sum(sum(rank**2 for rank in m.weight.rank[2:]) for m in convolutions)
    assert convolutions
    assert {convolution.implementation for convolution in convolutions} == {"factorized"}
    assert factorized(x).isfinite().all()
    assert profile(factorized, x).params == profile(ours, x).params + kernels


def test_all_runtimes_take_turns() -> None:
    options = options_of(methods=["svd"], runtimes=["eager", "channels_last"], passes=1)
    rows = in_turn("resnet20", TINY["resnet20"], options)
    runtimes = ["PyTorch eager", "PyTorch eager", "PyTorch channels_last", "PyTorch channels_last"]
    assert [row[2:4] for row in rows] == [list(pair) for pair in zip(runtimes, ["dense", "svd"] * 2, strict=True)]
    assert rows[0][5:] == [1.0, "1.00-1.00"]
    assert all(row[4] > 0 and row[5] > 0 for row in rows)

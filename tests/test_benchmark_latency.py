from __future__ import annotations

from argparse import Namespace

import pytest
import tensorly

from benchmarks.latency import HEADS, TINY, measure


@pytest.fixture(autouse=True)
def _torch_tensors() -> None:
    tensorly.set_backend("pytorch")


@pytest.mark.parametrize("name", TINY)
def test_every_row_is_there(name: str) -> None:
    options = Namespace(
        methods=["tucker2", "svd"], runtimes=["eager", "channels_last", "onnxruntime"], batches=[2], round_to=1
    )
    options.rounds, options.round_s = 3, 0.001
    rows = [dict(zip(HEADS, row, strict=True)) for row in measure(name, TINY[name], options)]
    ways = ["dense", "tucker2", "tltorch tucker", "TensorLy tucker", "svd"]
    runtimes = ["PyTorch eager", "PyTorch channels_last", "ONNX Runtime", "better of PyTorch"]
    assert [(row["runtime"], row["by"]) for row in rows] == [(runtime, way) for runtime in runtimes for way in ways]
    found = {(row["runtime"], row["by"]): row for row in rows}
    assert found["PyTorch eager", "dense"]["MACs ratio"] == 1
    for way in ("tucker2", "svd"):
        assert found["PyTorch eager", way]["MACs ratio"] >= 2  # the budget keeps a half
        assert found["PyTorch eager", way]["params"] < 1
    ours, theirs = found["PyTorch eager", "tucker2"], found["PyTorch eager", "TensorLy tucker"]
    assert (theirs["MACs ratio"], theirs["params"]) == (ours["MACs ratio"], ours["params"])
    for row in rows:
        assert row["ms"] > 0
        assert row["speedup"] or row["note"]
        if row["speedup"]:
            assert row["share"] == pytest.approx(row["speedup"] / row["MACs ratio"])

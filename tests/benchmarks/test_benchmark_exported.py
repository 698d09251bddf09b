from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import exported_accuracy
from common.compression import compress, save_compressed
from common.data import load_data
from common.models import build_model
from common.planning import Fixed, plan_ranks
from common.training import evaluate


def test_both_figures_are_those_of_the_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    data = load_data("digits", limit=48)
    dense = build_model("resnet20", data.num_classes)
    small = compress(dense, plan_ranks(dense, data.example(), "htd", Fixed(0.5)))
    file = save_compressed(small, tmp_path / "small.safetensors")
    options = ["--limit", "48", "--precisions", "float32", "int8", "--rounds", "3"]
    exported_accuracy.main([str(file), "--dataset", "digits", *options])
    lines = capsys.readouterr().out.splitlines()[4:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[:2] for row in rows] == [["small", "float32"], ["small", "int8"]]
    in_torch = 100 * evaluate(small, data.test)["accuracy"]
    for _, precision, in_onnx, difference, _, milliseconds, _, interval, _ in rows:
        reached, apart = float(in_onnx.rstrip("%")), float(difference.rstrip("%"))
        assert reached - apart == pytest.approx(in_torch, abs=2e-3)
        assert abs(apart) <= 100 / 48 + 1e-3 or precision == "int8"  # one image may lie on the border
        assert float(milliseconds) > 0
        low, high = map(float, interval.split(" to "))
        assert low - 0.01 <= apart <= high + 0.01
    sizes = [float(row[4]) for row in rows]
    assert sizes[1] < 0.5 * sizes[0]

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
    files = [
        str(save_compressed(model, tmp_path / f"{name}.safetensors"))
        for name, model in (("dense", dense), ("small", small))
    ]
    exported_accuracy.main([*files, "--dataset", "digits", "--limit", "48"])
    lines = capsys.readouterr().out.splitlines()[4:]
    for line, model in zip(lines, (dense, small), strict=True):
        _, network, in_torch, in_onnx, difference, _, _ = (cell.strip() for cell in line.split("|"))
        assert network in ("dense.safetensors", "small.safetensors")
        assert float(in_torch) == pytest.approx(100 * evaluate(model, data.test)["accuracy"], abs=1e-3)
        assert float(difference) == pytest.approx(float(in_onnx) - float(in_torch), abs=2e-3)
        assert abs(float(difference)) <= 100 / 48 + 1e-3  # one image may lie on the border

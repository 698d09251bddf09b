from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import accuracy_before_finetuning
from common.compression import save_compressed
from common.models import build_model


def test_the_steps_of_a_unet_are_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = save_compressed(build_model("unet", 1, width=4), tmp_path / "dense.safetensors")
    arguments = ["--weights", str(weights), "--dataset", "phantoms", "--image-size", "16", "--batch-size", "16"]
    arguments += ["--limit", "64", "--kept", "0.5", "--criteria", "macs", "--methods", "svd"]
    arguments += ["--not-aligned", "--out", str(tmp_path)]
    accuracy_before_finetuning.main(arguments)
    rows = pd.read_csv(tmp_path / "accuracy_before_finetuning.csv")
    assert set(rows.step) == {"plain", "data-aware", "budget", "recalibrated", "shrunk", "not aligned"}
    assert (rows["MACs kept"] <= 0.5).all()
    assert rows.score.between(0, 100).all()
    shown = capsys.readouterr().out
    assert "Dice (%) at the share of macs kept" in shown
    accuracy_before_finetuning.main(arguments)
    again = capsys.readouterr()
    assert again.out == shown
    assert "measuring" not in again.err

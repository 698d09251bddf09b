"""Benchmarks of two checkouts, both of which are this one here."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import decomposition_time, layer_errors
from common.compression import save_compressed
from common.decomposition import DECOMPOSITIONS
from common.models import build_model


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the programs for the checkouts in this process, which has imported torch."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-W", "ignore", "-c"]
        monkeypatch.setattr(sys, "argv", ["-c", *command[5:]])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(command[4], {})
        return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", run)


def test_time_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    decomposition_time.main([".", ".", "--case", "squeezenet1_1", "svd"])
    _, _, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    cases = [["squeezenet1_1", "svd", calls, "."] for calls in ("separate", "shared") for _ in range(2)]
    assert [row[:4] for row in rows] == cases
    for number, row in enumerate(rows):
        plan, compress, peak, time, memory = map(float, row[4:])
        assert min(plan, compress) >= 0
        assert peak > 0.1
        assert time == memory == 1 or number % 2
        assert time > 0


def test_errors_of_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = save_compressed(build_model("unet", 1, width=4, depth=1), tmp_path / "dense.safetensors")
    settings = ["--image-size", "16", "--images", "32", "--shares", "0.5"]
    layer_errors.main([".", ".", "--weights", str(weights), "--dataset", "phantoms", *settings])
    heads, _, *rows = capsys.readouterr().out.splitlines()
    assert heads.split("  ")[0] == "method"
    assert {row.split()[0] for row in rows} == set(DECOMPOSITIONS)
    for row in rows:
        _, cases, mean, greatest, worse = row.split()
        assert int(cases) >= 4  # at least the 3x3 convolutions
        assert (float(mean), float(greatest), int(worse)) == (1, 1, 0)


def test_outputs_are_those_of_the_layer_though_the_next_one_works_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True)
    )
    monkeypatch.setattr("common.compression.load_compressed", lambda _: model)
    options = Namespace(weights=Path("any"), dataset="phantoms", data_root=None, image_size=16, images=32)
    vars(options).update(methods=["svd", "tucker2"], unannotated="keep", augment="off", shares=[0.5, 1.0])
    found = layer_errors.errors(Path(), options)
    assert set(found.layer.astype(str)) == {"0", "2"}
    assert (found[found.share == 1].error < 1e-6).all()
    assert found[found.share == 0.5].error.between(1e-6, 1).all()

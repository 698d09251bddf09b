"""Benchmarks that read CIFAR-10 as folders of images, on a few small ones."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from benchmarks import denoiser, precisions
from benchmarks.public_resnets import ResNet

COUNTS = {"train": 48, "test": 8}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with noise of 16x16 pixels, in ``train`` and ``test``, in folders of classes."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for part, count in COUNTS.items():
        for number in range(count):
            folder = root / part / ("cat" if number % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return root


def test_the_denoiser(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--width", "8", "--steps", "2", "--kept", "0.7", "0.5", "--methods", "svd", "--out", str(tmp_path)]
    denoiser.main(["--data-root", str(photos), *settings])
    first, heads, _, *rows, last = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"noisy ([\d.]+) dB, dense ([\d.]+) dB, 8 test images", first)
    assert found
    assert float(found[1]) == pytest.approx(-20 * math.log10(denoiser.SIGMA), abs=0.2)
    assert 10 < float(found[2]) < 30
    assert re.split(r"  +", heads) == ["method", "MACs kept", "weights", "with data", "shrink", "95%"]
    assert [row.split()[:2] for row in rows] == [["svd", "70%"], ["svd", "50%"]]
    assert all(math.isfinite(float(figure)) for row in rows for figure in row.split()[2:])
    assert last.startswith("Lost dB on test")
    assert (tmp_path / "denoiser.safetensors").exists()


def test_precisions(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "resnet.safetensors"
    safetensors.torch.save_file(ResNet(1).state_dict(), weights)
    settings = ["--method", "svd", "--precisions", "float32", "int8", "--rounds", "3"]
    precisions.main(["--weights", str(weights), "--data-root", str(photos), *settings])
    heads, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines_of_table(capsys))
    assert tuple(heads) == precisions.HEADS
    assert [row[:2] for row in rows] == [
        [network, precision] for network in ("dense", "50% of the parameters") for precision in ("float32", "int8")
    ]
    for _, precision, accuracy, difference, interval, _, milliseconds, speedup in rows:
        assert float(accuracy) % (100 / COUNTS["test"]) == pytest.approx(0)
        assert precision == "int8" or float(difference) == float(interval) == 0
        assert float(milliseconds) > 0
        assert speedup == "-" or float(speedup) > 0
    sizes = [float(row[5]) for row in rows]
    assert sizes[1] < sizes[0] / 2
    assert sizes[3] < sizes[2] < sizes[0]


def lines_of_table(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]

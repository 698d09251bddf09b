from __future__ import annotations

import math

import pytest

from tests.faults import denormals


def test_denormal_weights_are_counted_and_layers_timed(capsys: pytest.CaptureFixture[str]) -> None:
    denormals.main(["--epochs", "1"])
    _, counted, heads, *rows = capsys.readouterr().out.splitlines()
    assert counted == "denormal numbers after 1 epochs: 0 dense, 0 compressed"
    assert heads.split() == ["layer", "PyTorch", "ms", "denormal", "ONNX", "Runtime", "ms", "denormal"]
    assert [row.split()[0] for row in rows] == ["Conv2d", "Linear", "BatchNorm2d"]
    for row in rows:
        assert all(math.isfinite(float(figure)) and float(figure) > 0 for figure in row.split()[-4:])

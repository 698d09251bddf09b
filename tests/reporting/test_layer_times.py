from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.reporting.figures import layer_times, save_figure


def test_a_pair_of_bars_for_each_layer_and_the_rest(tmp_path: Path) -> None:
    before = {"conv": 0.004, "head": 0.001, "rest": 0.001}
    figure = layer_times(before, {"conv": 0.001, "head": 0.001, "rest": 0.001}, "ONNX Runtime")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([4, 1, 1, 1, 1, 1])  # type: ignore[attr-defined]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv", "head", "all else"]
    assert axes.get_title(loc="left") == "ONNX Runtime"
    files = save_figure(figure, tmp_path / "times")
    assert sorted(file.suffix for file in files) == [".pdf", ".png"]
    assert all(file.stat().st_size > 1000 for file in files)


def test_layers_missing_before_are_refused() -> None:
    assert not layer_times({}, {}).axes
    with pytest.raises(ValueError, match=r"after\['fc'\]: before has no such layer; allowed: conv"):
        layer_times({"conv": 0.1}, {"fc": 0.1})


def test_no_torch_is_needed() -> None:
    code = "import sys, common.reporting.figures.layer_times; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

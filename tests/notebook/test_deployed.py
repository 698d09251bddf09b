"""ONNX files in notebooks: what the log of a run keeps of them, and files beside saved networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from common.compression import save_compressed
from common.deploy.precision import precision_of
from common.models import build_model
from common.notebook import deployed
from common.notebook.evidence import compare_networks
from common.notebook.lessons import readable
from common.reporting.frame import Trials
from common.reporting.tables import all_tables
from common.shrink import deployment
from common.trials import TrialWriter, read_log
from tests.networks import tiny_digits
from tests.records import make_record

ONE, ZERO = np.float32(0.1), np.uint8(0)
"""Scale and zero point of a quantized input."""


def table_of(*titles: str) -> pd.DataFrame:
    """A table as `deployment_table` makes it; int8 of the first network is slower, and the last file is missing."""
    rows: list[dict[str, Any]] = [
        {
            "Network": title,
            "Precision": precision,
            "accuracy": 0.95 - 0.01 * place - 0.002 * (precision == "int8"),
            "Size (MB)": 4.0 / (1 + place) / (4 if precision == "int8" else 1),
            "Latency (ms)": 2.0,
            "Speedup": 1.0 + place,
            "Note": "slower than float32: why" if (place, precision) == (0, "int8") else "",
        }
        for place, title in enumerate(titles)
        for precision in ("float32", "int8")
    ]
    rows[-1] |= dict.fromkeys(("accuracy", "Size (MB)", "Latency (ms)", "Speedup")) | {"Note": "no file"}
    return pd.DataFrame(rows)


def test_the_log_keeps_the_files_and_the_report_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TrialWriter(tmp_path, "run") as writer:
        for number in range(3):
            made = make_record(run="run", trial=number, params=1_437_022 - number, macs=87_512_064 - number)
            writer.write(made.replace(environment={"instructions": "AVX-512, VNNI"}))
    monkeypatch.setattr(deployment, "deployment_table", lambda *_: table_of("dense", "trial 2"))
    given: dict[object, nn.Module] = {"dense": nn.Identity(), 2: nn.Identity()}
    table = deployed.deployment_table(given, tiny_digits(), tmp_path / "run")
    assert len(table) == 4
    records, skipped = read_log(tmp_path / "run.log")
    assert not skipped
    assert [len(record.details.files) for record in records] == [0, 0, 4]
    dense, slow, small, missing = records[2].details.files
    assert (dense.network, dense.precision, dense.size_bytes, dense.median_s) == ("dense", "float32", 4_000_000, 0.002)
    assert (small.network, small.test, small.speedup) == ("trial 2", 0.94, 2.0)
    assert (missing.size_bytes, missing.speedup, missing.note) == (None, None, "no file")
    (shown,) = (made for made in all_tables(Trials.of(records)) if made.name == "files")
    assert list(shown.text["File of"]) == ["dense", "dense", "trial 2", "trial 2"]
    assert list(shown.text["Of float32"]) == ["+0.00", "-0.20", "+0.00", "-"]
    assert list(shown.text["Size"]) == ["4.00 MB", "1.00 MB", "2.00 MB", "-"]
    assert set(shown.text["Instructions"]) == {"AVX-512, VNNI"}
    assert shown.notes[-2:] == ["run, dense, int8: slower than float32: why.", "run, trial 2, int8: no file."]
    assert slow.note in shown.notes[-2]


def test_without_a_log_or_files_nothing_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "deployment_table", lambda *_: table_of("dense"))
    deployed.deployment_table({"dense": nn.Identity()}, tiny_digits(), tmp_path / "run")
    assert not list(tmp_path.iterdir())
    assert "files" not in [table.name for table in all_tables(Trials.of([make_record()]))]


def write_linear(path: Path, features: int = 3 * 8 * 8, quantized: bool = False) -> Path:
    """An ONNX file of a linear classifier of ten classes; with ``quantized`` its input passes through int8."""
    weight = numpy_helper.from_array(np.zeros((features, 10), dtype=np.float32), "weight")
    scale, zero = (numpy_helper.from_array(np.array(value), name) for value, name in ((ONE, "scale"), (ZERO, "zero")))
    nodes = [helper.make_node("Flatten", ["input"], ["flat"])]
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["flat", "scale", "zero"], ["bytes"]))
        nodes.append(helper.make_node("DequantizeLinear", ["bytes", "scale", "zero"], ["rounded"]))
    nodes.append(helper.make_node("MatMul", ["rounded" if quantized else "flat", "weight"], ["output"]))
    inputs = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", "channels", "height", "width"])
    outputs = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "linear", [inputs], [outputs], [weight, scale, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_onnx_files_are_compared_beside_saved_networks(tmp_path: Path) -> None:
    saved = save_compressed(build_model("resnet20", 10), tmp_path / "dense.safetensors")
    int8 = write_linear(tmp_path / "small-int8.onnx", quantized=True)
    table = compare_networks([write_linear(tmp_path / "small.onnx"), saved, int8], tiny_digits())
    assert list(table["File"]) == ["dense.safetensors", "small.onnx", "small-int8.onnx"]
    assert list(table["Precision"][1:]) == ["float32", "int8"]
    assert list(table["Size (MB)"][1:]) == [(tmp_path / name).stat().st_size / 1e6 for name in table["File"][1:]]
    assert table["accuracy"][1] == table["accuracy"][2] > 0
    if table["Latency (ms)"][2] > table["Latency (ms)"][1]:
        assert any(table["Note"][1:])  # why int8 is slower, or that the times vary too much
    assert "small-int8.onnx" in str(readable(table, "Saved networks"))


def test_a_file_for_other_data_is_refused(tmp_path: Path) -> None:
    other = write_linear(tmp_path / "other.onnx", features=7)
    with pytest.raises(ValueError, match=r"^models: .*other\.onnx does not run on "):
        compare_networks([other], tiny_digits())
    (tmp_path / "none.onnx").write_text("nothing")
    with pytest.raises(ValueError, match="is no ONNX file"):
        precision_of(tmp_path / "none.onnx")

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from common.compression import compress
from common.notebook.config import ClassifierConfig
from common.planning import Fixed, plan_ranks
from common.shrink import deployment
from common.shrink.deployment import deployment_table
from common.training import evaluate
from tests.networks import tiny_cnn, tiny_digits


@pytest.mark.parametrize(
    ("products", "why"), [(True, "the steps between float32 and int8"), (False, r"no instruction .* \(VNNI\)")]
)
def test_where_int8_is_slower_the_note_says_why(products: bool, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "has_int8_products", lambda: products)
    rows = [
        {"Network": "dense", "Precision": "float32", "Latency (ms)": 1.0},
        {"Network": "dense", "Precision": "int8", "Latency (ms)": 1.5},
        {"Network": "trial 3", "Precision": "float32", "Latency (ms)": 2.0},
        {"Network": "trial 3", "Precision": "int8", "Latency (ms)": 1.5},
        {"Network": "alone", "Precision": "int8", "Latency (ms)": 9.0},
        {"Network": "noisy", "Precision": "float32", "Latency (ms)": 1.0, "Note": "no speedup"},
        {"Network": "noisy", "Precision": "int8", "Latency (ms)": 9.0},
    ]
    rows = [{"Note": "", **row} for row in rows]
    notes = [deployment.slower_note(row, rows) for row in rows]
    assert [bool(note) for note in notes] == [False, True, False, False, False, False, False]
    assert re.search(f"slower than float32: .*{why}", notes[1])


def test_every_network_in_every_precision(tmp_path: Path) -> None:
    data, dense = tiny_digits(), tiny_cnn()
    small = compress(dense, plan_ranks(dense, data.example(), "svd", Fixed(4, only_if_smaller=False)))
    table = deployment_table({7: small}, data, tmp_path / "run", rounds=3)
    assert list(table["Network"]) == ["trial 7", "trial 7"]
    assert list(table["Precision"]) == ["float32", "int8"]
    assert {file.name for file in tmp_path.iterdir()} == {
        "run-trial7-float32.onnx",
        "run-trial7-int8.onnx",
    }
    for row in table.to_dict("records"):
        assert row["accuracy"] - row["Of PyTorch's"] == pytest.approx(evaluate(small, data.test)["accuracy"])
        assert row["Latency (ms)"] > 0


def test_a_network_without_a_file_gets_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, precision: str, **__: object) -> Path:
        raise RuntimeError(f"no {precision}")

    monkeypatch.setattr(deployment, "export_onnx", refuse)
    table = deployment_table({"dense": tiny_cnn()}, tiny_digits(), tmp_path / "run")
    assert list(table["Note"]) == ["no float32", "no int8"]
    assert table["Speedup"].isna().all()


def test_without_the_dense_networks_file_there_are_no_speedups(tmp_path: Path) -> None:
    data, dense = tiny_digits(), tiny_cnn()
    small = compress(dense, plan_ranks(dense, data.example(), "svd", Fixed(4, only_if_smaller=False)))
    with torch.no_grad():
        next(dense.parameters()).flatten()[0] = 1e6
    table = deployment_table({"dense": dense, 3: small}, data, tmp_path / "run", ("float16",), rounds=3)
    assert "float16" in table["Note"][0]
    assert "no file has a speedup over it" in table["Note"][0]
    assert table["Speedup"].isna().all()
    assert table["Latency (ms)"][1] > 0


def test_without_precisions_nothing_is_written(tmp_path: Path) -> None:
    config = ClassifierConfig()
    table = deployment_table({"dense": tiny_cnn()}, tiny_digits(), tmp_path / "run", config.precision_list)
    assert table.empty
    assert not list(tmp_path.iterdir())
    assert ClassifierConfig(precisions="float32, int8").precision_list == ("float32", "int8")
    with pytest.raises(ValueError, match="precisions='int4': it must be float32, float16, int8, with commas between"):
        ClassifierConfig(precisions="int4")

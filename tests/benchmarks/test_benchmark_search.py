from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import search, search_cost
from common.compression import save_compressed
from common.models import build_model
from common.trials import read_log


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return str(save_compressed(build_model("resnet20", 10), tmp_path / "dense.safetensors"))


def test_the_comparison_of_samplers(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--weights", weights, "--dataset", "digits", "--image-size", "8", "--method", "svd"]
    arguments += ["--calibration", "24", "--validation", "48", "--batch-size", "24"]
    arguments += ["--budgets", "0.5", "--samplers", "adaptive", "budget", "--trials", "2"]
    arguments += ["--seeds", "0", "1", "--finetune-epochs", "0.5", "--amp", "off", "--out", str(tmp_path)]
    search.main(arguments)
    rows = pd.read_csv(tmp_path / "search-digits.csv")
    assert rows[["sampler", "seed"]].to_numpy().tolist() == [["adaptive", 0], ["adaptive", 1], ["budget", 0]]
    for row in rows.itertuples():
        run = f"digits-svd-0.5-{row.sampler}-{row.seed}"
        records = read_log(tmp_path / "search-digits-logs" / f"{run}.log")[0]
        assert len(records) == (1 if row.sampler == "budget" else 2)
        values = [100 * record.metrics["recalibrated"]["accuracy"] for record in records]
        assert row.validation == pytest.approx(max(values))
        tested = [
            [100 * r.metrics[stage]["accuracy"] for stage in ("recalibrated", "test")]
            for r in records
            if "test" in r.metrics
        ]
        assert any([row.chosen, row.test] == pytest.approx(pair) for pair in tested)
    shown = capsys.readouterr().out
    assert "dense: " in shown
    assert "50% of the MACs: " in shown
    assert (tmp_path / "search-digits.png").stat().st_size > 5000
    search.main(arguments)  # continues with nothing left to do
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "search-digits.csv"), rows)
    with pytest.raises(ValueError, match=r"adaptive-0' is finished with 2 trials, and 3 are asked for"):
        search.main([*arguments, "--trials", "3"])


def test_the_comparison_reads_parts_of_calibration_and_validation_alone() -> None:
    arguments = ["--weights", "unused", "--dataset", "digits", "--image-size", "8", "--batch-size", "24"]
    whole = search.load(search.parse_arguments(arguments))
    part = search.load(search.parse_arguments([*arguments, "--calibration", "24", "--validation", "48"]))
    sizes = [
        [sum(len(targets) for _, targets in split) for split in (d.calibration, d.validation, d.test)]
        for d in (whole, part)
    ]
    assert sizes[1] == [24, 48, sizes[0][2]]
    assert sizes[0][0] > 24
    assert sizes[0][1] > 48
    assert len(part.train) == len(whole.train)
    assert whole.source
    assert not part.source  # no worker could make it again


def test_what_a_search_costs(
    weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_cost, "DRAWS", 50)
    monkeypatch.setattr(search_cost, "POINTS", 0.9)
    arguments = ["--weights", weights, "--dataset", "digits", "--image-size", "8", "--limit", "32", "--method", "svd"]
    arguments += ["--batch-size", "16", "--trials", "2", "--measured", "1", "--amp", "off"]
    search_cost.main(["target", *arguments])
    shown = capsys.readouterr().out
    assert "this search, all of it" in shown
    assert "of 50 draws are small enough" in shown
    assert "NO trial lost" not in shown
    (per_trial,) = [line for line in shown.splitlines() if line.startswith("| the earlier method, a trial")]
    # 3 epochs of 32 images, each with BatchNorm measured on 32 and validation on 32, and validation once at the end.
    # Before, two images in both modes show whether the network's outputs fit.
    images = 3 * 3 * 32 + 32 + 2 * 2
    assert per_trial.split("|")[2].strip() == str(images)
    (paper,) = [line for line in shown.splitlines() if "100 trials, as its paper ran it" in line]
    assert paper.split("|")[2].strip() == f"{100 * images:,}"
    assert len([line for line in shown.splitlines() if line.startswith("| ratio ")]) == 2


def test_a_missed_target_is_stated(
    weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_cost, "DRAWS", 50)
    monkeypatch.setattr(search_cost, "is_accepted", lambda record, keep: False)
    arguments = ["--weights", weights, "--dataset", "digits", "--image-size", "8", "--limit", "32", "--method", "svd"]
    arguments += ["--batch-size", "16", "--trials", "1", "--measured", "1", "--amp", "off"]
    search_cost.main(["target", *arguments])
    assert "NO trial lost at most" in capsys.readouterr().out

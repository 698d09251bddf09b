from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from benchmarks import search, search_cost
from common.compression import save_compressed
from common.data import METRICS
from common.models import MODELS, Architecture, build_model
from common.training import Evaluation
from common.trials import read_log


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return str(save_compressed(build_model("resnet20", 10), tmp_path / "dense.safetensors"))


def build_small(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, num_classes),
    )


@pytest.fixture
def small(tmp_path: Path) -> Iterator[str]:
    """The file of a network of three layers."""
    torch.manual_seed(0)
    with MODELS.including(Architecture("small", "a small network", build_small, min_size=4)):
        yield str(save_compressed(build_model("small", 10), tmp_path / "dense.safetensors"))


def test_the_comparison_of_samplers(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(Path(small).read_bytes())
    arguments = ["--weights", small, str(other), "--dataset", "digits", "--image-size", "8", "--method", "svd"]
    arguments += ["--calibration", "24", "--validation", "48", "--batch-size", "24"]
    arguments += ["--budgets", "0.5", "--samplers", "adaptive", "vbmf", "budget", "--trials", "2"]
    arguments += ["--seeds", "0", "--finetune-epochs", "0.5", "--amp", "off", "--out", str(tmp_path)]
    search.main(arguments)
    rows = pd.read_csv(tmp_path / "search-digits.csv")
    each = [("adaptive", 0), ("vbmf", 0), ("budget", 0)]
    assert rows[["network", "sampler", "seed"]].to_numpy().tolist() == [
        *[[network, *run] for network in ("dense", "other") for run in each],
        *[[network, "vbmf", 0] for network in ("dense", "other")],
    ]
    logs = tmp_path / "search-digits-logs"
    for row in rows[rows.budget.notna()].itertuples():
        records = read_log(logs / f"digits-{row.network}-svd-0.5-{row.sampler}-{row.seed}.log")[0]
        assert [len(records), row.trials, row.within] == [2 if row.sampler == "adaptive" else 1] * 3
        tested = [
            [100 * r.metrics[stage]["accuracy"] for stage in ("recalibrated", "test")]
            for r in records
            if "test" in r.metrics
        ]
        assert any([row.chosen, row.test] == pytest.approx(pair) for pair in tested)
    assert (rows.kept[rows.budget.notna()] <= 50).all()
    shown = capsys.readouterr().out
    assert shown.count("dense: ") == 2
    table = {line.split("|")[1].strip(): line.split("|") for line in shown.splitlines() if line.startswith("|")}
    assert re.fullmatch(
        r" [-+]\d+\.\d\d \[[-+]\d+\.\d\d, [-+]\d+\.\d\d\] ± \d+\.\d\d (better|worse|no difference)( in . of .)? +",
        table["adaptive"][6],
    )
    assert table["adaptive"][3].strip() == "4 of 4"
    assert "No budget: the size that the rule chooses" in shown
    assert (tmp_path / "search-digits.png").stat().st_size > 5000
    before = {path: path.stat().st_mtime_ns for path in logs.glob("*.safetensors")}
    search.main(arguments)  # continues with nothing left to do
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "search-digits.csv"), rows)
    assert {path: path.stat().st_mtime_ns for path in logs.glob("*.safetensors")} == before
    with pytest.raises(ValueError, match=r"adaptive-0' is finished with 2 trials, and 3 are asked for"):
        search.main([*arguments, "--trials", "3"])


def found(sampler: str, hits: torch.Tensor | None, seed: int = 0, within: int = 1) -> search.Found:
    tested = hits if hits is None else Evaluation({}, {METRICS["accuracy"].observe: hits})
    row = {"network": "net", "budget": 0.1, "sampler": sampler, "seed": seed, "trials": 5, "within": within}
    scores = {} if hits is None else {"kept": 9.0, "validation": 50.0, "test": 100 * float(hits.float().mean())}
    return search.Found(row | scores, tested)


def test_the_table_says_what_is_no_difference_and_who_never_keeps_to_the_budget() -> None:
    """Of 200 images `budget` has 100 right; one sampler 150 in each of two seeds, another has other 100."""
    image = torch.arange(200)
    groups = [found("better", image < 150, seed) for seed in (0, 1)]
    groups += [found("same", image >= 100), found("never", None, within=0), found("budget", image < 100)]
    lines = search.summary(groups, "accuracy").splitlines()
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for line in lines if len(cells := line.split("|")) > 1
    }
    assert lines[0] == "10% of the MACs"
    assert rows["better"][:4] == ["9.00 ± 0.00", "2 of 10", "50.00 ± 0.00", "75.00 ± 0.00"]
    assert re.fullmatch(r"\+25\.00 \[\+1\d\.\d\d, \+3\d\.\d\d\] ± 0\.00 better in 2 of 2", rows["better"][4])
    assert rows["same"][4].startswith("+0.00 [-")
    assert rows["same"][4].endswith("no difference")
    assert rows["never"] == ["", "0 of 5", "", "", ""]
    assert rows["budget"][3:] == ["50.00", ""]


def test_the_comparison_reads_parts_of_calibration_and_validation_alone() -> None:
    arguments = ["--weights", "unused", "--dataset", "digits", "--image-size", "8", "--batch-size", "24"]
    whole, _ = search.load(search.parse_arguments(arguments))
    part, other = search.load(search.parse_arguments([*arguments, "--calibration", "24", "--validation", "48"]))
    calibration, choosing, reporting, test = (
        torch.cat([inputs for inputs, _ in split]) for split in (part.calibration, part.validation, other, part.test)
    )
    assert [len(calibration), len(choosing), len(reporting)] == [24, 24, 24]
    assert part.validation_images() == 24
    assert len({tuple(image.flatten().tolist()) for image in torch.cat([choosing, reporting])}) == 48
    assert len(test) == whole.test_images()
    assert whole.validation_images() > 24
    assert len(part.train) == len(whole.train)
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

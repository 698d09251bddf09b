from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import pytest
import torch
import yaml

from common.compression import save_compressed
from common.data import DATASETS
from common.decomposition import DECOMPOSITIONS
from common.models import build_model
from common.notebook.config import ClassifierConfig, CompareConfig, NotebookConfig, SegmentationConfig
from common.notebook.own_config import OwnConfig
from common.search.policies import POLICIES
from common.trials import TrialRecord, read_log

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
PARAMETERS = sorted((ROOT / "notebooks" / "params").glob("*.yaml"))
CONFIGS: dict[str, type[NotebookConfig]] = {"unet": SegmentationConfig, "compare": CompareConfig, "own": OwnConfig}
RULES = ["fixed", "entropy"]
TINY: dict[str, Any] = yaml.safe_load((ROOT / "notebooks" / "params" / "tiny.yaml").read_text())


def code_lines(cell: Any) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_notebook_matches_its_source(source: Path) -> None:
    """``make notebooks-sync`` writes the .ipynb again."""
    script, notebook = jupytext.read(source), nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in notebook.cells] == [
        (cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in script.cells
    ]
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_notebook_is_thin(source: Path) -> None:
    lines = [line for cell in jupytext.read(source).cells if cell.cell_type == "code" for line in code_lines(cell)]
    assert len(lines) <= 60
    assert not [line for line in lines if line.lstrip().startswith(("def ", "class "))]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_picture_has_a_line_that_says_what_to_see(source: Path) -> None:
    cells = jupytext.read(source).cells
    drawn = [
        index
        for index, cell in enumerate(cells)
        if cell.cell_type == "code" and re.search(r"^figures\.|picture\(|steps\.search\(", cell.source, re.MULTILINE)
    ]
    assert len(drawn) >= 3
    for index in drawn:
        assert cells[index + 1].source.startswith("*What to see:*"), cells[index].source


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_comments_name_what_is_allowed(source: Path) -> None:
    config: type[NotebookConfig] = CONFIGS.get(source.stem, ClassifierConfig)
    served = [name for name, dataset in DATASETS.items() if config.task in ("", dataset.task)]
    allowed = {"dataset": served, "method": [*DECOMPOSITIONS, "mixed"], "policy": list(POLICIES)}
    for line in source.read_text().splitlines():
        parameter, _, comment = line.partition(" = ")
        assert not [name for name in allowed.get(parameter, []) if name not in comment], line


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_badge_opens_this_notebook(source: Path) -> None:
    text = source.read_text()
    assert (
        f"colab.research.google.com/github/low-rank-cnn/low-rank-cnn/blob/main/notebooks/{source.stem}.ipynb" in text
    )
    assert "https://github.com/low-rank-cnn/low-rank-cnn" in text


@pytest.mark.parametrize("path", PARAMETERS, ids=lambda path: path.stem)
def test_parameter_files_hold_parameters(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.notebook.config.default_device", lambda: torch.device("cpu"))
    values = yaml.safe_load(path.read_text())
    values.pop("weights", None)  # made by finetuned/finetune.py, so it may be missing
    dataset = DATASETS[values.get("dataset", "digits")]
    config = SegmentationConfig if dataset.task == SegmentationConfig.task else ClassifierConfig
    config.from_notebook({**values, "logs": str(tmp_path)})


@pytest.fixture
def brief_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels with brief timings and narrower classifiers before a notebook, which stays as it is, begins."""
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "brief.py").write_text(
        "from tests.brevity import narrow_classifiers, time_briefly\n\ntime_briefly()\nnarrow_classifiers()\n"
    )
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def execute(name: str, folder: Path, **parameters: Any) -> Any:
    return papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb",
        folder / f"{name}.ipynb",
        parameters={"logs": str(folder / "logs"), **parameters},
        cwd=ROOT,
        progress_bar=False,
    )


def pictures(notebook: Any) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def check_log(path: Path, metric: str, rules: list[str]) -> list[TrialRecord]:
    """Check the trials of a tiny run: complete, smaller than the dense network, one fine-tuned, one tested."""
    records, skipped = read_log(path)
    assert not skipped
    assert [record.rule for record in records] == rules
    for record in records:
        assert record.status == "ok", record.error
        assert record.metric == metric
        assert 0 < record.params < record.baseline.params
        assert 0 < record.macs < record.baseline.macs
        assert record.size_bytes < record.baseline.size_bytes
        assert all(0 <= stage[metric] <= 1 for stage in record.metrics.values())
    assert any("finetuned" in record.metrics for record in records) or "made it worse" in path.read_text()
    assert any("test" in record.metrics for record in records)
    return records


@pytest.mark.usefixtures("brief_kernels")
def test_resnet18_from_data_to_tables(tmp_path: Path) -> None:
    notebook = execute("resnet18", tmp_path, **TINY, image_size=32, compare_at=None, run="resnet18")
    assert pictures(notebook) == 8  # training, spectra, search, sensitivity, policy, ranks, layers, radar
    records = check_log(tmp_path / "logs" / "resnet18.log", "accuracy", [*RULES, *["adaptive policy"] * 4])
    assert records[0].baseline.params == 11_181_642

    command = [sys.executable, str(ROOT / "analyze_results.py"), str(tmp_path / "logs"), "--keep", "0.05"]
    shown = subprocess.run([*command, "--out", str(tmp_path / "results")], capture_output=True, text=True, check=True)
    assert "best params" in shown.stdout
    with (tmp_path / "results" / "summary.csv").open() as file:
        rows = {row["Criterion"]: row for row in csv.DictReader(file)}
    best = min(records, key=lambda record: record.params)
    assert -float(rows["best params"]["Params Red."]) == pytest.approx(1 - best.params / 11_181_642)
    assert (tmp_path / "results" / "radar.png").stat().st_size > 10_000
    assert (tmp_path / "results" / "pareto.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("brief_kernels")
@pytest.mark.parametrize(
    ("name", "params", "data_aware"), [("alexnet", 7_456_586, False), ("vgg16", 27_828_042, True)]
)
def test_the_other_classifiers(name: str, params: int, data_aware: bool, tmp_path: Path) -> None:
    """AlexNet by its weights alone, VGG16 with data; both with Linear layers of 512 features."""
    changes = {"trials": 2, "dense_epochs": 1.0, "limit": 64, "compare_at": None, "data_aware": data_aware}
    notebook = execute(name, tmp_path, **{**TINY, **changes}, run=name)
    assert pictures(notebook) == 7
    records = check_log(tmp_path / "logs" / f"{name}.log", "accuracy", [*RULES, *["adaptive policy"] * 2])
    assert {record.baseline.params for record in records} == {params}
    assert min(record.params for record in records) < 0.1 * params  # the Linear layers are compressed too


@pytest.mark.usefixtures("brief_kernels")
def test_unet_and_the_comparison_of_runs(tmp_path: Path) -> None:
    notebook = execute("unet", tmp_path, **{**TINY, "trials": 2}, image_size=32, width=8, compare_at=0.5, run="unet")
    assert pictures(notebook) == 8  # and masks
    rules = [*RULES, "entropy", *["budget"] * 3, *["entropy"] * 2, *["adaptive policy"] * 2]
    records = check_log(tmp_path / "logs" / "unet.log", "dice", rules)
    compared = [record for record in records if record.rule == "budget"]
    assert [record.method for record in compared] == ["svd", "tucker2", "htd"]
    assert all(0.45 < record.params / record.baseline.params <= 0.5 for record in compared)
    assert {"dice", "iou", "pixel_accuracy"} <= compared[0].metrics["raw"].keys()
    (lesson,) = (cell for cell in notebook.cells if cell.source.startswith("lessons.equal_sizes("))
    for name in ("SVD", "Tucker-2", "HTD", "ARSVD", "ARSVD, exponent 2"):
        assert f"\n{name} " in lesson.outputs[0]["data"]["text/plain"]

    saved = sorted(str(path) for path in (tmp_path / "logs").glob("*.safetensors"))
    shown = execute(
        "compare", tmp_path, keep=0.05, models=",".join(saved[:2]), dataset="phantoms", limit=32, batch_size=16
    )
    assert pictures(shown) == 3
    text = str([cell.get("outputs") for cell in shown.cells])
    assert "unet (phantoms)" in text
    assert all(Path(file).name in text for file in saved[:2])


BAD: list[tuple[dict[str, Any], str]] = [
    ({"trails": 3}, "trails=3 is no parameter of this notebook; did you mean 'trials'?"),
    ({"trials": "many"}, "trials='many': input should be a valid integer"),
    ({"keep": 2.0}, "keep=2.0: input should be less than or equal to 1"),
]


@pytest.mark.parametrize(("parameters", "sentence"), BAD)
def test_bad_parameters_are_refused_in_a_sentence(parameters: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ClassifierConfig.from_notebook({**TINY, "logs": str(tmp_path / "logs"), **parameters})
    assert not (tmp_path / "logs").exists()


def test_bad_parameters_stop_the_notebook_before_any_work(tmp_path: Path) -> None:
    parameters, sentence = BAD[0]
    with pytest.raises(papermill.PapermillExecutionError) as error:
        execute("resnet18", tmp_path, **{**TINY, **parameters})
    assert sentence in str(error.value)
    assert not (tmp_path / "logs").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on this machine")
def test_make_runs_the_notebooks_that_the_parameters_fit_and_continues_after_a_failure(tmp_path: Path) -> None:
    papermill = tmp_path / "papermill"
    papermill.write_text('#!/bin/sh\necho "$@" >> "$0.calls"\ncase "$1" in *vgg16*) exit 1;; esac\n')
    papermill.chmod(0o755)
    command = [
        "make",
        "--no-print-directory",
        "--old-file=.venv/.runtime",
        "notebooks",
        f"BIN={tmp_path}",
        "PARAMS=mnist",
        "DATA_ROOT=here",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout.splitlines()[-3:] == ["done:   resnet18", "failed: vgg16", "done:   alexnet"]
    calls = (tmp_path / "papermill.calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == [f"notebooks/{n}.ipynb" for n in ("resnet18", "vgg16", "alexnet")]
    assert all(call.endswith("-f notebooks/params/mnist.yaml -p data_root here") for call in calls)
    done = subprocess.run([*command[:-2], "PARAMS=brain_tumor"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "done:   unet"


def test_saved_networks_are_compared_without_any_log(tmp_path: Path) -> None:
    saved = [save_compressed(build_model("resnet20", 10), tmp_path / f"{name}.safetensors") for name in "ab"]
    shown = execute("compare", tmp_path, models=",".join(map(str, saved)), image_size=32, limit=32, batch_size=16)
    assert "b.safetensors" in str(shown.cells[-1].outputs)

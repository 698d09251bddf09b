from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.trials import TRIAL_MARK, TrialWriter
from tests.records import make_record

ROOT = Path(__file__).parents[1]
FIGURES = ["radar.png", "radar.pdf", "pareto.png", "pareto.pdf"]
FAKE_TORCH = """
import os, pathlib
pathlib.Path(os.environ["TORCH_WAS_IMPORTED"]).touch()
raise ImportError("no torch here")
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder to work in, where importing torch leaves a mark and fails."""
    for name in ("torch", "torchvision"):
        (tmp_path / "fake" / name).mkdir(parents=True)
        (tmp_path / "fake" / name / "__init__.py").write_text(FAKE_TORCH)
    return tmp_path


def run(workplace: Path, script: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    mark = workplace / "torch-was-imported"
    result = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / script), *map(str, arguments)],
        cwd=workplace,
        env={
            **os.environ,
            "PYTHONPATH": str(workplace / "fake"),
            "TORCH_WAS_IMPORTED": str(mark),
            "PYTHONIOENCODING": "utf-8",
            **environment,
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert not mark.exists(), "torch was imported"
    assert "Traceback" not in result.stderr
    return result


def write(folder: Path, name: str, *changes: dict[str, Any]) -> Path:
    with TrialWriter(folder, name) as writer:
        for number, change in enumerate(changes):
            writer.write(make_record(run=name, **{"trial": number, **change}))
    return writer.path


def strict(path: Path) -> Any:
    return json.loads(path.read_bytes(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_the_fake_torch_would_be_noticed(workplace: Path) -> None:
    (workplace / "probe.py").write_text("try:\n    import torch\nexcept ImportError:\n    pass\n")
    with pytest.raises(AssertionError, match="torch was imported"):
        run(workplace, str(workplace / "probe.py"))


@pytest.mark.parametrize("script", ["jsonify_logs.py", "analyze_results.py"])
def test_help_shows_examples(workplace: Path, script: str) -> None:
    result = run(workplace, script, "--help")
    assert result.returncode == 0
    assert "examples:" in result.stdout
    assert f"python {script}" in result.stdout


@pytest.mark.parametrize("script", ["jsonify_logs.py", "analyze_results.py"])
@pytest.mark.parametrize("there", [True, False])
def test_a_missing_or_empty_folder_is_one_clear_sentence(workplace: Path, script: str, there: bool) -> None:
    if there:
        (workplace / "logs").mkdir()
    result = run(workplace, script)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "logs" in result.stderr
    assert not result.stdout.strip()


def test_jsonify_holds_the_latest_version_of_each_trial(workplace: Path) -> None:
    nan = {"metrics": {"raw": {"accuracy": float("nan")}}}
    write(workplace / "logs", "ünet-網", {"trial": 1}, {"trial": 0, **nan}, {"trial": 1, "seconds": 1.5})
    result = run(workplace, "jsonify_logs.py")
    assert result.returncode == 0, result.stderr
    assert "2 trials, 0 lines skipped" in result.stdout
    document = strict(workplace / "logs" / "ünet-網.json")
    assert (document["schema"], document["run"], document["skipped"]) == (1, "ünet-網", [])
    assert [(trial["trial"], trial["seconds"]) for trial in document["trials"]] == [(0, 41.7), (1, 1.5)]
    assert document["trials"][0]["metrics"]["raw"]["accuracy"] is None
    assert document["trials"][1] == json.loads(make_record(run="ünet-網", trial=1, seconds=1.5).to_json())


def test_jsonify_says_what_was_torn_and_again_gives_the_same_bytes(workplace: Path) -> None:
    log = write(workplace / "logs", "r", {}, {}, {})
    log.write_bytes(log.read_bytes()[:-300])
    write(workplace / "logs", "r", {"trial": 3})
    with log.open("a") as file:
        file.write(f'{TRIAL_MARK}{{"schema": 1}}\n')
    first = run(workplace, "jsonify_logs.py", "logs/r.log", "--out", "json/deep")
    assert first.returncode == 0
    assert "3 trials, 2 lines skipped" in first.stdout
    assert "r.log, line 6: torn" in first.stdout
    assert "r.log, line 9: the field" in first.stdout
    made = workplace / "json" / "deep" / "r.json"
    document = strict(made)
    assert [trial["trial"] for trial in document["trials"]] == [0, 1, 3]
    assert [entry["line"] for entry in document["skipped"]] == [6, 9]
    before = made.read_bytes()
    assert run(workplace, "jsonify_logs.py", "logs", "--out", "json/deep").returncode == 0
    assert made.read_bytes() == before
    assert [path.name for path in made.parent.iterdir()] == ["r.json"]  # no temporary file stays behind


def test_jsonify_takes_a_log_without_a_trial_and_a_name_that_utf8_cannot_hold(workplace: Path) -> None:
    write(workplace / "logs", "none")
    values = json.loads(make_record(run="odd").to_json()) | {"error": "\ud800"}
    (workplace / "logs" / "odd.log").write_text(f"{TRIAL_MARK}{json.dumps(values)}\n")
    assert run(workplace, "jsonify_logs.py").returncode == 0
    assert strict(workplace / "logs" / "none.json")["trials"] == []
    assert strict(workplace / "logs" / "odd.json")["trials"][0]["error"] == "\ud800"


def test_jsonify_refuses_to_overwrite_one_run_by_another(workplace: Path) -> None:
    write(workplace / "a", "r", {})
    write(workplace / "b", "r", {})
    result = run(workplace, "jsonify_logs.py", "a", "b", "--out", "json")
    assert result.returncode == 2
    assert "would both become" in result.stderr
    assert not (workplace / "json").exists()


def test_analyze_writes_and_names_everything(workplace: Path) -> None:
    write(workplace / "logs", "r", {}, {"params": 900_000, "metrics": {"raw": {"accuracy": 0.946}}}, {"model": "a|b"})
    result = run(workplace, "analyze_results.py", MPLBACKEND="")
    assert result.returncode == 0, result.stderr
    names = ["summary.csv", "summary.md", *FIGURES]
    assert result.stdout.splitlines()[-len(names) :] == [f"wrote {Path('results') / name}" for name in names]
    assert all((workplace / "results" / name).stat().st_size for name in names)
    assert "-91.95%" in result.stdout  # 1 - 900000 / 11181642
    with (workplace / "results" / "summary.csv").open(encoding="utf-8") as file:
        raw = list(csv.DictReader(file))
    best = next(row for row in raw if row["Criterion"] == "best params")
    assert float(best["Params Red."]) == pytest.approx(1 - 900_000 / 11_181_642)
    assert (best["Parameters"], best["Trial"], best["Split"]) == ("900000", "1", "validation")
    page = (workplace / "results" / "summary.md").read_text(encoding="utf-8")
    assert "a\\|b (cifar10)" in page
    assert "94.60% (val)" in page


def test_analyze_reads_what_jsonify_made(workplace: Path) -> None:
    write(workplace / "logs", "r", {}, {})
    assert run(workplace, "jsonify_logs.py", "--out", "json").returncode == 0
    assert run(workplace, "analyze_results.py", "logs", "--out", "one").returncode == 0
    assert run(workplace, "analyze_results.py", "json", "--out", "two").returncode == 0
    for name in ("summary.csv", "summary.md", *FIGURES):
        assert (workplace / "one" / name).read_bytes() == (workplace / "two" / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"raw": {"accuracy": 0.5}}},
        {"status": "failed", "metrics": {}, "latency": None, "error": "no memory"},
    ],
)
def test_analyze_without_an_accepted_trial_says_so(workplace: Path, change: dict[str, Any]) -> None:
    write(workplace / "logs", "r", change, change)
    result = run(workplace, "analyze_results.py")
    assert result.returncode == 0, result.stderr
    assert "resnet18 (cifar10): no accepted trial" in result.stdout
    assert "baseline" in result.stdout
    assert all((workplace / "results" / name).exists() for name in FIGURES)
    assert "no accepted trial" in (workplace / "results" / "summary.md").read_text(encoding="utf-8")


def test_analyze_names_torn_lines_and_stops_without_any_trial(workplace: Path) -> None:
    log = write(workplace / "logs", "r", {})
    log.write_bytes(log.read_bytes()[:-100])
    result = run(workplace, "analyze_results.py")
    assert result.returncode == 2
    assert "r.log, line 2: torn" in result.stdout
    assert "no trial in logs" in result.stderr
    assert not (workplace / "results").exists()


@pytest.mark.parametrize("keep", ["0", "1.5", "-1", "nan", "most"])
def test_keep_is_refused_by_name_value_and_what_is_allowed(workplace: Path, keep: str) -> None:
    result = run(workplace, "analyze_results.py", f"--keep={keep}")
    assert result.returncode == 2
    assert f"keep={keep} is not allowed; it must be a number in (0, 1]" in result.stderr


def test_keep_decides_what_is_accepted(workplace: Path) -> None:
    write(workplace / "logs", "r", {"metrics": {"raw": {"accuracy": 0.9}}})
    assert "best params" not in run(workplace, "analyze_results.py").stdout
    assert "best params" in run(workplace, "analyze_results.py", "--keep", "0.9").stdout


def test_a_terminal_without_unicode_is_no_obstacle(workplace: Path) -> None:
    write(workplace / "logs", "ünet-網", {"model": "ünet-網"})
    for script in ("jsonify_logs.py", "analyze_results.py"):
        result = run(workplace, script, PYTHONIOENCODING="ascii")
        assert result.returncode == 0, result.stderr
        assert "\\u7db2" in result.stdout


def test_a_folder_that_cannot_be_written_is_one_clear_sentence(workplace: Path) -> None:
    write(workplace / "logs", "r", {})
    (workplace / "taken").write_text("a file")
    for script in ("jsonify_logs.py", "analyze_results.py"):
        result = run(workplace, script, "logs", "--out", "taken")
        assert result.returncode == 2
        assert "taken" in result.stderr


def test_one_method_alone(workplace: Path) -> None:
    write(workplace / "logs", "mixed-run", {"method": "svd", "params": 100_000}, {"method": "htd"})
    shown = run(workplace, "analyze_results.py", "--method", "htd")
    assert shown.returncode == 0
    assert " htd " in shown.stdout
    assert " svd " not in shown.stdout
    refused = run(workplace, "analyze_results.py", "--method", "hdt")
    assert refused.returncode == 2
    assert "method='hdt' is unknown (did you mean 'htd'?); allowed: htd, svd" in refused.stderr

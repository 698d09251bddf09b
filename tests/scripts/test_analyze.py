from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.running import run, write

FIGURES = ["radar.png", "radar.pdf", "pareto.png", "pareto.pdf"]


TABLES = ["summary", "budgets", "methods", "searches", "latency", "layers", "runs"]


def test_analyze_shows_the_summary_and_writes_everything(workplace: Path) -> None:
    write(workplace / "logs", "r", {}, {"params": 900_000, "metrics": {"raw": {"accuracy": 0.946}}}, {"model": "a|b"})
    result = run(workplace, "analyze_results.py", MPLBACKEND="")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "3 trials of 2 models in 1 run (3 ok); 3 kept 99% of the dense metric or more."
    assert lines[-1] == f"open {Path('results') / 'report.html'} to see everything on one page"
    made = {path.name for path in (workplace / "results").iterdir()}
    assert {f"{name}.{kind}" for name in TABLES for kind in ("csv", "md", "tex")} | {*FIGURES, "report.html"} <= made
    assert lines[-2].startswith(f"wrote {len(made)} files into results: 8 csv, 7 md, 7 tex")
    assert all(path.stat().st_size for path in (workplace / "results").iterdir())
    assert "-91.95%" in result.stdout  # 1 - 900000 / 11181642
    with (workplace / "results" / "summary.csv").open(encoding="utf-8") as file:
        raw = list(csv.DictReader(file))
    best = next(row for row in raw if row["Criterion"] == "best params")
    assert -float(best["Params Red."]) == pytest.approx(1 - 900_000 / 11_181_642)
    assert (best["Parameters"], best["Trial"], best["Test"]) == ("900000", "1", "")
    page = (workplace / "results" / "summary.md").read_text(encoding="utf-8")
    assert "a\\|b (cifar10)" in page
    assert "94.60%" in page
    assert "Accuracy (validation)" in page
    report = (workplace / "results" / "report.html").read_text(encoding="utf-8")
    assert 'href="../logs/r.log"' in report
    assert "<pre>python analyze_results.py</pre>" in report
    assert report.count("data:image/png;base64,") == sum(name.endswith(".png") for name in made)


def test_files_of_an_earlier_analysis_are_named(workplace: Path) -> None:
    write(workplace / "logs", "r", {})
    assert "earlier" not in run(workplace, "analyze_results.py", "--format", "csv", "--format", "md").stdout
    for other in ("search-cifar10.csv", "notes.csv"):
        (workplace / "results" / other).write_text("of somebody else")
    write(workplace / "more", "failed", {"status": "failed", "metrics": {}, "latency": None, "error": "no"})
    shown = run(workplace, "analyze_results.py", "more", "--format", "csv").stdout
    (line,) = [line for line in shown.splitlines() if "earlier" in line]
    assert line.startswith("from an earlier analysis, not of these trials: budgets.csv, latency.csv, layers.csv")
    assert not [other for other in ("search-cifar10", "notes", ".md") if other in line]


def test_analyze_again_gives_the_same_bytes(workplace: Path) -> None:
    write(workplace / "logs", "r", {}, {"trial": 1, "params": 900_000})
    contents = []
    for _ in range(2):
        assert run(workplace, "analyze_results.py", "--format", "html", "--format", "svg").returncode == 0
        contents.append({path.name: path.read_bytes() for path in (workplace / "results").iterdir()})
    assert contents[0] == contents[1]
    assert {name.rsplit(".", 1)[1] for name in contents[0]} == {"svg", "html"}


def test_analyze_reads_what_jsonify_made(workplace: Path) -> None:
    write(workplace / "logs", "r", {}, {})
    assert run(workplace, "jsonify_logs.py", "--out", "json").returncode == 0
    assert run(workplace, "analyze_results.py", "logs", "--out", "one").returncode == 0
    assert run(workplace, "analyze_results.py", "json", "--out", "two").returncode == 0
    for name in ("summary.csv", "methods.tex", *FIGURES):
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
    assert "r.log, line 2: torn" in result.stderr
    assert "no trial in logs" in result.stderr
    assert not (workplace / "results").exists()


@pytest.mark.parametrize("keep", ["1.5", "-1", "nan", "most"])
def test_keep_is_refused_by_name_value_and_what_is_allowed(workplace: Path, keep: str) -> None:
    result = run(workplace, "analyze_results.py", f"--keep={keep}")
    assert result.returncode == 2
    assert f"keep={keep} is not allowed; it must be a number in [0, 1]" in result.stderr


def test_keep_decides_what_is_accepted(workplace: Path) -> None:
    write(workplace / "logs", "r", {"metrics": {"raw": {"accuracy": 0.9}}})
    assert "best params" not in run(workplace, "analyze_results.py", "--format", "csv").stdout
    assert "best params" in run(workplace, "analyze_results.py", "--keep", "0.9", "--format", "csv").stdout
    assert "best params" in run(workplace, "analyze_results.py", "--keep", "0", "--format", "csv").stdout


def test_another_work_is_set_beside_the_trials(workplace: Path) -> None:
    write(workplace / "logs", "r", {"params": 900_000})
    lines = ['{"model": "resnet18", "ranks": {}, "params": 1000, "accuracy": 0.9}']
    lines.append('{"model": "resnet18", "ranks": {"conv1": [3, 2]}, "params": 100, "accuracy": 0.8}')
    (workplace / "peer.jsonl").write_text("\n".join(lines))
    result = run(workplace, "analyze_results.py", "--reference", "peer.jsonl", "--format", "html")
    assert result.returncode == 0, result.stderr
    page = (workplace / "results" / "report.html").read_text(encoding="utf-8")
    assert '"reference":{"name":"peer","fronts":{"params_kept":[[10.0,80.0]],"macs_kept":[],"time_kept":[]}}' in page
    (workplace / "peer.jsonl").write_text(lines[0].replace("resnet18", "resnet50"))
    refused = run(workplace, "analyze_results.py", "--reference", "peer.jsonl", "--out", "other")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "reference='peer' has networks of resnet50 (any, accuracy); none of them is among" in refused.stderr
    assert not (workplace / "other").exists()

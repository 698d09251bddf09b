from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from common.trials import SCHEMA_VERSION, TRIAL_MARK, TrialWriter
from tests.records import make_record

ROOT = Path(__file__).parents[2]
FIGURES = ["radar.png", "radar.pdf", "pareto.png", "pareto.pdf"]
TABLES = ["summary", "budgets", "methods", "searches", "latency", "layers", "runs"]
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
        [sys.executable, "-W", "error", script if script == "-c" else str(ROOT / script), *map(str, arguments)],
        cwd=workplace,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(workplace / "fake"), str(ROOT)]),
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
    assert (document["schema"], document["run"], document["skipped"]) == (SCHEMA_VERSION, "ünet-網", [])
    assert [(trial["trial"], trial["seconds"]) for trial in document["trials"]] == [(0, 41.7), (1, 1.5)]
    assert document["trials"][0]["metrics"]["raw"]["accuracy"] is None
    latest = dict(document["trials"][1])
    assert datetime.fromisoformat(latest.pop("time")) <= datetime.now()
    assert latest == json.loads(make_record(run="ünet-網", trial=1, seconds=1.5).to_line())


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
    assert [entry["lines"] for entry in document["skipped"]] == [[6], [9]]
    assert {entry["count"] for entry in document["skipped"]} == {1}
    before = made.read_bytes()
    assert run(workplace, "jsonify_logs.py", "logs", "--out", "json/deep").returncode == 0
    assert made.read_bytes() == before
    assert [path.name for path in made.parent.iterdir()] == ["r.json"]  # no temporary file stays behind
    assert run(workplace, "jsonify_logs.py", "--out", "json/deep", "--strict").returncode == 1


def test_jsonify_takes_a_log_without_a_trial_and_a_name_that_utf8_cannot_hold(workplace: Path) -> None:
    write(workplace / "logs", "none")
    values = json.loads(make_record(run="odd").to_line()) | {"error": "\ud800"}
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


def test_analyze_shows_the_summary_and_writes_everything(workplace: Path) -> None:
    write(workplace / "logs", "r", {}, {"params": 900_000, "metrics": {"raw": {"accuracy": 0.946}}}, {"model": "a|b"})
    result = run(workplace, "analyze_results.py", MPLBACKEND="")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "3 trials of 2 models in 1 run (3 ok); 3 kept 99% of the dense metric or more."
    assert lines[-1] == f"open {Path('results') / 'report.html'} for all of it in one page"
    made = {path.name for path in (workplace / "results").iterdir()}
    assert {f"{name}.{kind}" for name in TABLES for kind in ("csv", "md", "tex")} | {*FIGURES, "report.html"} <= made
    assert lines[-2].startswith(f"wrote {len(made)} files into results: 7 csv, 7 md, 7 tex")
    assert all(path.stat().st_size for path in (workplace / "results").iterdir())
    assert "-91.95%" in result.stdout  # 1 - 900000 / 11181642
    with (workplace / "results" / "summary.csv").open(encoding="utf-8") as file:
        raw = list(csv.DictReader(file))
    best = next(row for row in raw if row["Criterion"] == "best params")
    assert float(best["Params Red."]) == pytest.approx(1 - 900_000 / 11_181_642)
    assert (best["Parameters"], best["Trial"], best["Split"]) == ("900000", "1", "validation")
    page = (workplace / "results" / "summary.md").read_text(encoding="utf-8")
    assert "a\\|b (cifar10)" in page
    assert "94.60% (val)" in page
    report = (workplace / "results" / "report.html").read_text(encoding="utf-8")
    assert 'href="../logs/r.log"' in report
    assert "<pre>python analyze_results.py</pre>" in report
    assert report.count("data:image/png;base64,") == sum(name.endswith(".png") for name in made)


def test_what_an_earlier_analysis_left_is_named(workplace: Path) -> None:
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


SETTINGS = {
    "latex": "text.usetex: True\n",
    "a missing font": "font.family: No Such Font\nfont.size: 30\n",
    "a backend that is not there": "backend: module://no_such_backend\ninteractive: True\n",
    "how figures are saved": "savefig.format: svg\nsavefig.bbox: tight\nfigure.dpi: 30\nsavefig.facecolor: black\n",
    "typing errors": "lines.linewidth: thick\nno.such.key: 1\nno colon\n",
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_users_matplotlibrc_changes_no_picture(workplace: Path, settings: str) -> None:
    write(workplace / "logs", "run", {}, {})
    formats = ("--format", "png", "--format", "pdf", "--format", "html")
    plain = run(workplace, "analyze_results.py", "--out", "plain", *formats)
    (workplace / "matplotlibrc").write_text(SETTINGS[settings])
    changed = run(workplace, "analyze_results.py", "--out", "changed", *formats)
    assert (plain.returncode, changed.returncode) == (0, 0)
    plain_files, changed_files = (sorted((workplace / name).iterdir()) for name in ("plain", "changed"))
    assert [path.name for path in plain_files] == [path.name for path in changed_files]
    assert (workplace / "changed" / "report.html").exists()
    for one, other in zip(plain_files, changed_files, strict=True):
        assert one.suffix == ".html" or one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.parametrize(
    ("settings", "environment", "reason"),
    [
        (b"font.family: caf\xe9\n", {}, "'utf-8' codec can't decode"),
        (b"", {"MPLBACKEND": "nonsense"}, "Key backend: 'nonsense' is not a valid value"),
    ],
)
def test_settings_that_matplotlib_refuses_are_one_sentence(
    workplace: Path, settings: bytes, environment: dict[str, str], reason: str
) -> None:
    write(workplace / "logs", "run", {})
    (workplace / "matplotlibrc").write_bytes(settings)
    result = run(workplace, "analyze_results.py", **environment)
    assert result.returncode == 2
    said = result.stderr.splitlines()[-1]
    assert said.startswith("matplotlib cannot be loaded with its settings from MPLBACKEND or a file matplotlibrc: ")
    assert reason in said
    assert run(workplace, "analyze_results.py", "--format", "md", **environment).returncode == 0, (
        "tables need no figure"
    )


PATCHED = """
import sys
import analyze_results
from common.reporting import figures

def fail(*_):
    raise {error}

figures.{name} = fail
sys.exit(analyze_results.main([]))
"""


@pytest.mark.parametrize("name", ["pareto", "radar"])
def test_a_picture_that_cannot_be_drawn_is_named_and_costs_no_other(workplace: Path, name: str) -> None:
    write(workplace / "logs", "run", {})
    result = run(workplace, "-c", PATCHED.format(name=name, error='RuntimeError("no latex\\nat all")'))
    assert result.returncode == 2
    sentence = f"The picture {name} could not be drawn: RuntimeError: no latex"
    assert result.stderr.splitlines()[-1] == sentence
    written = {path.name for path in (workplace / "results").iterdir()}
    assert f"{name}.png" not in written
    assert {f"{other}.png" for other in ("radar", "pareto", "methods")} - {f"{name}.png"} <= written
    page = (workplace / "results" / "report.html").read_text()
    assert f"<figcaption>{sentence}</figcaption>" in page


def test_ctrl_c_ends_with_a_sentence(workplace: Path) -> None:
    write(workplace / "logs", "run", {})
    stopped = run(workplace, "-c", PATCHED.format(name="radar", error="KeyboardInterrupt"))
    assert (stopped.returncode, stopped.stderr) == (130, "stopped; not everything is written\n")


def test_ctrl_c_ends_the_conversion_with_a_sentence(workplace: Path) -> None:
    write(workplace / "logs", "run", {})
    code = """
import sys
import jsonify_logs

def stop(*_):
    raise KeyboardInterrupt

jsonify_logs.write_atomically = stop
sys.exit(jsonify_logs.main([]))
"""
    stopped = run(workplace, "-c", code)
    assert (stopped.returncode, stopped.stderr) == (130, "stopped; not everything is written\n")


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
        assert "out=taken is not allowed; it must be a folder" in result.stderr


def test_one_method_or_model_alone(workplace: Path) -> None:
    write(workplace / "logs", "mixed-run", {"method": "svd", "params": 100_000}, {"method": "htd"}, {"model": "vgg16"})
    csvs = ("--format", "csv")
    shown = run(workplace, "analyze_results.py", "--method", "htd", *csvs)
    assert shown.returncode == 0
    assert " htd " in shown.stdout
    assert " svd " not in shown.stdout
    both = run(workplace, "analyze_results.py", "--method", "htd", "--method", "svd", "--model", "resnet18", *csvs)
    assert both.stdout.startswith("2 trials of 1 model ")
    for script in ("analyze_results.py", "jsonify_logs.py"):
        refused = run(workplace, script, "--method", "hdt")
        assert refused.returncode == 2
        assert "method='hdt' is unknown (did you mean 'htd'?); allowed: htd, svd, tucker2" in refused.stderr
    assert not list((workplace / "logs").glob("*.json"))
    assert run(workplace, "jsonify_logs.py", "--logs", "logs", "--model", "vgg16").returncode == 0
    assert [trial["model"] for trial in strict(workplace / "logs" / "mixed-run.json")["trials"]] == ["vgg16"]


def test_since_takes_what_was_logged_later(workplace: Path) -> None:
    log = write(workplace / "logs", "r", {}, {}, {})
    lines = log.read_text().splitlines(keepends=True)
    days = ("2026-11-19 23:59:59", "2026-11-20 00:00:00", "2026-11-21 08:00:00")
    for place, day in zip((0, 2, 4), days, strict=True):
        lines[place] = day + lines[place][19:]
    log.write_text("".join(lines))
    for since, number in (("2026-11-20", 2), ("2026-11-20T00:00:01", 1), ("2026-11-19", 3)):
        shown = run(workplace, "analyze_results.py", "--since", since, "--format", "csv")
        assert shown.stdout.startswith(f"{number} trial"), shown.stderr
        assert f": {number} trials" in run(workplace, "jsonify_logs.py", "--since", since).stdout
    for script in ("analyze_results.py", "jsonify_logs.py"):
        refused = run(workplace, script, "--since", "2027-01-01")
        assert (refused.returncode, refused.stderr) == (2, "No trial is left with --since as given; leave it out.\n")
        refused = run(workplace, script, "--since", "yesterday")
        assert refused.returncode == 2
        assert "since=yesterday is not allowed; it must be a date" in refused.stderr


def workers(folder: Path, **first: Any) -> None:
    """Trials 0 and 1 by two workers, and trial 0 again, fine-tuned by the second."""
    raw = {"raw": {"accuracy": 0.9}}
    write(folder, "s", {"metrics": raw, **first})
    write(folder, "s-w2", {"trial": 1, "metrics": raw, **first}, {"trial": 0, **first})


def test_workers_of_a_study_become_one_file(workplace: Path) -> None:
    workers(workplace / "logs", details={"study": "st/udy"})
    shown = run(workplace, "jsonify_logs.py")
    assert shown.returncode == 0, shown.stderr
    assert "2 trials" in shown.stdout
    assert [path.name for path in (workplace / "logs").glob("*.json")] == ["st_udy.json"]
    document = strict(workplace / "logs" / "st_udy.json")
    assert sorted(document["logs"]) == ["s-w2.log", "s.log"]
    assert [(trial["trial"], trial["run"]) for trial in document["trials"]] == [(0, "s-w2"), (1, "s-w2")]
    assert "finetuned" in document["trials"][0]["metrics"]
    assert run(workplace, "analyze_results.py", "--format", "csv").stdout.startswith("2 trials of 1 model")


def test_a_log_without_a_trial_yet_goes_with_its_study(workplace: Path) -> None:
    workers(workplace / "logs", details={"study": "main"})
    (workplace / "logs" / "main.log").write_text("2026-11-21 10:00:00  begun\n")
    assert run(workplace, "jsonify_logs.py").returncode == 0
    assert strict(workplace / "logs" / "main.json")["logs"] == ["main.log", "s-w2.log", "s.log"]


def test_studies_of_one_name_in_two_folders_become_two_files(workplace: Path) -> None:
    for folder, seed in (("a", 0), ("b", 1)):
        write(workplace / folder, "r", {"details": {"study": "r"}, "seed": seed})
    assert run(workplace, "jsonify_logs.py", "a", "b").returncode == 0
    assert [strict(workplace / f / "r.json")["trials"][0]["seed"] for f in "ab"] == [0, 1]
    assert run(workplace, "analyze_results.py", "a", "b", "--format", "csv").stdout.startswith("2 trials of 1 model")
    assert "would both become" in run(workplace, "jsonify_logs.py", "a", "b", "--out", "json").stderr


def test_workers_that_name_no_study_are_merged_by_name_only_when_asked(workplace: Path) -> None:
    workers(workplace / "logs")
    assert run(workplace, "jsonify_logs.py", "--format", "jsonl").returncode == 0
    assert {path.name for path in (workplace / "logs").glob("*.jsonl")} == {"s.jsonl", "s-w2.jsonl"}
    assert run(workplace, "jsonify_logs.py", "--by-name").returncode == 0
    lines = (workplace / "logs" / "s-w2.jsonl").read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines] == [0, 1]
    assert [trial["trial"] for trial in strict(workplace / "logs" / "s.json")["trials"]] == [0, 1]
    for options, number in (((), 3), (("--by-name",), 2)):
        shown = run(workplace, "analyze_results.py", "logs/s.log", "logs/s-w2.log", "--format", "csv", *options)
        assert shown.stdout.startswith(f"{number} trials")


def test_mixed_schema_versions_and_foreign_numbers(workplace: Path) -> None:
    log = write(workplace / "logs", "r", {})
    values = json.loads(make_record(run="r", trial=1).to_line())
    nan = json.dumps(values | {"metrics": {"raw": {"accuracy": float("nan")}, "finetuned": {"accuracy": 0.95}}})
    infinite = json.dumps(values | {"trial": 2, "metrics": {"raw": {"accuracy": 0.5}}}).replace("0.5", "1e999")
    with log.open("a") as file:
        file.write("".join(f"{TRIAL_MARK}{text}\n" for text in (nan, infinite)))
        file.write("".join(f"{TRIAL_MARK}{json.dumps(values | {'schema': 3})}\n" for _ in range(20)))
    shown = run(workplace, "analyze_results.py", "--format", "csv")
    assert shown.returncode == 0, shown.stderr
    assert (
        "r.log, lines 5, 6, 7, 8, 9 and 15 more: schema version 3 is unknown; this reader knows versions 1 to 2"
        in shown.stdout
    )
    assert "r.log, line 4: the field 'metrics.raw.accuracy' holds inf; it is" in shown.stdout
    assert shown.stdout.startswith("2 trials")
    assert run(workplace, "analyze_results.py", "--format", "csv", "--strict").returncode == 1
    assert "21 lines skipped" in run(workplace, "jsonify_logs.py").stdout
    document = strict(workplace / "logs" / "r.json")
    assert [trial["metrics"]["raw"]["accuracy"] for trial in document["trials"]] == [0.8123, None]


WRITE_FOREVER = """
import itertools
from common.trials import TrialWriter
from tests.records import make_record

with TrialWriter("logs", "growing") as writer:
    for trial in itertools.count():
        writer.write(make_record(run="growing", trial=trial))
        print(trial, flush=True)
"""


def test_a_log_is_read_while_it_grows(workplace: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITE_FOREVER]
    with subprocess.Popen(command, cwd=workplace, env=environment, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        confirmed = [int(writer.stdout.readline()) for _ in range(30)]
        shown = [run(workplace, "jsonify_logs.py"), run(workplace, "analyze_results.py", "--format", "csv")]
        assert writer.poll() is None
        writer.kill()
    assert [result.returncode for result in shown] == [0, 0]
    document = strict(workplace / "logs" / "growing.json")
    numbers = [trial["trial"] for trial in document["trials"]]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= len(confirmed)
    assert sum(entry["count"] for entry in document["skipped"]) <= 1  # the line that was being written


def test_jsonify_needs_little_memory_for_each_trial(workplace: Path) -> None:
    log = write(workplace / "logs", "r", {})
    mark, record = TRIAL_MARK, make_record(run="r", trial=-1).to_line()
    log.write_text("".join(f"{mark}{record.replace(': -1,', f': {n},', 1)}\n" for n in range(20_000)))
    code = """
import resource
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import jsonify_logs
before = peak()
jsonify_logs.main(["logs/r.log"])
print(peak() - before)
"""
    shown = run(workplace, "-c", code)
    assert "20,000 trials" in shown.stdout
    assert log.stat().st_size > 19e6
    assert int(shown.stdout.split()[-1]) * 1024 < 8e6  # 400 bytes for each trial; in the log it has nearly 1000

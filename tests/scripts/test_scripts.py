"""Behaviour that both scripts share."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.reporting.command_line import moment
from common.trials import TRIAL_MARK
from tests.records import make_record
from tests.scripts.running import ROOT, run, strict, write


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
    assert " HTD " in shown.stdout
    assert " SVD " not in shown.stdout
    both = run(workplace, "analyze_results.py", "--method", "htd", "--method", "svd", "--model", "resnet18", *csvs)
    assert both.stdout.startswith("2 trials of 1 model ")
    for script in ("analyze_results.py", "jsonify_logs.py"):
        refused = run(workplace, script, "--method", "hdt")
        assert refused.returncode == 2
        assert "method='hdt' is unknown (did you mean 'htd'?); allowed: htd, svd, tucker2" in refused.stderr
    assert not list((workplace / "logs").glob("*.json"))
    assert run(workplace, "jsonify_logs.py", "--logs", "logs", "--model", "vgg16").returncode == 0
    assert [trial["model"] for trial in strict(workplace / "logs" / "mixed-run.json")["trials"]] == ["vgg16"]


def test_since_may_name_a_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        assert moment("2026-11-30T12:00:00+02:00") == moment("2026-11-30T10:00:00Z") == moment("2026-11-30T05:00:00")
    time.tzset()
    with pytest.raises(argparse.ArgumentTypeError, match="it must be a date"):
        moment("0001-01-01T00:00+05:00")


@pytest.mark.parametrize("script", ["analyze_results.py", "jsonify_logs.py"])
def test_a_pipe_is_no_log(script: str, workplace: Path) -> None:
    os.mkfifo(workplace / "pipe.log")
    refused = run(workplace, script, "pipe.log")
    assert refused.returncode != 0
    assert "pipe.log is no file (a pipe or a device)" in refused.stderr


def test_since_selects_later_trials(workplace: Path) -> None:
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
        assert (refused.returncode, refused.stderr) == (2, "No trial matches --since as given; leave it out.\n")
        refused = run(workplace, script, "--since", "yesterday")
        assert refused.returncode == 2
        assert "since=yesterday is not allowed; it must be a date" in refused.stderr


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

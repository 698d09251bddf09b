from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.trials import (
    TRIAL_MARK,
    Skipped,
    TrialRecord,
    TrialWriter,
    iter_entries,
    iter_trials,
    read_log,
    summary_line,
)
from common.trials.best import final_metric, is_accepted
from tests.records import make_record

ROOT = Path(__file__).parents[2]


def write_log(folder: Path, *records: TrialRecord) -> Path:
    with TrialWriter(folder, records[0].run) as writer:
        for record in records:
            writer.write(record)
    return writer.path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    records = [make_record(trial=0), make_record(trial=1, status="failed", error="out of\nmemory", latency=None)]
    path = write_log(tmp_path / "deep" / "logs", *records)
    assert path == tmp_path / "deep" / "logs" / "resnet18-cifar10.log"
    assert read_log(path) == (records, [])


def test_the_log_has_lines_for_people(tmp_path: Path) -> None:
    path = write_log(tmp_path, make_record(trial=12))
    shown = [line for line in path.read_text().splitlines() if not line.startswith(TRIAL_MARK)]
    assert len(shown) == 1
    assert "trial 12 ok" in shown[0]
    assert f"params {1_437_022 / 11_181_642 - 1:+.1%}" in shown[0]
    assert "81.23% -> 93.12% -> 94.71%" in shown[0]
    assert "1.93x" in shown[0]


def test_a_failed_trial_says_why() -> None:
    assert summary_line(make_record(trial=3, status="failed", error="no memory")) == "trial 3 failed: no memory"


def test_a_later_record_replaces_an_earlier_one(tmp_path: Path) -> None:
    tested = make_record(trial=0, metrics={"finetuned": {"accuracy": 0.94}, "test": {"accuracy": 0.93}})
    path = write_log(tmp_path, make_record(trial=0), make_record(trial=1), tested)
    trials, skipped = read_log(path)
    assert [record.trial for record in trials] == [0, 1]
    assert trials[0] == tested
    assert not skipped
    assert [record.trial for record in iter_trials(path, [])] == [0, 1, 0]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path, number: float) -> None:
    record = make_record(metrics={"raw": {"accuracy": number}}, details={"losses": [1.0, number]})
    path = write_log(tmp_path, record)
    line = next(line for line in path.read_text().splitlines() if line.startswith(TRIAL_MARK))
    held = json.loads(line.removeprefix(TRIAL_MARK), parse_constant=lambda name: pytest.fail(name))
    assert held["metrics"]["raw"]["accuracy"] is None
    assert held["details"]["losses"] == [1.0, None]
    trials, _ = read_log(path)
    assert final_metric(trials[0]) is None
    assert not is_accepted(trials[0], 0.5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 99}, "schema version 99"),
        ({"schema": None}, "schema version None"),
        ({"params": None}, "'params'"),
        ({"params": "many"}, "'params'"),
        ({"trial": True}, "'trial'"),
        ({"status": "done"}, "'done'"),
        ({"metrics": []}, "'metrics'"),
        ({"seed": 10**400}, "'seed'"),
        ({"seconds": 10**400}, "'seconds'"),
    ],
)
def test_a_wrong_field_is_reported_with_its_line(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = write_log(tmp_path, make_record(trial=0))
    broken = json.loads(make_record(trial=1).to_line()) | change
    with path.open("a") as file:
        file.write(f"{TRIAL_MARK}{json.dumps(broken)}\n")
    trials, skipped = read_log(path)
    assert [record.trial for record in trials] == [0]
    assert [entry.line for entry in skipped] == [3]  # after the two lines of trial 0
    assert reason in skipped[0].reason
    assert "line 3" in str(skipped[0])


@pytest.mark.parametrize("name", ["model", "baseline", "seconds", "schema"])
def test_a_missing_field_is_reported_by_name(tmp_path: Path, name: str) -> None:
    values = json.loads(make_record().to_line())
    del values[name]
    path = tmp_path / "x.log"
    path.write_text(f"a note\n{TRIAL_MARK}{json.dumps(values)}\n")
    trials, skipped = read_log(path)
    assert not trials
    assert skipped[0].line == 2
    assert name in skipped[0].reason


def test_optional_and_unknown_fields(tmp_path: Path) -> None:
    values = json.loads(make_record().to_line())
    for name in ("git_commit", "error", "details"):
        del values[name]
    assert TrialRecord.from_dict(values | {"added_later": 1}) == make_record(git_commit=None)


@pytest.mark.parametrize("text", ["TRIAL ", "TRIAL [1, 2]", "TRIAL 12", "TRIAL {}", 'TRIAL "a"', "TRIAL \xff"])
def test_no_bad_line_stops_the_reader(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.log"
    good = f"{TRIAL_MARK}{make_record().to_line()}\n".encode()
    path.write_bytes(text.encode("latin-1") + b"\n" + good)
    trials, skipped = read_log(path)
    assert len(trials) == 1
    assert [entry.line for entry in skipped] == [1]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_bytes_of_another_encoding_are_not_lost_silently(tmp_path: Path, encoding: str) -> None:
    log, skipped = tmp_path / "r.log", list[Skipped]()
    log.write_text(f"{TRIAL_MARK}{make_record().to_line()}\n" * 2, encoding=encoding)
    entries = list(iter_entries(log, skipped))
    if encoding == "utf-16":
        assert [str(line) for line in skipped] == [
            "r.log, line 1: the file is UTF-16, and nothing of it was read; save it as UTF-8"
        ]
    else:
        assert not skipped
        texts = [log.read_bytes()[entry.offset :][: entry.size] for entry in entries]
        assert [TrialRecord.from_line(text) for text in texts] == [make_record()] * 2


@pytest.mark.parametrize("cut", [1, 5, 40, 700])
def test_a_torn_last_line_costs_that_trial_only(tmp_path: Path, cut: int) -> None:
    path = write_log(tmp_path, *(make_record(trial=n, model="ünet – 網") for n in range(3)))
    path.write_bytes(path.read_bytes()[: -1 - cut])
    trials, skipped = read_log(path)
    assert [record.trial for record in trials] == [0, 1]
    assert [(entry.line, entry.reason) for entry in skipped] == [(6, "torn: the record is not complete")]
    write_log(tmp_path, make_record(trial=3, model="ünet – 網"))  # a new writer continues the same file
    trials, skipped = read_log(path)
    assert [record.trial for record in trials] == [0, 1, 3]
    assert [entry.line for entry in skipped] == [6]


def test_a_record_that_lacks_only_its_newline_is_whole(tmp_path: Path) -> None:
    path = write_log(tmp_path, make_record(trial=0))
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    write_log(tmp_path, make_record(trial=1))
    trials, skipped = read_log(path)
    assert [record.trial for record in trials] == [0, 1]
    assert not skipped


WRITE_FOREVER = """
import itertools, sys
from common.trials import TrialWriter
from tests.records import make_record

writer = TrialWriter(sys.argv[1], "killed")
for trial in itertools.count():
    writer.write(make_record(run="killed", trial=trial))
    print(trial, flush=True)
"""


def test_sigkill_loses_no_trial_that_was_written(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    confirmed = [int(child.stdout.readline()) for _ in range(20)]
    child.send_signal(signal.SIGKILL)
    confirmed += [int(line) for line in child.stdout.read().splitlines()]
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL

    path = tmp_path / "killed.log"
    with TrialWriter(tmp_path, "killed") as writer:
        writer.write(make_record(run="killed", trial=1_000_000))
    trials, skipped = read_log(path)
    assert {*confirmed, 1_000_000} <= {record.trial for record in trials}
    assert confirmed == list(range(len(confirmed)))
    assert len(skipped) <= 1


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x"])
def test_a_run_must_name_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="run="):
        TrialWriter(tmp_path, name)


def test_a_record_of_another_run_is_refused(tmp_path: Path) -> None:
    with TrialWriter(tmp_path, "mine") as writer, pytest.raises(ValueError, match="another"):
        writer.write(make_record(run="another"))
    assert read_log(tmp_path / "mine.log") == ([], [])


def test_a_note_stays_one_line(tmp_path: Path) -> None:
    with TrialWriter(tmp_path, "n") as writer:
        writer.note("two\nlines\nTRIAL {}")
    assert len(writer.path.read_text().splitlines()) == 1
    assert read_log(writer.path) == ([], [])


def test_parts_are_read_by_the_keys_of_the_log_too() -> None:
    record = make_record()
    assert record.baseline["params"] == record.baseline.params
    with pytest.raises(KeyError, match="nothing"):
        record.baseline["nothing"]

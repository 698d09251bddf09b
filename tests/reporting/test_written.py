"""What is written: whole files or none, and no cell that a spreadsheet would run."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

import analyze_results
from common.reporting.frame import Trials
from common.reporting.tables.networks import runs_table
from common.reporting.tables.table import FORMULAS, csv_text
from common.reporting.tables.trials import trials_frame
from common.trials import TrialWriter
from tests.records import make_record


def test_no_cell_of_a_csv_file_is_a_formula() -> None:
    names = [f"{sign}cmd|' /C calc'!A0" for sign in FORMULAS]
    records = [
        make_record(run=name, dataset="a\rb", model=name, rule=name, git_commit=name, params=1000) for name in names
    ]
    trials = Trials.of(records)
    for raw in (runs_table(trials, Path()).raw, trials_frame(trials, 0.99)):
        rows = list(csv.DictReader(io.StringIO(csv_text(raw), newline="")))
        assert len(rows) == len(names)
        assert rows[0].keys() == set(map(str, raw.columns))
        texts = [value for row in rows for value in row.values() if value]
        begin = [text for text in texts if text.startswith(FORMULAS)]
        assert not [text for text in begin if not text.removeprefix("-").replace(".", "").isdigit()]
        assert all(f"'{name}" in {row["Run"] for row in rows} for name in names)
        assert {row["Params Red."][:3] for row in rows if "Params Red." in row} <= {"-0."}  # numbers stay numbers


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TrialWriter(tmp_path, "r") as writer:
        writer.write(make_record(run="r"))
        command = [str(writer.path), "--out", str(tmp_path / "out")]
        command += [word for kind in ("csv", "md", "tex", "html") for word in ("--format", kind)]
        monkeypatch.setattr(analyze_results, "draw", lambda *_: iter(()))
        assert analyze_results.main(command) == 0
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert {"report.html", "trials.csv", "summary.tex"} <= set(before)
        writer.write(make_record(run="r", trial=1, params=1000))
    write = Path.write_bytes

    def fail_at(name: str) -> Any:
        def write_half(self: Path, content: bytes) -> int:
            if name not in self.name:
                return write(self, content)
            write(self, content[: len(content) // 2])
            raise OSError("no space left on device")

        return write_half

    for name in ("summary.csv", "report.html"):
        monkeypatch.setattr(Path, "write_bytes", fail_at(name))
        assert analyze_results.main(command) == 2
        monkeypatch.undo()
        monkeypatch.setattr(analyze_results, "draw", lambda *_: iter(()))
        assert (tmp_path / "out" / name).read_bytes() == before[name]
        assert {path.name for path in (tmp_path / "out").iterdir()} == set(before)

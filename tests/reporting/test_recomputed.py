"""Every table of one run is computed again from its log, without the suite, and compared in all five forms."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import analyze_results
from common.reporting.frame import Trials
from common.reporting.html.report import report_page
from common.reporting.runs import Log
from common.reporting.tables import all_tables
from common.trials import TrialWriter
from tests.make_logs import METHODS, NETWORKS, make_trials
from tests.reporting.recomputed import TABLES, Row, read
from tests.reporting.recomputed_text import texts
from tests.reporting.test_formats import Grid, HtmlTables, filled, from_latex, from_markdown


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run like that of a notebook: rank rules and a search of every method, with failed and pruned trials."""
    with TrialWriter(tmp_path_factory.mktemp("logs"), "one-run") as writer:
        for place, method in enumerate(METHODS):
            for record in make_trials(NETWORKS[0], method, place, 16):
                writer.write(record.replace(run=writer.run, trial=100 * place + record.trial, seed=0))
    return writer.path


@pytest.fixture(scope="module")
def expected(log: Path) -> dict[str, tuple[list[Row], Grid]]:
    trials = read(log)
    assert {trial["status"] for trial in trials} == {"ok", "pruned", "failed"}
    rows = {name: compute(trials) for name, compute in TABLES.items()}
    return {name: (found, texts(name, found)) for name, found in rows.items()}


def from_console(text: str, title: str) -> Grid:
    """The table below its title. The line below the headings says where columns begin and end."""
    lines = text[text.index(f"\n{title}") :].splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("---"))
    spans = [found.span() for found in re.finditer("-+", lines[place])]
    end = lines.index("", place)
    return [[line[slice(*span)].strip() for span in spans] for line in (lines[place - 1], *lines[place + 1 : end])]


def forms(name: str, folder: Path, page: HtmlTables, console: str) -> Iterator[tuple[str, Grid]]:
    yield "html", page.found[f"table-{name}"]
    if name != "trials":
        yield "md", from_markdown((folder / f"{name}.md").read_text())
        yield "tex", filled(from_latex((folder / f"{name}.tex").read_text()))
    if name in analyze_results.ON_CONSOLE:
        yield "console", filled(from_console(console, {"summary": "Summary"}.get(name, "Methods by budget")))


def same(cell: str, value: object) -> bool:
    if isinstance(value, bool | str):
        return cell == str(value)
    assert isinstance(value, float | int)
    return cell == "" if math.isnan(value) else cell != "" and math.isclose(float(cell), value, abs_tol=1e-12)


def test_every_table_of_a_run_computed_again_is_equal_in_every_form(
    log: Path, expected: dict[str, tuple[list[Row], Grid]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = [word for kind in ("csv", "md", "tex") for word in ("--format", kind)]
    assert analyze_results.main([str(log), "--out", str(tmp_path), *kinds]) == 0
    console = capsys.readouterr().out
    trials = Trials.read([Log(log)])
    page = HtmlTables()
    page.feed(report_page(trials, 0.99, all_tables(trials), {}, "", "", []))
    assert {path.stem for path in tmp_path.iterdir()} == set(TABLES)
    compared = 0
    for name, (rows, wanted) in expected.items():
        for form, found in forms(name, tmp_path, page, console):
            assert found == wanted, (name, form)
        with (tmp_path / f"{name}.csv").open(encoding="utf-8") as file:
            cells = list(csv.DictReader(file))
        assert len(cells) == len(rows), name
        for line, row in zip(cells, rows, strict=True):
            assert set(line) == set(row), name
            assert all(same(line[column], value) for column, value in row.items()), (name, line, row)
            compared += len(row)
    assert compared > 2000

"""Every table says the same in every format, and ``trials.csv`` holds what the logs hold."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from common.reporting.frame import Trials
from common.reporting.html.report import report_page
from common.reporting.runs import Log
from common.reporting.tables import all_tables
from common.reporting.tables.table import Table, csv_text
from common.reporting.tables.trials import trials_frame
from tests.make_logs import NETWORKS, write_logs

Grid = list[list[str]]
SIGNS = {r"$-$": "-", r"$\pm$": "±", r"$\leq$": "≤", r"$\geq$": "≥", r"$\times$": "×", r"$\to$": "→", "$<$": "<"}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_logs(tmp_path_factory.mktemp("logs"), 24, [NETWORKS[0]])


@pytest.fixture(scope="module")
def trials(logs: list[Path]) -> Trials:
    return Trials.read([Log(path) for path in logs])


@pytest.fixture(scope="module")
def tables(trials: Trials, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Table], Path]:
    folder, found = tmp_path_factory.mktemp("tables"), all_tables(trials)
    for table in found:
        table.write(folder, ("csv", "md", "tex"))
    return found, folder


def from_markdown(text: str) -> Grid:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (lines[0], *lines[2:])]


def from_latex(text: str) -> Grid:
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    body = re.sub(r"\\(toprule|midrule|addlinespace)\n?", "", body)
    for sign, plain in SIGNS.items():
        body = body.replace(sign, plain)
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)&", line)] for line in body.split(r"\\") if line.strip()]
    return [[re.sub(r"\\([&%$#_{}])", r"\1", cell) for cell in row] for row in rows]


class HtmlTables(HTMLParser):
    """The cells of each table of the page, by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Grid] = {}
        self._name = ""
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._name = dict(attrs)["id"] or ""
            self.found[self._name] = []
        elif tag == "tr" and self._name:
            self.found[self._name].append([])
        elif tag in ("td", "th") and self._name:
            self.found[self._name][-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")
        if tag == "table":
            self._name = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[self._name][-1][-1] += data


def filled(grid: Grid) -> Grid:
    """A first cell that is blank, since it repeats, filled again."""
    for above, row in pairwise(grid):
        row[0] = row[0] or above[0]
    return grid


def test_a_table_says_the_same_in_every_format(tables: tuple[list[Table], Path], trials: Trials) -> None:
    found, folder = tables
    page = HtmlTables()
    page.feed(report_page(trials, 0.99, found, {}, "", "", []))
    assert {table.name for table in found} == {path.stem for path in folder.iterdir()}
    assert len(found) == 8
    for table in found:
        wanted = [list(table.text.columns), *table.text.to_numpy().tolist()]
        assert from_markdown((folder / f"{table.name}.md").read_text()) == wanted, table.name
        assert filled(from_latex((folder / f"{table.name}.tex").read_text())) == wanted, table.name
        assert page.found[f"table-{table.name}"] == wanted, table.name
        console = table.console().splitlines()
        assert [re.split(r"\s{2,}", line.strip()) for line in console[:1]] == [wanted[0]], table.name
        for line, row in zip(console[2:], wanted[1:], strict=True):
            assert all(cell in line for cell in row[1:]), table.name


def test_the_numbers_in_csv_files_are_those_that_the_text_rounds(tables: tuple[list[Table], Path]) -> None:
    found, folder = tables
    compared = 0
    for table in found:
        with (folder / f"{table.name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for head, column in table.keys.items():
            for row, text in zip(rows, table.text[head], strict=True):
                said = re.match(r"([-+]?[\d,.]+)(%|x|)", text)
                if not row[column] or said is None:
                    assert (row[column], text) == ("", "-"), (table.name, head)
                    continue
                shown = float(said[1].replace(",", ""))
                scale = 100 if said[2] == "%" else unit(head, text)
                digits = len(said[1].partition(".")[2])
                assert math.isclose(float(row[column]) * scale, shown, abs_tol=0.5001 * 10**-digits), (head, text)
                compared += 1
    assert compared > 500


def unit(head: str, text: str) -> float:
    """What a number in a CSV file is multiplied by, from the unit in the heading or behind the number."""
    if " ms" in text:
        return 1000
    return next((1 / size for name, size in {"(K)": 1e3, "(M)": 1e6, "(G)": 1e9}.items() if name in head), 1.0)


def test_trials_csv_holds_what_the_logs_hold(trials: Trials, logs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "trials.csv").write_text(csv_text(trials_frame(trials, 0.99)))
    with (tmp_path / "trials.csv").open(encoding="utf-8") as file:
        rows = {(row["Run"], row["Trial"]): row for row in csv.DictReader(file)}
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for path in logs:
        for line in path.read_text().splitlines():
            if line.startswith("TRIAL "):
                values = json.loads(line[6:])
                last[values["run"], str(values["trial"])] = values
    assert set(rows) == set(last)
    for place, row in rows.items():
        trial = last[place]
        stages = {name: held[trial["metric"]] for name, held in trial["metrics"].items() if name != "test"}
        assert (row["Status"], row["Rule"], row["Seed"]) == (trial["status"], trial["rule"], str(trial["seed"]))
        for name, head in (("raw", "Raw"), ("recalibrated", "Recalibrated"), ("finetuned", "Fine-tuned")):
            assert row[head] == (repr(stages[name]) if name in stages else "")
        end = [stages[name] for name in ("raw", "recalibrated", "finetuned") if name in stages]
        assert row["Validation"] == (repr(end[-1]) if end else "")
        dense = trial["baseline"]
        good = trial["status"] == "ok" and end[-1] >= 0.99 * dense["metrics"]["validation"][trial["metric"]]
        assert row["Accepted"] == ("yes" if good else "no")
        if trial["params"]:
            assert math.isclose(float(row["Params Red."]), trial["params"] / dense["params"] - 1, rel_tol=1e-9)
            assert math.isclose(float(row["MACs Red."]), trial["macs"] / dense["macs"] - 1, rel_tol=1e-9)
        timing = trial["latency"]
        assert row["Speedup"] == (repr(timing["speedup"]) if timing and timing["speedup"] else "")

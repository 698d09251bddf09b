"""Open the report in a real browser: it renders, sorts its tables and logs nothing to the console."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from common.reporting import figures
from common.reporting.figures.style import render
from common.reporting.frame import Trials
from common.reporting.html.report import report_page
from common.reporting.tables import all_tables
from common.reporting.tables.table import Table
from tests.records import make_baseline, make_record

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here (Debian: apt-get install chromium)")
PROBE = """
<script>
const seen = [];
const rows = (id) => [...document.querySelectorAll(`#${id} tbody tr`)];
for (const [id, column] of %s) {
  const heading = document.querySelectorAll(`#${id} th`)[column];
  for (let click = 0; click < 2; click += 1) {
    heading.querySelector("button").click();
    seen.push([heading.getAttribute("aria-sort"), rows(id).map((row) => row.cells[column].textContent)]);
  }
}
const pictures = [...document.images].map((image) => [image.id, image.complete && image.naturalWidth > 0]);
const result = document.createElement("pre");
result.id = "result";
result.textContent = JSON.stringify({ seen, pictures, sorted: document.querySelectorAll("th[aria-sort]").length });
document.body.append(result);
</script>
"""


def browse(page: str, folder: Path) -> tuple[str, str]:
    """Return the page as the browser renders it, and the messages on its console."""
    assert BROWSER is not None
    path = folder / "page.html"
    path.write_bytes(page.encode(errors="backslashreplace"))
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    shown = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=True,
        env={**os.environ, "HOME": str(folder)},
    )
    return shown.stdout, "\n".join(line for line in shown.stderr.splitlines() if "CONSOLE" in line)


def probe(page: str, folder: Path, *columns: tuple[str, int]) -> dict[str, Any]:
    """Return the page after two clicks on a column of each of the tables."""
    html, console = browse(page.replace("</body>", f"{PROBE % json.dumps(columns)}</body>"), folder)
    assert console == ""
    (found,) = re.findall(r'<pre id="result">(.*?)</pre>', html)
    result: dict[str, Any] = json.loads(unescape(found))
    return result


def example() -> tuple[list[Table], str]:
    other = make_baseline(metrics={"validation": {"dice": 0.9}})
    records = [
        make_record(params=10_000_000),
        make_record(trial=1, model="vgg <16> & 網", params=900_000, latency=None),
        make_record(trial=2, model="unet", metric="dice", metrics={"raw": {"dice": 0.9}}, baseline=other),
    ]
    trials = Trials.of(records)
    tables = all_tables(trials)
    picture = render(figures.radar(trials), "png")
    page = report_page(
        tables, {"radar": ("A <caption>", picture)}, "3 trials", "python it.py '<b>'", ["r.log, line 3: torn"]
    )
    return tables, page


@needs_browser
def test_it_renders_sorts_and_raises_no_error(tmp_path: Path) -> None:
    tables, page = example()
    summary = tables[0]
    columns = {name: place for place, name in enumerate(summary.text.columns)}
    result = probe(page, tmp_path, ("summary", columns["Speedup"]), ("summary", columns["Parameters"]), ("summary", 0))
    assert result["pictures"] == [["radar", True]]
    assert result["sorted"] == 1  # only the last clicked column is marked as sorted

    def ordered(raw: str, text: str, down: bool) -> list[str]:
        rows = sorted(
            zip(summary.raw[raw], summary.text[text], strict=True),
            key=lambda pair: (bool(pd.isna(pair[0])), 0 if pd.isna(pair[0]) else -pair[0] if down else pair[0]),
        )
        return [shown for _, shown in rows]

    speed, speed_down, params, params_down, names, names_down = result["seen"]
    assert speed == ["ascending", ordered("Speedup", "Speedup", down=False)]
    assert speed_down == ["descending", ordered("Speedup", "Speedup", down=True)]
    assert speed[1][-1] == speed_down[1][-1] == "-"  # not measured, so at the end in both orders
    assert params == ["ascending", ordered("Parameters", "Parameters", down=False)]
    assert params[1][0] == "0.90 M"  # sorted by number; as text, 10.00 M would come first
    assert params_down[1][0] == "11.18 M"
    assert names[1] == sorted(summary.text["Model"])
    assert names_down[1] == sorted(summary.text["Model"], reverse=True)


@needs_browser
def test_a_console_error_would_be_noticed(tmp_path: Path) -> None:
    _, page = example()
    html, console = browse(page.replace("</body>", "<script>throw new Error('probe')</script></body>"), tmp_path)
    assert "probe" in console
    _, console = browse(page.replace("</body>", '<img src="https://example.org/a.png"></body>'), tmp_path)
    assert "Content Security Policy" in console  # the browser loads nothing, whatever the page holds
    assert "<h1>" in html


def test_the_page_loads_nothing_else() -> None:
    _, page = example()
    outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)
    assert outside == ["."]  # the log of records that come from no file
    assert "url(" not in page
    assert "import " not in page


def test_names_are_escaped_and_everything_is_there() -> None:
    tables, page = example()
    assert "vgg &lt;16&gt; &amp; 網 (cifar10)" in page
    assert "<16>" not in page
    assert "&lt;b&gt;" in page
    assert "A &lt;caption&gt;" in page
    assert "r.log, line 3: torn" in page
    for table in tables:
        assert f'<table id="{table.name}">' in page
    assert page == example()[1]  # the same records give the same bytes

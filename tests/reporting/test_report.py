"""Open the report in a real browser: plots, tables, filters, and no word on the console."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from common.reporting import figures
from common.reporting.figures.style import render
from common.reporting.frame import Trials
from common.reporting.html.interactive import SHOWN, page_data, shown_rows
from common.reporting.html.report import LIBRARY, report_page
from common.reporting.tables import all_tables
from common.reporting.tables.table import Table
from tests.records import make_baseline, make_record

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here (Debian: apt-get install chromium)")
TOO_WIDE = """() => [...document.querySelectorAll("body *")].filter((found) =>
  found.getBoundingClientRect().right > window.innerWidth + 1
  && !found.parentElement.closest(".table, .picture, nav, svg, pre")).map((found) => found.outerHTML.slice(0, 80))"""
CUT = """() => [...document.querySelectorAll(".table")].filter((box) => box.scrollWidth > box.clientWidth)
  .map((box) => box.ariaLabel)"""
FILL = {"raw": {"accuracy": 0.95}, "recalibrated": {"accuracy": 0.955}}


def example() -> tuple[list[Table], str]:
    other = make_baseline(metrics={"validation": {"dice": 0.9}})
    counted = make_baseline(images={"validation": 1000}, metrics={"validation": {"accuracy": 0.95}})
    records = [
        make_record(params=10_000_000, baseline=counted),
        make_record(trial=1, model="vgg <16> & 網", params=900_000, latency=None),
        make_record(trial=2, model="unet", metric="dice", metrics={"raw": {"dice": 0.9}}, baseline=other),
        make_record(trial=3, params=2_000_000, method="htd", baseline=counted, metrics=FILL, latency=None),
        make_record(trial=4, status="failed", metrics={}, params=0, macs=0, plan={}, error="<b>out</b> of memory"),
    ]
    trials = Trials.of(records)
    tables = all_tables(trials)
    picture = render(figures.radar(trials), "png")
    pictures = dict.fromkeys(("radar", "pareto", "progress", "methods"), ("A <caption>", picture))
    page = report_page(trials, 0.99, tables, pictures, "4 trials", "python it.py '<b>'", ["r.log, line 3: torn"])
    return tables, page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("report") / "page.html"
    found.write_text(example()[1])
    return found


def visit(browser: Browser, path: Path, said: list[str], width: int = 1400, dark: bool = False) -> Page:
    """Open the page; ``said`` gets every message and error on its console."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    page.set_default_timeout(300_000)  # a busy machine fails no test
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    return page


def shown(page: Page, column: int) -> list[str]:
    cells = f"[...document.querySelectorAll('#table-summary tbody tr')].map((row) => row.cells[{column}].textContent)"
    found: list[str] = page.evaluate(cells)
    return found


@needs_browser
def test_a_point_is_hovered_and_clicked(browser: Browser, path: Path) -> None:
    said: list[str] = []
    page = visit(browser, path, said)
    marks = page.locator("#plot-pareto .points path")
    marks.first.wait_for()
    assert marks.count() == 2  # trials 0 and 3
    page.evaluate("document.getElementById('section-trials').scrollIntoView()")
    places: list[tuple[float, float]] = page.evaluate(
        """[...document.querySelectorAll("#plot-pareto .scatterlayer .points path")].map((mark) => {
            const box = mark.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; })"""
    )
    smallest = min(places)
    page.mouse.move(smallest[0], smallest[1])
    hover = page.locator("#plot-pareto .hovertext")
    hover.wait_for()
    text = hover.text_content() or ""
    for part in (
        "trial 3 of resnet18-cifar10",
        "HTD, budget",
        "(validation, n=1000) 95.50% [94.0, 96.6], recalibrated",
        "-82.11%",
    ):
        assert part in text
    page.mouse.click(smallest[0], smallest[1])
    page.locator("#plan tbody tr").first.wait_for()
    assert page.locator("#plan h3").inner_text() == "Plan of trial 3 of resnet18-cifar10"
    assert page.locator("#plan tbody tr").all_inner_texts() == [
        "layer1.0.conv1\tTucker-2\t21 24\t-\t-\t-\t",
        "conv1\tdense\t\t-\t-\t-\tfactoring does not make it smaller",
    ]
    assert page.locator("tr.chosen").get_attribute("id") == "trial-3"
    for plot in ("plot-pareto", "plot-progress"):  # the same trial is ringed in both
        page.wait_for_function(f"document.getElementById('{plot}').data.some((trace) => trace.name === 'chosen')")
    page.locator("#trial-1").click()
    assert page.locator("#plot-model").input_value() == "vgg <16> & 網 (cifar10)"
    page.locator("#trial-4").focus()
    page.keyboard.press("Enter")
    assert "failed, not accepted: <b>out</b> of memory" in page.locator("#plan").inner_text()
    for cost in ("macs_kept", "time_kept"):
        page.select_option("#plot-cost", cost)
    page.close()
    assert said == []


@needs_browser
def test_the_trials_are_filtered(browser: Browser, path: Path) -> None:
    said: list[str] = []
    page = visit(browser, path, said)
    left = "[...document.querySelectorAll('#table-trials tbody tr')].filter((row) => !row.hidden).map((row) => row.id)"
    assert page.locator("#filter-count").inner_text() == "5 of 5 trials"
    page.fill("#filter-text", "resnet18 OK tucker")
    assert page.evaluate(left) == ["trial-0"]
    assert page.locator("#filter-count").inner_text() == "1 of 5 trials"
    page.fill("#filter-text", "")
    page.check("#filter-accepted")
    assert page.evaluate(left) == ["trial-0", "trial-1", "trial-2", "trial-3"]
    page.close()
    assert said == []


@needs_browser
@pytest.mark.parametrize("width", [380, 1400, 2000])
def test_nothing_is_wider_than_the_page(browser: Browser, path: Path, width: int) -> None:
    said: list[str] = []
    page = visit(browser, path, said, width, dark=width == 1400)
    page.locator("#plot-progress .points path").first.wait_for()
    page.locator("#trial-0").click()
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CUT) == []
    label = page.evaluate("getComputedStyle(document.querySelector('#table-summary td'), '::before').content")
    assert label == ('"Model"' if width == 380 else "none")  # on a phone a row is a card
    page.mouse.wheel(0, 4000)
    page.wait_for_function("scrollY > 100")
    assert page.locator("nav").bounding_box()["y"] == 0  # type: ignore[index]
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)") == (
        width == 1400
    )
    page.close()
    assert said == []


CARD = """() => {
  const box = document.querySelector("#table-trials").closest(".table");
  const row = box.querySelector("tbody tr");
  const lines = [...row.cells].filter((cell) => cell.textContent).map((cell) => {
    const style = getComputedStyle(cell);
    const edges = [style.paddingLeft, style.paddingRight, style.columnGap].map(parseFloat);
    const text = document.createRange();
    text.selectNodeContents(cell);
    const label = text.getBoundingClientRect().left - cell.getBoundingClientRect().left - edges[0] - edges[2];
    return [label / (cell.clientWidth - edges[0] - edges[1]), style.textAlign];
  });
  box.scrollTop = 300;
  const head = box.querySelector("thead").getBoundingClientRect();
  return {
    shares: lines.map(([share]) => share),
    sides: [...new Set(lines.map(([, side]) => side))],
    head: head.height / box.clientHeight,
    above: head.top - box.getBoundingClientRect().top,
  };
}"""


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(380, False), (400, True), (600, False)])
def test_on_a_phone_a_card_gives_its_room_to_the_values(browser: Browser, path: Path, width: int, dark: bool) -> None:
    said: list[str] = []
    page = visit(browser, path, said, width, dark)
    card = page.evaluate(CARD)
    (share,) = {round(share, 3) for share in card["shares"]}  # the values of a card stand in one column
    assert 0.2 < share < 0.401  # the labels
    assert card["sides"] == ["left"]
    assert card["head"] < 0.1  # one line, which scrolls sideways and stays in sight
    assert 0 <= card["above"] < 2
    last = page.locator("#table-trials th button").last
    last.click()
    assert page.locator("#table-trials th").last.get_attribute("aria-sort") == "ascending"
    page.locator("#trial-0").click()
    folded = page.locator("#plan .folded").count() == 1  # its headings sort nothing, and a card's lines are labelled
    assert page.locator("#plan thead").is_visible() != folded
    assert folded == (width < 600)
    page.close()
    assert said == []


@needs_browser
def test_paper_has_every_column_and_the_pictures_in_place_of_the_plots(browser: Browser, path: Path) -> None:
    said: list[str] = []
    page = visit(browser, path, said, 1030)  # A4 in landscape, without its margins
    assert not page.locator("#picture-pareto").is_visible()
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") == 1030
    assert page.evaluate(TOO_WIDE.replace(".table, ", "")) == []  # no table reaches over the edge
    for name, there in (("#picture-pareto", True), ("#picture-progress", True), ("#plots", False), ("nav", False)):
        assert page.locator(name).is_visible() == there, name
    display = "(head) => getComputedStyle(head).display"
    assert page.locator("#table-trials th button").first.evaluate(display) == "contents"  # else later sheets lack it
    page.close()
    assert said == []


@needs_browser
def test_it_renders_sorts_and_raises_no_error(browser: Browser, path: Path) -> None:
    said: list[str] = []
    summary, page = example()[0][0], visit(browser, path, said)
    columns = {name: place for place, name in enumerate(summary.text.columns)}
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")

    def clicked(name: str) -> tuple[str | None, list[str]]:
        heading = page.locator("#table-summary th").nth(columns[name])
        heading.locator("button").click()
        return heading.get_attribute("aria-sort"), shown(page, columns[name])

    def ordered(name: str, down: bool) -> list[str]:
        rows = sorted(
            zip(summary.raw[name], summary.text[name], strict=True),
            key=lambda pair: (bool(pd.isna(pair[0])), 0 if pd.isna(pair[0]) else -pair[0] if down else pair[0]),
        )
        return [text for _, text in rows]

    assert clicked("Speedup") == ("ascending", ordered("Speedup", down=False))
    down = clicked("Speedup")
    assert down == ("descending", ordered("Speedup", down=True))
    assert down[1][-1] == "-"  # not measured, so at the end in both orders
    order, params = clicked("Parameters (M)")
    assert (order, params[0]) == ("ascending", "0.90")  # sorted by number; as text, 10.00 would come first
    assert clicked("Parameters (M)")[1][0] == "11.18"
    assert clicked("Model")[1] == sorted(summary.text["Model"])
    assert page.locator("th[aria-sort]").count() == 1  # only the last clicked column is marked as sorted
    page.close()
    assert said == []


@needs_browser
def test_a_console_error_would_be_noticed(browser: Browser, path: Path, tmp_path: Path) -> None:
    said: list[str] = []
    wrong = "<script>throw new Error('probe')</script><img src='https://example.org/a.png'></body>"
    (tmp_path / "wrong.html").write_text(path.read_text().replace("</body>", wrong))
    page = visit(browser, tmp_path / "wrong.html", said)
    page.wait_for_timeout(200)
    page.close()
    assert any("probe" in line for line in said)
    assert any("Content Security Policy" in line for line in said)  # the browser loads nothing


class Ids(HTMLParser):
    """Collects the ids of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name == "id"]


def test_ids_are_unique_and_links_lead_to_them() -> None:
    _, page = example()
    ids = Ids()
    ids.feed(page)
    assert len(ids.found) == len(set(ids.found))
    targets = set(re.findall(r'href="#([^"]+)"', page))
    assert targets
    assert targets <= set(ids.found)


def test_the_page_loads_nothing_else() -> None:
    _, page = example()
    own = page.replace(LIBRARY.read_text(), "")
    outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', own)
    assert outside == ["."]  # the log of records that come from no file
    assert "url(" not in own
    assert "import " not in own


def test_plotly_is_as_published_and_small_enough() -> None:
    """Version 4.1.1 of the npm package plotly.js-basic-dist-min."""
    held = LIBRARY.read_bytes()
    assert hashlib.sha256(held).hexdigest() == PLOTLY
    assert len(held) < 2_000_000


PLOTLY = "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba"


def test_names_are_escaped_and_everything_is_there() -> None:
    tables, page = example()
    assert "vgg &lt;16&gt; &amp; 網 (cifar10)" in page
    assert "<16>" not in page
    assert "&lt;b&gt;" in page
    assert "<b>out" not in page
    assert "A &lt;caption&gt;" in page
    assert "r.log, line 3: torn" in page
    for table in tables:
        assert f'<table id="table-{table.name}">' in page
    assert page == example()[1]  # the same records give the same bytes


def test_of_many_trials_an_even_selection_is_shown_with_the_best() -> None:
    def model(name: str, best: int) -> list[Any]:
        return [make_record(model=name, trial=i, params=900 if i == best else 10**6 + i) for i in range(SHOWN)]

    trials = Trials.of([*model("a", 37), *model("b", 611)])
    rows = shown_rows(trials, 0.99)
    assert SHOWN <= len(rows) <= SHOWN + 8
    assert {37, SHOWN + 611} <= set(rows)
    few = trials.only(model=["a"])
    assert list(shown_rows(few, 0.99)) == list(range(SHOWN))
    assert len(page_data(few, 0.99, few.frame.index)) < 700 * SHOWN

"""``report.html``: tables, pictures and interactive plots in one file that needs no internet connection.

The page is the template ``report.html`` in this folder. This module fills it. The plots are drawn by Plotly's basic
bundle, which the page holds (``plotly-basic.min.js``, 1.2 MB, MIT licence, from the npm package of that name).
"""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.reporting.frame import Trials
from common.reporting.html.interactive import page_data, shown_rows
from common.reporting.tables.table import Table
from common.reporting.tables.trials import trials_table

SECTIONS = (
    ("Summary", ("summary",), ("radar",)),
    ("Trials", ("trials",), ("pareto", "progress")),
    ("Methods", ("budgets", "methods"), ("methods", "stages")),
    ("Searches", ("searches", "sweeps"), ()),
    ("Time on the clock", ("latency", "files"), ("speedups", "times")),
    ("Layers", ("layers",), ("where", "ranks", "spectra")),
    ("Where it comes from", ("runs",), ()),
)
"""Heading, tables and pictures of each section. A picture is listed by the part of its name before the first ``-``."""
INTERACTIVE = ("pareto", "progress")
"""The pictures that a browser replaces by plots. They are shown on paper and where scripts are off."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy: a browser may load nothing but what the page itself holds."""
HERE = Path(__file__)
LIBRARY = HERE.parent / "plotly-basic.min.js"


@dataclass(frozen=True)
class Head:
    """The heading of a column, and whether the column holds numbers."""

    text: str
    is_number: bool


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what a reader sees.
        key: the number by which the cell is sorted; empty if it was not measured, None if the text is the key.
        link: target of the text's link; empty if it has none.
    """

    text: str
    key: str | None = None
    link: str = ""


@dataclass(frozen=True)
class SortableTable:
    """A table as the template shows it."""

    name: str
    title: str
    heads: list[Head]
    rows: list[list[Cell]]
    notes: Sequence[str]
    ids: Sequence[str] = ()

    @classmethod
    def of(cls, table: Table) -> SortableTable:
        """Convert ``table``. The rows of the table of trials get the labels of their trials as ids."""
        names = list(table.text.columns)
        keys = {name: [_key(value) for value in table.raw[raw]] for name, raw in table.keys.items()}
        rows = []
        for place, texts in enumerate(table.text.to_numpy().tolist()):
            cells = [
                Cell(text, keys[name][place] if name in keys else None)
                for name, text in zip(names, texts, strict=True)
            ]
            if table.links:
                cells[0] = Cell(texts[0], link=table.links[place])
            rows.append(cells)
        ids = [f"trial-{row}" for row in table.raw.index] if table.name == "trials" else []
        return cls(table.name, table.title, [Head(name, name in keys) for name in names], rows, table.notes, ids)


def _key(value: object) -> str:
    return "" if pd.isna(value) else str(value)  # type: ignore[call-overload]


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture as the template shows it. Without a PNG, only the caption is shown.

    Attributes:
        name: name of its files.
        caption: text below it.
        png: PNG in base64.
        width: width in pixels of the page. All pictures have the same scale, so that their letters have the same size.
        replaced: whether a plot stands in its place on a screen.
    """

    name: str
    caption: str
    png: str
    width: int
    replaced: bool = False

    @classmethod
    def of(cls, name: str, caption: str, png: bytes) -> EmbeddedPicture:
        """Convert the picture with the content ``png``."""
        width = int.from_bytes(png[16:20]) * 9 // 14
        replaced = bool(png) and name.split("-")[0] in INTERACTIVE
        return cls(name, caption, base64.b64encode(png).decode(), width, replaced)


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    heading: str
    tables: list[SortableTable]
    pictures: list[EmbeddedPicture]

    @property
    def anchor(self) -> str:
        """The target of a link to the section."""
        return "section-" + self.heading.lower().replace(" ", "-")


def report_page(
    trials: Trials,
    keep: float,
    tables: Sequence[Table],
    pictures: Mapping[str, tuple[str, bytes]],
    lead: str,
    command: str,
    skipped: Sequence[str],
) -> str:
    """Return the page as HTML.

    Args:
        trials: the trials for the plots and for the table of all trials.
        keep: a trial is accepted if it kept this fraction of the dense metric.
        tables: result of `common.reporting.tables.all_tables`.
        pictures: name -> caption and PNG.
        lead: a sentence on what was analysed.
        command: the command that makes the page.
        skipped: a line on each reason why lines of the logs were skipped.
    """
    rows = shown_rows(trials, keep)
    tables = [*tables, trials_table(trials, keep, rows)]
    sections = [
        Section(
            heading,
            [SortableTable.of(table) for name in names for table in tables if table.name == name],
            [
                EmbeddedPicture.of(name, *held)
                for kind in kinds
                for name, held in pictures.items()
                if name.split("-")[0] == kind
            ],
        )
        for heading, names, kinds in SECTIONS
    ]
    packages = ", ".join(f"{name} {version(name)}" for name in ("pandas", "matplotlib", "seaborn"))
    environment = Environment(loader=FileSystemLoader(HERE.parent), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html").render(
        sections=[section for section in sections if section.tables or section.pictures],
        policy=Markup(POLICY),
        style=Markup(HERE.with_suffix(".css").read_text()),
        library=Markup(LIBRARY.read_text()),
        script=Markup(HERE.with_suffix(".js").read_text()),
        data=Markup(page_data(trials, keep, rows)),
        lead=lead,
        command=command,
        versions=f"Python {platform.python_version()}, {packages}",
        skipped=skipped,
    )

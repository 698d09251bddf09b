"""``report.html``: tables that can be sorted and pictures in one file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from common.reporting.tables.table import Table

SECTIONS = (
    ("Summary", ("summary",), ("radar", "pareto")),
    ("Methods", ("budgets", "methods"), ("methods", "stages")),
    ("Searches", ("searches", "sweeps"), ("progress",)),
    ("Time on the clock", ("latency",), ("speedups", "times")),
    ("Layers", ("layers",), ("ranks", "spectra")),
    ("Where it comes from", ("runs",), ()),
)
"""Heading, tables and pictures of each section; a picture belongs to the part of its name before the first ``-``."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a browser may load for this page: nothing but what it holds."""


def report_page(
    tables: Sequence[Table], pictures: Mapping[str, tuple[str, bytes]], lead: str, command: str, passed: Sequence[str]
) -> str:
    """The page.

    Args:
        tables: as in `common.reporting.tables.all_tables`.
        pictures: name -> caption and PNG.
        lead: a sentence on what was analysed.
        command: the command that made it.
        passed: what could not be read, one line each.
    """
    here = Path(__file__)
    parts, headings = [], []
    for heading, names, kinds in SECTIONS:
        shown = [_table(table, heading) for name in names for table in tables if table.name == name]
        shown += [
            _picture(name, *held) for kind in kinds for name, held in pictures.items() if name.split("-")[0] == kind
        ]
        if shown:
            anchor = heading.lower().replace(" ", "-")
            headings.append(f'<a href="#{anchor}">{heading}</a>')
            parts.append(f'<section id="{anchor}"><h2>{heading}</h2>{"".join(shown)}</section>')
    versions = ", ".join(f"{name} {version(name)}" for name in ("pandas", "matplotlib", "seaborn"))
    skipped = "".join(f"<li>{escape(line)}</li>" for line in passed)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Low-rank networks</title>
<link rel="icon" href="data:,">
<style>{here.with_suffix(".css").read_text()}</style>
</head>
<body>
<h1>Low-rank networks</h1>
<p>{escape(lead)}</p>
<nav>{"".join(headings)}</nav>
{"".join(parts)}
<h3>This page</h3>
<pre>{escape(command)}</pre>
<p class="notes">Python {platform.python_version()}, {versions}</p>
{f'<h3>Lines that held no usable trial</h3><ul class="notes">{skipped}</ul>' if skipped else ""}
<script>{here.with_suffix(".js").read_text()}</script>
</body>
</html>
"""


def _table(table: Table, above: str) -> str:
    heads = "".join(
        f'<th{" class=number" if name in table.keys else ""}><button type="button">{escape(name)}</button></th>'
        for name in table.text.columns
    )
    keys = {name: table.raw[raw].tolist() for name, raw in table.keys.items()}
    rows = []
    for place, texts in enumerate(table.text.to_numpy().tolist()):
        cells = [
            f"<td{_key(keys[name][place]) if name in keys else ''}>{escape(text)}</td>"
            for name, text in zip(table.text.columns, texts, strict=True)
        ]
        if table.links:
            cells[0] = f'<td><a href="{escape(table.links[place])}">{escape(texts[0])}</a></td>'
        rows.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    title = "" if table.title == above else f"<h3>{escape(table.title)}</h3>"
    return (
        f'{title}<div class="table"><table id="{table.name}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>" + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _key(value: object) -> str:
    """The number by which a cell is sorted; empty where it was not measured."""
    return ' data-key=""' if pd.isna(value) else f' data-key="{value}"'  # type: ignore[call-overload]


def _picture(name: str, caption: str, png: bytes) -> str:
    """All on one scale, so that the letters of all are of one size; the caption alone where there is no picture."""
    if not png:
        return f"<figure><figcaption>{escape(caption)}</figcaption></figure>"
    source, width = base64.b64encode(png).decode(), int.from_bytes(png[16:20]) * 9 // 14
    return (
        f'<figure><div class="picture"><img id="{escape(name)}" alt="{escape(caption)}" width="{width}" '
        f'src="data:image/png;base64,{source}"></div><figcaption>{escape(caption)}</figcaption></figure>'
    )

"""A table as raw numbers and as text, and how it is printed and written to files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from common.display import Display, Displayed
from common.files import write_whole
from common.reporting.intervals import limits_text

NOT_MEASURED = "-"
TABLE_FORMATS = ("csv", "md", "tex")
CHANGES = ("Params Red.", "MACs Red.")
"""Columns of removed fractions, which are shown as changes."""
FORMULAS = ("=", "+", "-", "@", "\t")
"""Beginnings of a cell that a spreadsheet runs."""
IN_LATEX = {"±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "×": r"$\times$", "→": r"$\to$", "<": "$<$", ">": "$>$"}


def count_unit(values: Iterable[float]) -> tuple[str, float]:
    """The unit for a column of counts and its size: the largest in which the least of them is at least 0.1."""
    least = min((value for value in values if value > 0), default=0.0)
    units = (("G", 1e9), ("M", 1e6), ("K", 1e3))
    return next(((unit, size) for unit, size in units if least >= size / 10), ("", 1.0))


def in_unit(count: float, size: float) -> str:
    """Format a count in a unit of this size, e.g. ``1.44``. Without a unit it has no decimals."""
    return f"{count / size:,.2f}" if size > 1 else f"{count:,.0f}"


def change(removed: float) -> str:
    """Format a removed fraction as a change: 0.8715 becomes ``-87.15%``."""
    return f"{-removed:+.2%}" if round(removed, 4) else "0.00%"


def percentage(value: float) -> str:
    """Format a fraction as a percentage with two decimals."""
    return f"{value:.2%}"


def points(difference: float) -> str:
    """Format a difference of two fractions in percentage points, e.g. ``-0.12``."""
    return f"{100 * difference:+.2f}"


def megabytes(size: float) -> str:
    """Format bytes as megabytes with at least three significant digits."""
    return f"{size / 1e6:#.3g} MB" if size < 99.5e6 else f"{size / 1e6:,.0f} MB"


def times(value: float) -> str:
    """Format a ratio, e.g. ``1.93x``."""
    return f"{value:.2f}x"


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds with at least three significant digits."""
    return f"{seconds * 1000:#.3g} ms" if seconds < 0.0995 else f"{seconds * 1000:,.0f} ms"


def shown(value: Any, shape: Callable[[Any], str] = str) -> str:
    """Format ``value``; a dash if it was not measured."""
    return NOT_MEASURED if pd.isna(value) else shape(value)


@dataclass(frozen=True)
class Table(Displayed):
    """A table of a report.

    Attributes:
        name: name of its files, without a suffix.
        title: its heading.
        raw: the measured numbers, for the CSV file and for sorting.
        text: the same rows as text.
        notes: sentences that a reader needs to understand it.
        keys: text column -> raw column by which it is sorted. Other columns are sorted by their text.
        spare: text columns that are left out on a narrow terminal, in this order.
        links: link of each cell of the first column; empty if it has none.
    """

    name: str
    title: str
    raw: pd.DataFrame
    text: pd.DataFrame
    notes: Sequence[str] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    spare: Sequence[str] = ()
    links: Sequence[str] = ()

    def display(self) -> Display:
        """The title, the text and the notes. A first cell like the one above it stays blank."""
        text = self._without_repeats()
        return Display(self.title, list(text.columns), text.to_numpy().tolist(), notes=self.notes)

    def console(self, width: float = math.inf) -> str:
        """Format the table for a terminal of this ``width``. A first cell like the one above it stays blank."""
        text = self._without_repeats()
        for left_out in range(len(self.spare) + 1):
            kept = text.drop(columns=list(self.spare[:left_out]))
            lines = self._lines(kept, "simple")
            if len(lines.partition("\n")[0]) <= width:
                break
        return lines + (f"\n(too narrow for: {', '.join(self.spare[:left_out])})" if left_out else "")

    def markdown(self) -> str:
        """Format the table as a page in Markdown. A ``|`` in a cell is escaped, since it would end the cell."""
        cells = self.text.map(lambda text: text.replace("|", "\\|"))
        return f"# {self.title}\n\n{self._lines(cells, 'github')}\n" + "".join(
            ["\n", *(f"- {note}\n" for note in self.notes)]
        )

    def latex(self, caption: str = "", label: str = "") -> str:
        """Format the table as a ``tabular`` with the rules of booktabs. The notes are comments above it.

        A first cell like the one above it stays blank, and a small space separates such blocks of rows.

        Args:
            caption: caption in LaTeX. With it or a label, the tabular stands in a ``table``. ``{title}`` and
                ``{name}`` become those of this table.
            label: the same for the label.
        """
        text = self._without_repeats().map(_one_line).reset_index(drop=True)
        firsts = text.index[text.iloc[:, 0] != ""]
        blocks = [row for row in firsts if row > 0 and len(firsts) < len(text)]
        style = text.style.hide(axis="index").format(_in_latex, escape="latex")
        style.format_index(_in_latex, axis="columns", escape="latex")
        style.format(_after_space, subset=(blocks, list(text.columns[:1])), escape="latex")
        sides = "".join("r" if name in self.keys else "l" for name in text.columns)
        above = (self.title, *self.notes, r"\usepackage{booktabs}")
        comments = "".join(f"% {_one_line(line)}\n" for line in above)
        tabular = style.to_latex(column_format=sides, hrules=True)
        if not caption and not label:
            return comments + tabular
        title = _in_latex(re.sub(r"([&%$#_{}])", r"\\\1", self.title))
        filled = [text.replace("{title}", title).replace("{name}", self.name) for text in (caption, label)]
        heads = "".join(
            f"\\{what}{{{text}}}\n" for what, text in zip(("caption", "label"), filled, strict=True) if text
        )
        return f"{comments}\\begin{{table}}\n\\centering\n{heads}{tabular}\\end{{table}}\n"

    def _without_repeats(self) -> pd.DataFrame:
        text = self.text.copy()
        text[text.columns[0]] = text.iloc[:, 0].where(text.iloc[:, 0] != text.iloc[:, 0].shift(), "")
        return text

    def _lines(self, text: pd.DataFrame, kind: str) -> str:
        """Format ``text`` in one of tabulate's formats, with columns of numbers aligned to the right."""
        text = text.map(_one_line)
        sides = ["right" if name in self.keys else "left" for name in text.columns]
        return tabulate(
            text.to_numpy().tolist(), list(text.columns), tablefmt=kind, disable_numparse=True, colalign=sides
        )

    def write(self, folder: Path, formats: Sequence[str], caption: str = "", label: str = "") -> list[Path]:
        """Write one file for each of ``formats`` (see `TABLE_FORMATS`). See `latex` for ``caption`` and ``label``.

        Raises:
            OSError: the folder cannot be written.
        """
        written = []
        for kind in TABLE_FORMATS:
            if kind not in formats:
                continue
            path = folder / f"{self.name}.{kind}"
            make: dict[str, Callable[[], str]] = {
                "csv": partial(csv_text, self.raw),
                "md": self.markdown,
                "tex": partial(self.latex, caption, label),
            }
            content = make[kind]()
            # A lone surrogate (from an undecodable file name) has no UTF-8 form.
            write_whole(path, content.encode(errors="backslashreplace"))
            written.append(path)
        return written


def csv_text(raw: pd.DataFrame) -> str:
    """The content of a CSV file. A reduction has the sign that it has everywhere: -0.87 is 87% fewer.

    A spreadsheet runs a cell as a formula if its text begins like one. Such a text gets an apostrophe in front.
    """
    reduced = [name for name in CHANGES if name in raw]
    texts = [name for name in raw.columns if not pd.api.types.is_numeric_dtype(raw[name])]
    changed = {name: 0.0 - raw[name] for name in reduced} | {name: raw[name].map(_inert) for name in texts}
    return raw.assign(**changed).to_csv(index=False, lineterminator="\n")


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    mark = "'" if value.startswith(FORMULAS) else ""
    return mark + value.replace("\r", " ")  # pandas would not quote a "\r"


def _one_line(text: str) -> str:
    """Remove the line ends of ``text``, since they would end the row of a table."""
    return " ".join(text.splitlines())


def _in_latex(escaped: object) -> str:
    """Replace the signs in an escaped text that LaTeX needs as mathematics."""
    text = re.sub(r"(?:^|(?<= ))-(?=\d)", "$-$", str(escaped))
    for sign, command in IN_LATEX.items():
        text = text.replace(sign, command)
    return text


def _after_space(text: object) -> str:
    """Format the first cell of a row that has a small space above it."""
    return f"\\addlinespace\n{_in_latex(text)}"


Shape = Callable[[Any], str]


def as_text(raw: pd.DataFrame, shapes: Mapping[str, Shape], of: str | None = None) -> pd.DataFrame:
    """Format the columns of ``raw`` that ``shapes`` names.

    Args:
        raw: numbers. Column ``<name> std`` is the spread of column ``<name>``, and ``<name> n`` the number of values
            of the mean. ``<name> low`` and ``<name> high`` are the limits of the 95% interval of a single value.
        shapes: column -> function that formats a value of it.
        of: column that states how many values each mean should have. A mean of fewer says so, e.g. ``(1 of 3)``.
    """
    columns = {}
    nothing = pd.Series(math.nan, index=raw.index)
    for name, shape in shapes.items():
        beside = [raw.get(f"{name} {part}", nothing) for part in ("std", "low", "high", "n")]
        beside.append(raw[of] if of else nothing)
        columns[name] = [_cell(shape, *values) for values in zip(raw[name], *beside, strict=True)]
    return pd.DataFrame(columns, columns=list(shapes), dtype=str)


def _cell(shape: Shape, value: Any, std: float, low: float, high: float, number: float, total: float) -> str:
    if pd.isna(value):
        return NOT_MEASURED
    spread = limits_text(low, high) if pd.isna(std) else f" ± {shape(std).lstrip('-+')}"
    return shape(value) + spread + (f" ({number:.0f} of {total:.0f})" if number < total else "")

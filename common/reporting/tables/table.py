"""A table of raw numbers with the text that a reader sees, and the files it becomes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

NOT_MEASURED = "-"
TABLE_FORMATS = ("csv", "md", "tex")
IN_LATEX = {"±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "×": r"$\times$", "→": r"$\to$", "<": "$<$", ">": "$>$"}


def human_count(value: float, units: str = "KMG") -> str:
    """``value`` in the greatest of ``units`` in which it is at least 0.1, e.g. ``1.44 M`` or ``0.31 G``."""
    sizes = {"K": 1e3, "M": 1e6, "G": 1e9}
    unit = next((u for u in reversed(units) if value >= sizes[u] / 10), "")
    return f"{value / sizes[unit]:.2f} {unit}" if unit else f"{value:,.0f}"


def change(removed: float) -> str:
    """A fraction that was removed as the change it is: 0.8715 is ``-87.15%``."""
    return f"{-removed:+.2%}" if round(removed, 4) else "0.00%"


def percentage(value: float) -> str:
    """A fraction with two digits of its percentage."""
    return f"{value:.2%}"


def times(value: float) -> str:
    """A ratio, e.g. ``1.93x``."""
    return f"{value:.2f}x"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, three significant digits of them at least."""
    return f"{seconds * 1000:#.3g} ms" if seconds < 0.0995 else f"{seconds * 1000:,.0f} ms"


def shown(value: Any, shape: Callable[[Any], str] = str) -> str:
    """``value`` as text, or a dash where it was not measured."""
    return NOT_MEASURED if pd.isna(value) else shape(value)


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        name: of its files, without a suffix.
        title: a heading.
        raw: the numbers as they were measured or counted, for the CSV file and for sorting.
        text: the same rows as a reader sees them.
        notes: what must be known to read it, one sentence each.
        keys: text column -> raw column that it is sorted by; a column that is not here is sorted by its text.
        spare: text columns that a narrow terminal does without, the first one first.
        links: what the cells of the first column lead to, where they lead anywhere.
    """

    name: str
    title: str
    raw: pd.DataFrame
    text: pd.DataFrame
    notes: Sequence[str] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    spare: Sequence[str] = ()
    links: Sequence[str] = ()

    def console(self, width: float = math.inf) -> str:
        """For a terminal of so many columns; a first cell that repeats the one above is left blank."""
        text = self._without_repeats()
        for left_out in range(len(self.spare) + 1):
            kept = text.drop(columns=list(self.spare[:left_out]))
            lines = self._lines(kept, "simple")
            if len(lines.partition("\n")[0]) <= width:
                break
        return lines + (f"\n(too narrow for: {', '.join(self.spare[:left_out])})" if left_out else "")

    def markdown(self) -> str:
        """A page; a ``|`` inside a name would end its cell and is escaped."""
        cells = self.text.map(lambda text: text.replace("|", "\\|"))
        return f"# {self.title}\n\n{self._lines(cells, 'github')}\n" + "".join(
            ["\n", *(f"- {note}\n" for note in self.notes)]
        )

    def latex(self) -> str:
        """A ``tabular`` with booktabs' rules, special characters escaped; the notes are comments above it.

        A first cell that repeats the one above is left blank, and a little space stands between such blocks.
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
        return comments + style.to_latex(column_format=sides, hrules=True)

    def _without_repeats(self) -> pd.DataFrame:
        text = self.text.copy()
        text[text.columns[0]] = text.iloc[:, 0].where(text.iloc[:, 0] != text.iloc[:, 0].shift(), "")
        return text

    def _lines(self, text: pd.DataFrame, kind: str) -> str:
        """``text`` in one of tabulate's formats; numbers, which are what a column is sorted by, on the right."""
        text = text.map(_one_line)
        sides = ["right" if name in self.keys else "left" for name in text.columns]
        return tabulate(
            text.to_numpy().tolist(), list(text.columns), tablefmt=kind, disable_numparse=True, colalign=sides
        )

    def write(self, folder: Path, formats: Sequence[str]) -> list[Path]:
        """One file for each of ``formats`` (see `TABLE_FORMATS`).

        Raises:
            OSError: the folder cannot be written.
        """
        written = []
        for kind in TABLE_FORMATS:
            if kind not in formats:
                continue
            path = folder / f"{self.name}.{kind}"
            if kind == "csv":
                content = self.raw.to_csv(index=False, lineterminator="\n")
            else:
                content = self.markdown() if kind == "md" else self.latex()
            # A lone surrogate (from an undecodable file name) has no UTF-8 form.
            path.write_bytes(content.encode(errors="backslashreplace"))
            written.append(path)
        return written


def _one_line(text: str) -> str:
    """``text`` without its line ends, which would end the row of a table."""
    return " ".join(text.splitlines())


def _in_latex(escaped: object) -> str:
    """A text, escaped already, with the signs that LaTeX sets as mathematics."""
    text = re.sub(r"(?:^|(?<= ))-(?=\d)", "$-$", str(escaped))
    for sign, command in IN_LATEX.items():
        text = text.replace(sign, command)
    return text


def _after_space(text: object) -> str:
    """The first cell of a row that has a little space above it."""
    return f"\\addlinespace\n{_in_latex(text)}"


Shape = Callable[[Any], str]


def as_text(raw: pd.DataFrame, shapes: Mapping[str, Shape], of: str | None = None) -> pd.DataFrame:
    """The columns of ``raw`` that ``shapes`` names, as text.

    Args:
        raw: numbers. ``<name> std`` beside a column is its spread, ``<name> n`` of how many values it is the mean.
        shapes: column -> how a value of it is written.
        of: the column that says of how many values each mean should be; one of fewer says so, e.g. ``(1 of 3)``.
    """
    columns = {}
    nothing = pd.Series(math.nan, index=raw.index)
    for name, shape in shapes.items():
        beside = [raw.get(f"{name} std", nothing), raw.get(f"{name} n", nothing), raw[of] if of else nothing]
        columns[name] = [_cell(shape, *values) for values in zip(raw[name], *beside, strict=True)]
    return pd.DataFrame(columns, columns=list(shapes), dtype=str)


def _cell(shape: Shape, value: Any, std: float, number: float, total: float) -> str:
    if pd.isna(value):
        return NOT_MEASURED
    spread = "" if pd.isna(std) else f" ± {shape(std).lstrip('-+')}"
    return shape(value) + spread + (f" ({number:.0f} of {total:.0f})" if number < total else "")

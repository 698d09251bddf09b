"""How a value shows itself to a person: as aligned text, and as a table in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tabulate import tabulate


class Displayed(ABC):
    """Gives a class `str`, and a table in notebooks, both made from its :meth:`display`."""

    @abstractmethod
    def display(self) -> Display:
        """What a person reads of this value."""

    def __str__(self) -> str:
        return self.display().text()

    def _repr_html_(self) -> str:
        return self.display().html()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Both forms, for notebooks. A dataclass's own ``__repr__`` would otherwise be the plain text."""
        return {"text/plain": str(self), "text/html": self._repr_html_()}


@dataclass(frozen=True)
class Display(Displayed):
    """A title, a table and notes.

    Attributes:
        title: what it is, in one line.
        headings: of the columns.
        rows: cells as text, as many in each row as there are headings.
        total: last row, set off from the others; empty for none.
        notes: sentences below the table.
    """

    title: str
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    total: Sequence[str] = ()
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Format it for a terminal."""
        cells = [*self.rows, *([self.total] if self.total else [])]
        columns = [[row[place] for row in cells] for place in range(len(self.headings))]
        align = ["right" if _numeric(column) else "left" for column in columns]
        table = tabulate(cells, self.headings, "simple", colalign=align, disable_numparse=True) if cells else ""
        return "\n".join(part for part in (self.title, table, *self.notes) if part)

    def display(self) -> Display:
        """Itself."""
        return self

    def html(self) -> str:
        """Format it for a notebook, without scripts and styles of its own."""
        columns = [[row[place] for row in (*self.rows, self.total) if row] for place in range(len(self.headings))]
        align = ["right" if _numeric(column) else "left" for column in columns]

        def line(cells: Sequence[str], tag: str) -> str:
            made = (
                f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>'
                for cell, side in zip(cells, align, strict=True)
            )
            return f"<tr>{''.join(made)}</tr>"

        head = f"<thead>{line(self.headings, 'th')}</thead>" if self.rows else ""
        body = "".join(line(row, "td") for row in self.rows)
        foot = f"<tfoot>{line(self.total, 'th')}</tfoot>" if self.total else ""
        table = f"<table>{head}<tbody>{body}</tbody>{foot}</table>" if body else ""
        return f"<p><b>{escape(self.title)}</b></p>{table}" + "".join(
            f"<p><small>{escape(note)}</small></p>" for note in self.notes
        )


def _numeric(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers, possibly with units, rather than words."""
    filled = [cell for cell in cells if cell not in ("", "-")]
    return bool(filled) and all(cell.lstrip("+-±<≤ ")[:1].isdigit() for cell in filled)


def count(value: float) -> str:
    """Format a number of parameters or MACs, e.g. ``11.18 M``."""
    unit, size = next(((u, s) for u, s in ((" G", 1e9), (" M", 1e6), (" K", 1e3)) if abs(value) >= s), ("", 1.0))
    return f"{value / size:.2f}{unit}" if unit else f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """Format a part of a whole as a percentage; a dash if the whole is 0."""
    return f"{part / whole:.1%}" if whole else "-"


def duration(seconds: float, spread: float | None = None) -> str:
    """Format a time, e.g. ``4.6 ms ± 0.2``. The spread has as many decimals as the time.

    Args:
        seconds: the time.
        spread: half of the interquartile range, in seconds; None for none.
    """
    decimals = next((n for n, limit in ((0, 100.0), (1, 1.0), (2, 0.1)) if seconds * 1e3 >= limit), 3)
    text = f"{seconds * 1e3:.{decimals}f} ms"
    return text if spread is None else f"{text} ± {spread * 1e3:.{decimals}f}"

"""A page of a few sections, each with a table, a picture or a text, in one file without scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent


@dataclass(frozen=True)
class PageTable:
    """A table as text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Part:
    """A section of the page, from top to bottom: table, picture, text, notes. What is empty is left out.

    Attributes:
        heading: heading of the section.
        table: a table.
        png: content of a picture's file.
        caption: the line under the picture that says what to see in it.
        text: text that keeps its line ends.
        notes: sentences below.
    """

    heading: str
    table: PageTable | None = None
    png: bytes = b""
    caption: str = ""
    text: str = ""
    notes: Sequence[str] = ()

    @property
    def picture(self) -> str:
        """The picture in base64."""
        return base64.b64encode(self.png).decode()


def page(title: str, lead: str, parts: Sequence[Part]) -> str:
    """Return the page as HTML. It loads nothing from elsewhere, and all text is escaped."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    style = Markup((HERE / "report.css").read_text())
    return environment.get_template("page.html").render(title=title, lead=lead, parts=parts, style=style)

"""The style of every figure, its display in a notebook and its saving."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from common.files import write_whole
from common.reporting.facts import COLORS, COLORS_APART, MARKERS, method_places

WIDE, NARROW = 7.0, 3.5
"""Widths of a page and of one of its two columns, in inches."""
UNDATED: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
DENSE_COLOR = "0.2"
"""Of the dense network and of lines that compare with it."""
REFERENCE_COLOR = "0.55"
"""Of the networks of another work."""
REST = "all else"
"""What a picture calls all that is no layer of its own."""
DASHES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "text.parse_math": False,  # a "$" in the name of a layer or model does not start a formula
}
SAVING: dict[Any, Any] = {
    "pdf.fonttype": 42,  # publishers refuse the Type 3 fonts that are matplotlib's default
    "svg.hashsalt": "low-rank",  # makes the same bytes each time
}


def styled(**changes: Any) -> AbstractContextManager[None]:
    """Return a ``with`` block in which figures get this suite's style. Afterwards the user's settings are restored.

    Args:
        changes: settings of matplotlib that differ from `STYLE`, with ``_`` in place of the dot in their names.
    """
    return _settings(STYLE | {name.replace("_", "."): value for name, value in changes.items()})


@contextmanager
def _settings(settings: dict[Any, Any]) -> Iterator[None]:
    """Use matplotlib's defaults with these settings, whatever a matplotlibrc or a notebook has set."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


class Picture(Figure):
    """A figure that a notebook shows without ``%matplotlib inline`` and that pyplot does not keep in memory.

    The user's own settings of matplotlib do not change how it looks.
    """

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure. Matplotlib makes some parts, such as ticks, only now."""
        with _settings(SAVING):
            super().draw(renderer)

    def get_tightbbox(
        self, renderer: RendererBase | None = None, *, bbox_extra_artists: Iterable[Artist] | None = None
    ) -> Bbox:
        """The bounding box of everything that is drawn, in inches."""
        with _settings(SAVING):
            return super().get_tightbbox(renderer, bbox_extra_artists=bbox_extra_artists)

    def savefig(self, *arguments: Any, **keywords: Any) -> None:
        """Save the figure as matplotlib's own ``savefig`` does."""
        with _drawing():
            super().savefig(*arguments, **keywords)


@contextmanager
def _drawing() -> Iterator[None]:
    """Draw without the user's settings and without a warning for each letter that the font lacks."""
    with warnings.catch_warnings(), _settings(SAVING):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def save_figure(figure: Figure, path: str | Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write ``figure`` to files. A missing folder is created.

    Args:
        figure: any matplotlib figure.
        path: destination path without a suffix. A dot in the name stays.
        formats: one or more of ``png`` (200 dots per inch), ``pdf`` and ``svg``.

    Returns:
        The files. They hold no date, so that the same records always give the same bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {kind: path.with_name(f"{path.name}.{kind}") for kind in formats}
    for kind, file in files.items():
        write_whole(file, render(figure, kind))
    return list(files.values())


def render(figure: Figure, kind: str) -> bytes:
    """Return the content of a file of ``figure`` of this ``kind``: ``png``, ``pdf`` or ``svg``."""
    buffer = io.BytesIO()
    with _drawing():
        figure.savefig(buffer, format=kind, dpi=200, metadata=UNDATED.get(kind))
    return buffer.getvalue()


def picture(width: float, height: float) -> Picture:
    """Return an empty figure of ``width`` x ``height`` inches, laid out so that its parts do not overlap."""
    return Picture(figsize=(width, height), layout="constrained")


def message(text: str) -> Figure:
    """Return a figure that states why there is nothing to draw."""
    with styled():
        figure = picture(NARROW, 1.2)
        figure.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    return figure


def no_accepted_trial(keep: float) -> Figure:
    """Return a figure that states that no trial kept the fraction ``keep`` of the dense metric."""
    return message(f"No accepted trial:\nnone kept {percent(keep)} of the dense metric.")


def palette(number: int) -> list[tuple[float, float, float]]:
    """Return colours that colour-blind readers can tell apart. After ten they repeat."""
    return list(sns.color_palette(COLORS, number))


def method_looks(methods: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """Colour and marker of each method, in the order of a legend.

    Args:
        methods: their names. If this is a column of the trials' frame, which knows all methods of the report, each
            method looks the same in every figure.
    """
    known = methods.cat.categories if isinstance(methods, pd.Series) else list(methods)
    shown = set(methods)
    return {
        name: (palette(COLORS_APART)[place % COLORS_APART], MARKERS[(place + place // COLORS_APART) % len(MARKERS)])
        for name, place in method_places(known).items()
        if name in shown
    }


def three_digits(value: float) -> str:
    """``value`` with three digits, or all of a whole number's, e.g. ``1.30`` and ``1,234``."""
    return f"{value:#.3g}" if value < 99.95 else f"{value:,.0f}"


def percent(value: float) -> str:
    """Return a fraction as a percentage without trailing zeros, e.g. ``99%`` or ``99.5%``."""
    return f"{value * 100:.4g}%"

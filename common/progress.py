"""Show progress where people look: a bar in a notebook or terminal, plain lines in batch."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, ClassVar, TypeVar

from tqdm import tqdm
from tqdm.auto import tqdm as notebook_bar

Item = TypeVar("Item")

FIRST_LINE_S = 10.0
"""Least seconds until a plain line. Each pause between the lines of a process is twice the last one."""
LONGEST_PAUSE_S = 600.0


def track(items: Iterable[Item], description: str, unit: str = "it", total: int | None = None) -> tqdm[Item]:
    """Iterate over ``items`` and show the progress.

    In a notebook that a person runs, and on a terminal, a bar moves and vanishes at the end. Elsewhere (papermill, a
    batch job's log) there are plain lines, fewer and fewer of them, so that the log stays short. In distributed
    training only the first process shows anything.

    Args:
        items: items to iterate over.
        description: text in front.
        unit: name of one item.
        total: number of items, if ``items`` has no length.
    """
    hidden = os.environ.get("RANK", "0") != "0"
    shared: dict[str, Any] = {"desc": description, "unit": unit, "total": total, "leave": False, "disable": hidden}
    if in_kernel() and is_watched():
        return notebook_bar(items, mininterval=0.2, **shared)
    if _on_terminal():
        return tqdm(items, mininterval=0.2, ncols=100, **shared)
    pauses = {"mininterval": FIRST_LINE_S, "maxinterval": math.inf, "miniters": 1, "delay": FIRST_LINE_S}
    return Lines(items, file=sys.stdout if in_kernel() else sys.stderr, **shared | pauses)


class Lines(tqdm):  # type: ignore[type-arg]  # it is generic for type checkers alone
    """Progress as plain lines, e.g. ``search: 12 of 40 trials, 02:10 left, best=0.98``.

    Attributes:
        due: time (of ``time.monotonic``) before which no line is printed in this process.
        pause: seconds from the next line to the one behind it.
    """

    due: ClassVar[float] = 0.0
    pause: ClassVar[float] = 2 * FIRST_LINE_S

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print a line if one is due. An empty ``msg``, which clears a bar, prints none."""
        if msg == "" or time.monotonic() < Lines.due:
            return
        found = self.format_dict
        of = f" of {found['total']:,}" if found["total"] else ""
        left = (found["total"] or 0) - found["n"]
        pace = found["elapsed"] / max(1, found["n"] - found["initial"])
        remaining = f", {self.format_interval(left * pace)} left" if left > 0 and found["n"] > found["initial"] else ""
        rest = f", {found['postfix']}" if found["postfix"] else ""
        units = f"{found['unit']}{'es' if found['unit'].endswith('ch') else 's'}"
        print(f"{found['prefix']}: {found['n']:,}{of} {units}{remaining}{rest}", file=self.fp, flush=True)
        Lines.due = time.monotonic() + Lines.pause
        Lines.pause = min(2 * Lines.pause, LONGEST_PAUSE_S)


def say(text: str) -> None:
    """Print a line past the progress bars."""
    with tqdm.external_write_mode() if _on_terminal() else nullcontext():
        print(text, flush=True)


def in_kernel() -> bool:
    """Whether this process is a Jupyter kernel, as in Jupyter, Colab or papermill."""
    return _kernel() is not None


def is_watched() -> bool:
    """Whether a person runs this kernel's cells: only then may a cell ask for input. In papermill nobody answers."""
    return bool(getattr(_kernel(), "_allow_stdin", False))


def _on_terminal() -> bool:
    return not in_kernel() and sys.stderr.isatty()


def _kernel() -> Any:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None)

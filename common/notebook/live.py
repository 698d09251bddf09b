"""A picture in a notebook that is redrawn while a search runs."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from matplotlib.figure import Figure

from common.progress import in_kernel
from common.trials import TrialRecord

PAUSE_S = 5.0
"""Minimum pause between two drawings, in seconds."""
SHARE = 0.05
"""Maximum share of the time that is spent on drawing."""

Draw = Callable[[list[TrialRecord]], Figure]


class LivePicture:
    """Shows the trials so far in the running notebook cell. Outside notebooks it does nothing.

    Args:
        draw: makes a figure of the records.
    """

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._records: dict[int, TrialRecord] = {}
        self._handle: Any = None
        self._next = 0.0

    def add(self, record: TrialRecord) -> None:
        """Add a trial or its latest version, and redraw the picture if the last drawing was long enough ago.

        Warns:
            UserWarning: drawing failed. No more pictures are drawn, but the search goes on.
        """
        self._records[record.trial] = record
        if time.perf_counter() >= self._next:
            try:
                self.show(self._records.values())
            except Exception as error:  # drawing may raise anything
                self._next = math.inf
                warnings.warn(f"the picture of the search is no longer drawn: {error!r}", stacklevel=2)

    def show(self, records: Iterable[TrialRecord]) -> None:
        """Replace the picture by one of these records."""
        if not in_kernel():
            return
        from IPython.display import display

        start = time.perf_counter()
        figure = self._draw(list(records))
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)
        now = time.perf_counter()
        self._next = now + max(PAUSE_S, (now - start) / SHARE)

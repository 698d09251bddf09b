"""A picture in a notebook that is drawn anew while a search goes on."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from matplotlib.figure import Figure

from common.trials import TrialRecord

PAUSE_S = 5.0
"""Between two drawings at least."""
SHARE = 0.05
"""Of the time goes into drawing at most."""

Draw = Callable[[list[TrialRecord]], Figure]


class LivePicture:
    """Shows the trials so far in the notebook cell that runs; anywhere else it does nothing.

    Args:
        draw: makes the picture of the records.
    """

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._records: dict[int, TrialRecord] = {}
        self._handle: Any = None
        self._next = 0.0

    def add(self, record: TrialRecord) -> None:
        """Take a trial in, or its latest version, and draw when the last drawing is long enough ago.

        A picture that cannot be drawn is warned of, once, and does not end the search that it is of.
        """
        self._records[record.trial] = record
        if time.perf_counter() >= self._next:
            try:
                self.show(self._records.values())
            except Exception as error:  # whatever a drawing may raise
                self._next = math.inf
                warnings.warn(f"the picture of the search is no longer drawn: {error!r}", stacklevel=2)

    def show(self, records: Iterable[TrialRecord]) -> None:
        """Draw these records now, in place of what was there."""
        if not in_notebook():
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


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process: Jupyter, Colab or papermill."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")

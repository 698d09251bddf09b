"""A progress bar for long work that also behaves in a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, unit: str = "it", total: int | None = None) -> tqdm[Item]:
    """``items`` behind a progress bar.

    On a terminal the bar is redrawn as it goes and cleared at the end. Elsewhere (papermill, a batch job's log) it is
    redrawn every ten seconds at the most, so that the log stays short. Of processes that train together, only the
    first shows one.
    """
    live = sys.stderr.isatty()
    interval = 0.2 if live else 10.0
    hidden = os.environ.get("RANK", "0") != "0"
    return tqdm(
        items,
        desc=description,
        unit=unit,
        total=total,
        leave=not live,
        mininterval=interval,
        ncols=100,
        disable=hidden,
    )

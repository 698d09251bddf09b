"""Show a progress bar that also suits log files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, unit: str = "it", total: int | None = None) -> tqdm[Item]:
    """Iterate over ``items`` with a progress bar.

    On a terminal the bar is updated continuously and cleared at the end. Elsewhere (papermill, a batch job's log) it
    is printed at most every ten seconds, so that the log stays short. In distributed training only the first process
    shows the bar.

    Args:
        items: items to iterate over.
        description: text in front of the bar.
        unit: name of one item.
        total: number of items, if ``items`` has no length.
    """
    on_terminal = sys.stderr.isatty()
    interval = 0.2 if on_terminal else 10.0  # seconds
    hidden = os.environ.get("RANK", "0") != "0"
    return tqdm(
        items,
        desc=description,
        unit=unit,
        total=total,
        leave=not on_terminal,
        mininterval=interval,
        ncols=100,
        disable=hidden,
    )

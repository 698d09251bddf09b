"""Runs a recipe of ``docs/trackers.md`` on the records of a search, in the folder of the process.

As a program (``python -m tests.search.recipes TITLE LOG``) it never imports torch: beside torch's many modules, wandb
takes ten seconds to import.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from common.trials import TrialRecord, iter_trials

PAGE = (Path(__file__).parents[2] / "docs" / "trackers.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
Figures = dict[tuple[str, int], float]


def shared_names() -> dict[str, Any]:
    """What the page's first block of code defines."""
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    return names


def figures(records: list[TrialRecord]) -> Figures:
    """What a recipe must store of these records: (name, trial) -> the last value."""
    figures_of = shared_names()["figures_of"]
    return {(name, record.trial): value for record in records for name, value in figures_of(record).items()}


def run_recipe(title: str, records: list[TrialRecord], settings: Any) -> None:
    """Run the recipe under a heading, with these settings. Its search hands these records out."""

    def searched(*_: Any, on_trial: Callable[[TrialRecord], None], **__: Any) -> SimpleNamespace:
        for record in records:
            on_trial(record)
        return SimpleNamespace(best={"params": records[0]})

    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    given = {"model": None, "data": None, "settings": settings, "search_ranks": searched}
    exec(BLOCKS[1 + headings.index(title)], shared_names() | given)


if __name__ == "__main__":
    search = ModuleType("common.search")  # the recipes take these names from it; the records are there already
    search.SearchSettings = search.search_ranks = None  # type: ignore[attr-defined]
    sys.modules["common.search"] = search
    settings = SimpleNamespace(method="svd", policy="adaptive", seed=0)
    run_recipe(sys.argv[1], list(iter_trials(sys.argv[2], [])), settings)

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # a busy machine fails no test that only takes long
settings.load_profile("suite")
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)  # the makes that tests start are none of `make test`'s own

FIRST = ("test_notebooks.py", "test_worker.py", "test_wheel.py")
"""Modules whose tests take longest; they start first, so that all processes end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests in front, the others behind them in their order."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session", autouse=True)
def brief_steps() -> None:
    """Keep the timings and exports of this process short."""
    from tests.brevity import export_briefly, time_briefly  # imports torch, which a collection need not wait for

    time_briefly()
    export_briefly()

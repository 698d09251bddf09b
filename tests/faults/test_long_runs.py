"""Short versions of ``python -m tests.faults.long_run``. They count, because a busy machine must fail no test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.search.probabilities import Probabilities
from common.search.study.attempts import Attempts
from common.search.study.journal import open_journal
from common.search.study.storage import journal_path, open_study, opened_storage
from tests.faults.long_run import RUN, grow_journal, search


def test_trials_leave_no_network_file_or_thread_behind(tmp_path: Path) -> None:
    seen = search(tmp_path, 27, count_networks=True)
    assert seen[10].networks == seen[25].networks > 0
    for name in ("handles", "threads"):
        assert max(getattr(each, name) for each in seen[11:]) <= max(getattr(each, name) for each in seen[:11]), name


def test_a_large_study_is_read_once_and_each_batch_is_learned_from_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(tmp_path, 16, stop=12)
    path = journal_path(tmp_path, RUN)
    grow_journal(path, 300)
    with opened_storage(path) as opened:
        assert sorted(Attempts(open_study(RUN, opened, None), 2000).judged) == list(range(300))
    calls = {"journal": 0, "batch": 0}

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **named)

        return call

    monkeypatch.setattr("common.search.study.storage.open_journal", counted("journal", open_journal))
    monkeypatch.setattr(Probabilities, "update_to", counted("batch", Probabilities.update_to))
    assert len(search(tmp_path, 310, stop=5)) == 5
    assert calls == {"journal": 1, "batch": 2 * 30}  # for the trials, and for the picture of the last policy

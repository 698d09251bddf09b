"""Workers share a study on PostgreSQL, and the server is restarted while they work.

``SEARCH_WORKERS=8 SEARCH_TRIALS=200 pytest tests/faults/test_database.py`` starts eight.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from common.compression import load_compressed
from common.models import build_model
from common.search import SearchSettings, search_ranks
from common.search.study.attempts import Attempts
from common.search.study.storage import open_study, opened_storage
from common.trials import read_log
from tests.databases import PostgreSQL, running_postgresql
from tests.networks import tiny_digits
from tests.search.processes import logged, start, take_part

WORKERS = int(os.environ.get("SEARCH_WORKERS", "2"))
TRIALS = int(os.environ.get("SEARCH_TRIALS", str(3 * WORKERS)))
SETTINGS = SearchSettings(method="svd", trials=TRIALS, batch=4, startup=6, finetune_top=0, sensitivity_images=16)


def begin(server: PostgreSQL, logs: Path) -> str:
    """Begin the study ``s`` and stop it after its first trial; return the file of its network."""

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    model = build_model("resnet20", 10).eval()
    search_ranks(model, tiny_digits(), SETTINGS, logs=logs, run="s", storage=server.url, on_trial=stop)
    return str(logs / "s-dense.safetensors")


def work(server: PostgreSQL, logs: Path, weights: str) -> list[Any]:
    return [start(take_part, "s", server.url, str(logs), weights, f"w{number}") for number in range(WORKERS)]


def check_finished(server: PostgreSQL, logs: Path, weights: str) -> None:
    search_ranks(load_compressed(weights), tiny_digits(), SETTINGS, logs=logs, run="s", storage=server.url)
    with opened_storage(server.url) as opened:
        attempts = Attempts(open_study("s", opened, None), SETTINGS.trials)
    assert sorted(attempts.judged) == list(range(SETTINGS.trials))
    assert not [trial for trial in attempts.trials if not trial.state.is_finished()]
    assert len([t for t in attempts.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]) == SETTINGS.trials
    records = [record for path in logs.glob("*.log") for record in read_log(path)[0]]
    assert {record.trial for record in records} == set(range(SETTINGS.trials))
    assert {record.status for record in records} <= {"ok", "pruned"}  # an outage fails no trial
    assert {record.details.worker for record in records} == {"main", *(f"w{number}" for number in range(WORKERS))}


def test_workers_outlive_a_restart_of_postgresql(tmp_path: Path) -> None:
    with running_postgresql() as server:
        weights = begin(server, tmp_path)
        crew = work(server, tmp_path, weights)
        while len(logged(tmp_path, "s-w*.log")) < WORKERS:
            assert all(process.is_alive() for process in crew)
            time.sleep(0.02)
        server.stop(signal.SIGQUIT)
        time.sleep(0.5)
        server.start()
        for process in crew:
            process.join()
        assert [process.exitcode for process in crew] == [0] * WORKERS
        check_finished(server, tmp_path, weights)

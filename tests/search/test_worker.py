"""Several processes work on one study, and some are killed.

``SEARCH_KILLS=20 pytest tests/search/test_worker.py`` kills more often.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from common.compression import load_compressed, save_compressed
from common.models import build_model
from common.search import SearchSettings, search_ranks
from common.search.study import worker
from common.search.study.attempts import WORKER, Attempts
from common.search.study.storage import open_study, opened_storage
from common.trials import read_log
from tests.networks import tiny_digits
from tests.search.processes import KILLS, SETTINGS, logged, search, start, take_part

JUDGED = (TrialState.COMPLETE, TrialState.PRUNED)


def wait_until(condition: Any, process: Any) -> None:
    while not condition() and process.is_alive():
        time.sleep(0.02)


def check_finished(name: str, storage: str | Path, logs: Path) -> Attempts:
    """Check that every place is finished exactly once and that every trial is in a log."""
    with opened_storage(storage) as opened:
        attempts = Attempts(open_study(name, opened, None), SETTINGS.trials)
    assert sorted(attempts.judged) == list(range(SETTINGS.trials))
    assert len([trial for trial in attempts.trials if trial.state in JUDGED]) == SETTINGS.trials
    assert not [trial for trial in attempts.trials if not trial.state.is_finished()]
    assert set(logged(logs, "*.log")) == set(range(SETTINGS.trials))
    return attempts


def test_sigkill_at_random_moments_loses_no_trial_and_changes_none(tmp_path: Path) -> None:
    moments = random.Random(0)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for _ in range(KILLS):
        before = len(logged(killed, "k.log"))
        process = start(search, str(killed), "k")
        wait_until(lambda before=before: len(logged(killed, "k.log")) > before, process)
        time.sleep(moments.uniform(0, 0.12))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the trials ended before the kills did"
        torn = killed / "k.log"
        if torn.exists() and moments.random() < 0.3:  # the result of a kill during the write
            with torn.open("ab") as log:
                log.write(b'TRIAL {"schema": 1, "run": "k')
    for folder, run in ((killed, "k"), (whole, "w")):
        process = start(search, str(folder), run)
        process.join()
        assert process.exitcode == 0
    attempts = check_finished("k", killed / "k.journal", killed)
    undisturbed = check_finished("w", whole / "w.journal", whole)
    assert sorted(attempts.judged) == sorted(undisturbed.judged)
    plans = [{place: trial.params for place, trial in run.judged.items()} for run in (attempts, undisturbed)]
    assert plans[0] == plans[1]
    again = [record for record in read_log(killed / "k.log")[0] if record.details.run_again]
    assert len(again) >= 1 or KILLS < 5


@pytest.mark.parametrize("there", ["k.journal", "k-dense.safetensors"])
def test_sigkill_during_preparation(there: str, tmp_path: Path) -> None:
    process = start(search, str(tmp_path), "k")
    wait_until((tmp_path / there).exists, process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(logged(tmp_path, "k.log")) <= 1
    process = start(search, str(tmp_path), "k")
    process.join()
    assert process.exitcode == 0
    check_finished("k", tmp_path / "k.journal", tmp_path)


@pytest.fixture
def begun(postgresql: str, tmp_path: Path) -> tuple[str, str]:
    """The name of a study on PostgreSQL that was begun and stopped, and the file of its network."""
    model = build_model("resnet20", 10).eval()
    name = f"study-{tmp_path.name}"

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    logs = tmp_path / "begin"
    result = search_ranks(model, tiny_digits(), SETTINGS, logs=logs, run=name, storage=postgresql, on_trial=stop)
    assert result.remaining == SETTINGS.trials - 1
    return name, str(logs / f"{name}-dense.safetensors")


def test_workers_on_postgresql_that_are_killed_finish_the_study(
    postgresql: str, begun: tuple[str, str], tmp_path: Path
) -> None:
    study, weights = begun
    moments = random.Random(1)
    logs = tmp_path / "begin"

    def begin(name: str) -> Any:
        return start(take_part, study, postgresql, str(logs), weights, name)

    crew = {name: begin(name) for name in ("a", "b")}
    hit: set[int] = set()
    with opened_storage(postgresql) as opened:
        watched = open_study(study, opened, None)

        def running(name: str, *unnamed: None) -> set[int]:
            """The places of the worker's trials that have not ended; with a None, also of those that name no worker.

            A worker that is killed right after a trial began has not named itself yet.
            """
            attempts = Attempts(watched, SETTINGS.trials)
            under_way = (*attempts.in_state(TrialState.RUNNING), *attempts.in_state(TrialState.FAIL))
            pids = (crew[name].pid, *unnamed)
            own = [trial for trial in under_way if trial.user_attrs.get(WORKER, {}).get("pid") in pids]
            return {attempts.place[trial.number] for trial in own}

        def may_kill(name: str, before: int) -> bool:
            """Whether the trial may be killed. A second kill would lose it: it is run again only once."""
            done = Attempts(watched, SETTINGS.trials).judged
            logged_more = len(logged(logs, f"*-{name}.log")) > before
            return logged_more and hit <= done.keys() and (bool(hit) or bool(running(name)))

        for _ in range(KILLS):
            name = moments.choice(["a", "b"])
            before = len(logged(logs, f"*-{name}.log"))
            wait_until(lambda name=name, before=before: may_kill(name, before), crew[name])
            time.sleep(moments.uniform(0, 0.6) if hit else 0)  # the first kill hits a trial
            crew[name].kill()
            crew[name].join()
            assert crew[name].exitcode == -signal.SIGKILL, "the trials ended before the kills did"
            hit |= running(name, None)
            crew[name] = begin(name)
    for process in crew.values():
        process.join()
        assert process.exitcode == 0
    # If a worker is killed between the end of its trial and the line in its log, the main process writes the line.
    search_ranks(load_compressed(weights), tiny_digits(), SETTINGS, logs=logs, run=study, storage=postgresql)
    attempts = check_finished(study, postgresql, logs)
    records = [record for path in logs.glob("*.log") for record in read_log(path)[0]]
    assert {record.details.worker for record in records} <= {"main", "a", "b"}
    again = {record.trial for record in records if record.details.run_again}
    print(f"{KILLS} kills, {len(attempts.judged)} trials finished, {len(again)} of them run again")
    assert again
    assert again <= hit


def test_a_worker_that_is_stopped_returns_its_trial(postgresql: str, begun: tuple[str, str], tmp_path: Path) -> None:
    study, weights = begun
    process = start(take_part, study, postgresql, str(tmp_path), weights, "w")
    wait_until(lambda: logged(tmp_path, f"{study}-w.log"), process)
    process.terminate()
    process.join()
    assert process.exitcode == 130
    with opened_storage(postgresql) as opened:
        attempts = Attempts(open_study(study, opened, None), SETTINGS.trials)
    assert not attempts.in_state(TrialState.RUNNING)
    assert 1 < attempts.finished < SETTINGS.trials


@pytest.mark.parametrize("where", ["journal", "sqlite"])
def test_the_main_process_adds_the_workers_trials_to_its_result_and_log(where: str, tmp_path: Path) -> None:
    model = build_model("resnet20", 10).eval()
    storage = str(tmp_path / "s.journal") if where == "journal" else f"sqlite:///{tmp_path / 's.db'}"
    settings = SearchSettings(method="svd", trials=4, finetune_top=0, keep=0.01, sensitivity_images=16)

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    search_ranks(model, tiny_digits(), settings, logs=tmp_path, run="r", storage=storage, on_trial=stop)
    elsewhere = tmp_path / "elsewhere"
    assert worker.main(["--study", "r", "--storage", storage, "--logs", str(elsewhere), "--name", "w"]) == 0
    assert logged(elsewhere, "r-w.log") == [1, 2, 3]
    result = search_ranks(
        model, tiny_digits(), settings, logs=tmp_path, run="r", storage=storage, on_trial=lambda _: None
    )
    assert [record.trial for record in result.records] == [0, 1, 2, 3]
    assert [record.details.worker for record in result.records] == ["main", "w", "w", "w"]
    assert {record.run for record in result.records} == {"r"}
    assert logged(tmp_path, "r.log") == [0, 1, 2, 3]
    assert result.networks


def test_a_worker_refuses_unknown_studies_and_other_weights(
    begun: tuple[str, str], postgresql: str, tmp_path: Path
) -> None:
    study, _ = begun
    common = ["--storage", postgresql, "--logs", str(tmp_path)]
    with pytest.raises(ValueError, match=r"^study='none' is not in this storage; it holds: "):
        worker.main(["--study", "none", *common])
    with pytest.raises(FileNotFoundError, match=r"^weights='gone': there is no such file; copy it here"):
        worker.main(["--study", study, *common, "--weights", "gone"])
    other = tmp_path / "other.safetensors"
    save_compressed(build_model("resnet20", 10), other)
    with pytest.raises(ValueError, match=r"holds other weights than the study was begun with$"):
        worker.main(["--study", study, *common, "--weights", str(other)])


def test_the_dashboard_opens_on_a_study(begun: tuple[str, str], postgresql: str) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    with opened_storage(postgresql) as opened:
        status, body = get(dashboard.wsgi(opened), "/api/studies")
    assert status == "200 OK"
    assert begun[0].encode() in body


def get(application: Any, path: str) -> tuple[str, bytes]:
    """Return the status and body of a WSGI application's response."""
    status: list[str] = []
    environment = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
    }
    body = b"".join(application(environment, lambda code, headers, *_: status.append(code)))
    return status[0], body


@pytest.mark.parametrize(("logs", "said"), [("file", "a file of that name"), ("file/logs", "Not a directory")])
def test_a_worker_whose_logs_cannot_be_written_says_so_at_once(logs: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"^logs='{tmp_path}/{logs}'.* {said}$"):
        worker.main(["--study", "s", "--storage", str(tmp_path / "s.journal"), "--logs", str(tmp_path / logs)])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

from __future__ import annotations

import datetime
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState, create_trial

from common.search.study.attempts import (
    MAIN,
    OUTCOME,
    SET_ASIDE,
    WORKER,
    Attempts,
    _started,
    begin,
    bury_dead,
    check_claim,
    claim,
    fail,
    number_places,
    release,
    this_worker,
)
from common.search.study.storage import open_study, opened_storage

ME = this_worker("me")
ELSEWHERE = {**ME, "host": "another machine"}


def retry_of(number: int, state: TrialState = TrialState.WAITING) -> Any:
    attrs = {"failed_trial": number, "retry_history": [number]}
    return create_trial(state=state, system_attrs=attrs, value=1.0 if state == TrialState.COMPLETE else None)


def first(state: TrialState, **attrs: Any) -> Any:
    return create_trial(state=state, user_attrs=attrs, value=1.0 if state == TrialState.COMPLETE else None)


def study_of(*trials: Any) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return study


def running(study: optuna.Study) -> int:
    return len(study.get_trials(states=[TrialState.RUNNING]))


def gone() -> dict[str, Any]:
    """A worker whose process on this machine has ended."""
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    pid = process.pid
    process.join()
    return {**ME, "pid": pid}


def test_a_place_is_the_number_of_first_attempts_before_it() -> None:
    done, waiting = TrialState.COMPLETE, TrialState.WAITING
    study = study_of(first(done), first(TrialState.FAIL), retry_of(1, done), first(done), retry_of(1), first(waiting))
    assert number_places(study.trials) == {0: 0, 1: 1, 2: 1, 3: 2, 4: 1, 5: 3}


def test_every_place_counts_once() -> None:
    failed = {OUTCOME: {"rung": -1}}
    study = study_of(
        first(TrialState.COMPLETE),
        first(TrialState.FAIL),  # its process died
        first(TrialState.FAIL, **failed),
        first(TrialState.PRUNED),
        retry_of(1, TrialState.COMPLETE),
        first(TrialState.COMPLETE),  # one more than the study has places
    )
    attempts = Attempts(study, 4)
    assert {place: trial.number for place, trial in attempts.judged.items()} == {0: 0, 1: 4, 2: 2, 3: 3}
    assert (attempts.finished, attempts.lost, attempts.begun) == (4, set(), 5)


def test_a_trial_whose_process_died_is_run_again_once() -> None:
    study = study_of(first(TrialState.COMPLETE), first(TrialState.FAIL))
    assert Attempts(study, 2).retry(ME)
    again = study.trials[2]
    assert (again.state, again.system_attrs["failed_trial"]) == (TrialState.WAITING, 1)
    assert not Attempts(study, 2).retry(ME), "it is queued already"
    taken = study.ask()
    assert taken.number == 2
    study.tell(taken, state=TrialState.FAIL)
    attempts = Attempts(study, 2)
    assert (attempts.lost, attempts.finished) == ({1}, 2)
    assert not attempts.retry(ME)


def test_a_trial_that_was_stopped_may_be_run_again_any_number_of_times() -> None:
    study = study_of(first(TrialState.FAIL, **{SET_ASIDE: "interrupted"}))
    for _ in range(3):
        assert Attempts(study, 1).retry(ME)
        trial = study.ask()
        trial.set_user_attr(SET_ASIDE, "interrupted")
        study.tell(trial, state=TrialState.FAIL)
    assert not Attempts(study, 1).lost


@pytest.mark.parametrize("others", [(TrialState.WAITING,), (TrialState.COMPLETE,), (TrialState.PRUNED,)])
def test_of_two_attempts_the_first_counts(others: tuple[TrialState]) -> None:
    study = study_of(first(TrialState.FAIL), retry_of(0, others[0]), retry_of(0))
    attempts = Attempts(study, 1)
    assert attempts.set_aside(study.trials[2]) == "another attempt at this trial was there first"
    assert attempts.set_aside(study.trials[1]) == ""


def test_a_trial_beyond_the_last_place_is_set_aside() -> None:
    study = study_of(first(TrialState.COMPLETE), first(TrialState.WAITING))
    assert Attempts(study, 1).set_aside(study.trials[1]) == "all trials are under way already"
    assert Attempts(study, 2).set_aside(study.trials[1]) == ""


def test_dead_processes_are_told_from_living_ones() -> None:
    reused = {**ME, "started": ME["started"] - 100}  # the number of a dead process, given to a new one
    study = study_of()
    for worker in (gone(), reused, ELSEWHERE, ME):
        begin(study, worker)
        assert study.ask().user_attrs[WORKER] == worker
    other = {**ME, "name": "this process under another name"}
    bury_dead(Attempts(study, 4), other, {})
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING]
    bury_dead(Attempts(study, 4), ME, {})
    assert study.trials[3].state == TrialState.FAIL, "a process that is looking runs nothing itself"


def test_a_trial_of_another_machine_is_eventually_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    seen: dict[int, float] = {}
    monkeypatch.setattr("common.search.study.attempts.time.monotonic", lambda: now)
    study = study_of()
    begin(study, ELSEWHERE)
    study.ask()

    def left_after(seconds: float) -> int:
        nonlocal now
        now += seconds
        bury_dead(Attempts(study, 2), ME, seen)
        return running(study)

    assert left_after(0) == 1
    assert left_after(2900) == 1, "how long trials take is not known yet"
    assert left_after(200) == 0, "but one that nobody hears of does not hold up the study for ever"
    study = study_of(first(TrialState.COMPLETE))
    begin(study, ELSEWHERE)
    study.ask()
    seen.clear()
    assert left_after(0) == 1
    assert left_after(599) == 1, "it has had less than ten minutes"
    assert left_after(2) == 0


def test_a_clock_that_jumps_by_a_year_does_not_lengthen_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = {"rung": 2, "record": {"seconds": 8.0}}
    judged = first(TrialState.COMPLETE, outcome=outcome)
    judged.datetime_complete = judged.datetime_start + datetime.timedelta(days=365)
    study = study_of(judged, first(TrialState.RUNNING, worker=ELSEWHERE))
    seen = {1: time.monotonic() - 601.0}
    bury_dead(Attempts(study, 2), ME, seen)
    assert running(study) == 0


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used with")  # Optuna's, of ask()
def test_a_silent_worker_of_a_database_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.search.study.storage.GRACE_S", 1)
    with opened_storage(f"sqlite:///{tmp_path / 'studies.db'}") as storage:
        assert isinstance(storage, optuna.storages.RDBStorage)
        study = open_study("s", storage, ["maximize"])
        for _ in range(2):
            begin(study, ELSEWHERE)
        silent, beating = study.ask(), study.ask()
        storage.record_heartbeat(silent._trial_id)
        time.sleep(2.5)
        storage.record_heartbeat(beating._trial_id)
        bury_dead(Attempts(study, 2), ME, {})
        assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.RUNNING]


def test_failing_a_trial_that_another_process_finished_does_nothing() -> None:
    study = study_of(first(TrialState.COMPLETE))
    fail(study, 0)
    assert study.trials[0].state == TrialState.COMPLETE


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Another living process of this machine."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_killed_process_counts_as_dead_before_its_parent_waits_for_it(sleeper: subprocess.Popen[bytes]) -> None:
    study = study_of()
    begin(study, {**ME, "pid": sleeper.pid, "started": _started(sleeper.pid)})
    study.ask()
    bury_dead(Attempts(study, 1), ME, {})
    assert running(study) == 1
    sleeper.kill()
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    bury_dead(Attempts(study, 1), ME, {})
    assert running(study) == 0


@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere psutil alone says when a process was started")
def test_setting_the_clock_fails_no_trial_of_a_living_process(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of()
    begin(study, {**ME, "pid": sleeper.pid, "started": _started(sleeper.pid)})
    study.ask()
    monkeypatch.setattr("psutil.Process.create_time", lambda _: time.time())
    bury_dead(Attempts(study, 1), ME, {})
    assert running(study) == 1


def test_one_process_at_a_time_ends_a_study(sleeper: subprocess.Popen[bytes]) -> None:
    study = study_of()
    claim(study, ME)
    claim(study, ME)
    other = {**ME, "name": MAIN, "pid": sleeper.pid, "started": _started(sleeper.pid)}
    study.set_user_attr(MAIN, other)
    with pytest.raises(ValueError, match=rf"is being searched by process {sleeper.pid} of this machine; wait for it"):
        claim(study, ME)
    with pytest.raises(ValueError, match=rf"was taken over by process {sleeper.pid} on .*, which ends it$"):
        check_claim(study, ME)
    release(study, ME)
    assert study.user_attrs[MAIN] == other, "only its own claim"
    release(study, other)
    claim(study, ME)
    study.set_user_attr(MAIN, gone())
    claim(study, ME)
    assert study.user_attrs[MAIN] == ME


def test_continuing_on_another_machine_fails_the_former_trials_at_once() -> None:
    study, before = study_of(), {**ELSEWHERE, "name": MAIN}
    claim(study, before)
    for worker in (before, {**ELSEWHERE, "name": "a worker", "pid": 1}):
        begin(study, worker)
        study.ask()
    claim(study, ME)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.RUNNING]

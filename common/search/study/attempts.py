"""Which of a study's trials count: every place runs once, and once more if its process died.

A study of n trials has the places 0 to n - 1. Optuna's trials are attempts at these places. A repeated attempt is
marked with the number of the first one, as Optuna marks its own retries. The place of a first attempt is the number of
first attempts before it, so all processes agree on it without talking to each other.
"""

from __future__ import annotations

import copy
import os
import socket
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

WORKER, OUTCOME, SET_ASIDE = "worker", "outcome", "set_aside"
"""Attributes of a trial: the process that runs it, its outcome, and why an attempt does not count."""
MAIN = "main"
"""A study's attribute: the main process, which ends the study; None if there is none now."""
MOST_DEATHS = 2
"""A place is lost once this many processes died at it."""
JUDGED = (TrialState.COMPLETE, TrialState.PRUNED)
UNDER_WAY = (TrialState.RUNNING, TrialState.WAITING)
PATIENCE_S, PATIENCE_TRIALS = 600.0, 5.0
"""When to give up a trial on another machine: after the greater of this many seconds and this multiple of the longest
trial so far. Before any trial has ended, the longest counts as this many seconds."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def places_of(study: optuna.Study) -> dict[int, int]:
    """Trial number -> place."""
    return number_places(study.get_trials(deepcopy=False))


def number_places(trials: Sequence[FrozenTrial]) -> dict[int, int]:
    """Trial number -> place, for the trials of a study in the order of their numbers."""
    found: dict[int, int] = {}
    first_attempts = 0
    for trial in trials:
        origin = trial.system_attrs.get("failed_trial")
        if origin is None:
            found[trial.number] = first_attempts
            first_attempts += 1
        else:
            found[trial.number] = found[origin]
    return found


def check_attributes(study: optuna.Study) -> None:
    """Raise unless the attributes that this suite reads have the form in which it writes them.

    Raises:
        ValueError: another program wrote the study, or it is damaged.
    """
    try:
        trials = study.get_trials(deepcopy=False)
        number_places(trials)
        attributes = [study.user_attrs, *(trial.user_attrs for trial in trials)]
        fits = all(
            _is_worker(each.get(MAIN)) and _is_worker(each.get(WORKER)) and _is_outcome(each.get(OUTCOME))
            for each in attributes
        )
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(
            f"study={study.study_name!r} holds attributes that this suite did not write; name another run"
        )


def _is_worker(value: Any) -> bool:
    return value is None or (
        all(isinstance(value[name], str) for name in ("name", "host"))
        and isinstance(value["pid"], int)
        and 0 < value["pid"] < 2**31
        and isinstance(value["started"], int | float | None)
    )


def _is_outcome(value: Any) -> bool:
    return value is None or (isinstance(value["rung"], int) and isinstance(value["record"], dict))


class Attempts:
    """A snapshot of the attempts at each place of a study.

    Args:
        study: the study.
        places: how many places it has.

    Attributes:
        judged: place -> the attempt that counts: measured, pruned or failed.
        lost: the places at which two processes died.
        begun: how many places have been begun.
    """

    def __init__(self, study: optuna.Study, places: int) -> None:
        self.study, self.places = study, places
        self.trials = study.get_trials(deepcopy=False)
        self.place = number_places(self.trials)
        self.begun = 1 + max(self.place.values(), default=-1)
        self._by_place: dict[int, list[FrozenTrial]] = {}
        for trial in self.trials:
            if self.place[trial.number] < places:
                self._by_place.setdefault(self.place[trial.number], []).append(trial)
        self.judged: dict[int, FrozenTrial] = {}
        self.lost: set[int] = set()
        for place, attempts in self._by_place.items():
            counting = [trial for trial in attempts if trial.state in JUDGED or _failed(trial)]
            if counting:
                self.judged[place] = counting[0]
            elif not any(t.state in UNDER_WAY for t in attempts) and len(_deaths(attempts)) >= MOST_DEATHS:
                self.lost.add(place)

    @property
    def finished(self) -> int:
        """How many places are judged or lost."""
        return len(self.judged) + len(self.lost)

    def in_state(self, state: TrialState) -> list[FrozenTrial]:
        """The attempts in ``state``."""
        return [trial for trial in self.trials if trial.state == state]

    def retry(self, worker: dict[str, Any]) -> bool:
        """Queue every place that must run again, in the name of ``worker``. Return whether there was any."""
        again = [
            attempts[-1]
            for place, attempts in sorted(self._by_place.items())
            if place not in self.judged
            and place not in self.lost
            and not any(trial.state in UNDER_WAY for trial in attempts)
        ]
        for trial in again:
            _queue_again(self.study, trial, worker)
        return bool(again)

    def set_aside(self, trial: FrozenTrial | optuna.Trial) -> str:
        """Why this attempt must not count; empty if it counts.

        Two processes may begin the last place, or queue the same place again, at the same time.
        """
        place = self.place[trial.number]
        if place >= self.places:
            return "all trials are under way already"
        others = (other for other in self._by_place[place] if other.number < trial.number)
        if any(other.state in (*UNDER_WAY, *JUDGED) or _failed(other) for other in others):
            return "another attempt at this trial was there first"
        return ""


def _failed(trial: FrozenTrial) -> bool:
    """Whether the trial itself failed. Then trying again would not help."""
    return trial.state == TrialState.FAIL and trial.user_attrs.get(OUTCOME, {}).get("rung") == -1


def _deaths(attempts: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in attempts if t.state == TrialState.FAIL and not _failed(t) and SET_ASIDE not in t.user_attrs]


def _queue_again(study: optuna.Study, trial: FrozenTrial, worker: dict[str, Any]) -> None:
    trial = copy.deepcopy(trial)
    trial.user_attrs = {WORKER: worker}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback()(study, trial)


def claim(study: optuna.Study, worker: dict[str, Any]) -> None:
    """Make this process the study's main process. There is one at a time; all others are workers.

    An earlier main process is presumed dead, and its running trial fails, unless it still runs on this machine. A
    session that continues on another machine therefore does not wait for it.

    Raises:
        ValueError: the earlier main process still runs on this machine.
    """
    before: dict[str, Any] = study.user_attrs.get(MAIN) or {}
    if before and before != worker and before["host"] == worker["host"] and _exists(before):
        raise ValueError(
            f"run={study.study_name!r} is being searched by process {before['pid']} of this machine; wait for it, or "
            "help it with python -m common.search.study.worker"
        )
    study.set_user_attr(MAIN, worker)
    check_claim(study, worker)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if before and trial.user_attrs.get(WORKER) == before:
            fail(study, trial.number)


def check_claim(study: optuna.Study, worker: dict[str, Any]) -> None:
    """Raise unless ``worker`` is the study's main process.

    Raises:
        ValueError: another process has taken its place.
    """
    now: dict[str, Any] = study.user_attrs.get(MAIN) or {}
    if now != worker:
        place = f"process {now['pid']} on {now['host'].split()[0]}" if now else "another process"
        raise ValueError(f"run={study.study_name!r} was taken over by {place}, which ends it")


def release(study: optuna.Study, worker: dict[str, Any]) -> None:
    """Let another process become the main process, if ``worker`` is it now."""
    if study.user_attrs.get(MAIN) == worker:
        study.set_user_attr(MAIN, None)


def begin(study: optuna.Study, worker: dict[str, Any]) -> None:
    """Queue the next place. The trial names its worker from the start, so that it has one even if the worker dies."""
    study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={WORKER: worker}))


def this_worker(name: str) -> dict[str, Any]:
    """The identity of this process among all workers of a study."""
    pid = os.getpid()
    return {"name": name, "host": _host(), "pid": pid, "started": _started(pid)}


def _host() -> str:
    """Identify this boot of this machine or container. Process numbers mean nothing outside it."""
    try:
        inside = f"{BOOT_ID.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        inside = ""
    return f"{socket.gethostname()} {inside}".strip()


def bury_dead(attempts: Attempts, worker: dict[str, Any], seen: dict[int, float]) -> None:
    """Fail the running trials whose process is gone.

    Args:
        attempts: of the study.
        worker: this process, which runs no trial now.
        seen: number of a running trial -> when this process first saw it, by its own clock, because clocks of other
            machines may differ. This function adds to it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(attempts.study)  # in a database: trials whose worker sends no heartbeat
    longest = max((_seconds(trial) for trial in attempts.trials if trial.state in JUDGED), default=PATIENCE_S)
    for trial in attempts.in_state(TrialState.RUNNING):
        runner = trial.user_attrs.get(WORKER, {})
        running_s = time.monotonic() - seen.setdefault(trial.number, time.monotonic())
        if runner.get("host") == worker["host"]:
            dead = runner == worker or not _exists(runner)
        else:
            dead = running_s > max(PATIENCE_S, PATIENCE_TRIALS * longest)
        if dead:
            fail(attempts.study, trial.number)


def _seconds(trial: FrozenTrial) -> float:
    """How long a trial took by its process's own count. Optuna's times follow the clock, which may jump by years."""
    found = trial.user_attrs.get(OUTCOME, {}).get("record", {}).get("seconds", 0.0)
    return float(found) if isinstance(found, int | float) else 0.0


def fail(study: optuna.Study, number: int) -> None:
    """Fail a trial unless another process has finished it meanwhile."""
    try:
        study.tell(number, state=TrialState.FAIL)
    except (UpdateFinishedTrialError, ValueError):
        if not study.get_trials(deepcopy=False)[number].state.is_finished():
            raise


def _exists(worker: dict[str, Any]) -> bool:
    started = _started(worker["pid"])
    return started is not None and abs(started - worker["started"]) < 1.0


def _started(pid: int) -> float | None:
    """When a process started; None if it is gone, or dead with a parent that has not yet waited for it."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if not psutil.LINUX:
            return process.create_time()
        # Field 22 of proc_pid_stat(5): ticks since the boot. create_time() would change with the machine's clock.
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None

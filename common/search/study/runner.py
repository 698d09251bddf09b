"""One process's part in a study: it runs and logs trials until all are done."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from common.planning.plan import RankPlan
from common.progress import track
from common.search.policies import POLICIES, Start
from common.search.preparation import Prepared
from common.search.study.attempts import OUTCOME, SET_ASIDE, WORKER, Attempts, begin, bury_dead, this_worker
from common.search.study.interrupts import Interrupts
from common.search.study.records import Recorder, Values
from common.search.study.specification import StudySpecification
from common.search.study.storage import STORAGE_ERRORS, is_storage_error
from common.trials import TrialRecord, TrialWriter

POLL_S = 0.2
"""Seconds between looks at the other processes, when no place is left to begin."""
PREDICTION_OFFSET = 3.0
"""Subtracted from a predicted score when it is reported, because Optuna's pruner compares a trial's best value on any
rung."""
MOST_ALIKE = 10
"""After this many trials in a row of one process that fail for one reason, the process stops."""
MOST_BREAKS = 3
"""A process stops if the storage breaks its connection more often than this without a step in between."""


class SameFailure(RuntimeError):
    """Trial after trial failed for the same reason, so further trials would fail as well."""


class SetAside(Exception):
    """This attempt at a trial does not count."""


def make_pruner(specification: StudySpecification) -> optuna.pruners.BasePruner:
    """The pruner that decides which trials climb the ladder."""
    settings = specification.settings
    if not settings.prunes:
        return optuna.pruners.NopPruner()
    return optuna.pruners.PercentilePruner(100 * settings.climb, n_startup_trials=settings.startup)


class Runner:
    """Takes part in a study.

    Args:
        study: the opened study. It gets its sampler and pruner here.
        prepared: measures the trials.
        recorder: makes the records.
        writer: writes this process's log.
        show: is called with every record as it is written.
        name: name of this process among the study's workers.
    """

    def __init__(
        self,
        study: optuna.Study,
        prepared: Prepared,
        recorder: Recorder,
        writer: TrialWriter,
        show: Callable[[TrialRecord], None],
        name: str,
    ) -> None:
        self.study, self.prepared, self.recorder = study, prepared, recorder
        self.writer, self.show, self.worker = writer, show, this_worker(name)
        specification, space = prepared.specification, prepared.space
        self.settings, self.given = specification.settings, len(specification.plans)
        self.policy = POLICIES[self.settings.policy]
        logits = self.policy.first_logits(space, self.settings, specification.sensitivities)
        self.start = Start(space, self.settings, logits)
        study.sampler = self.policy.sampler(self.start, prepared.single_plan)
        study.pruner = make_pruner(specification)
        self._distributions = space.distributions()
        self._interrupts = Interrupts()
        self._seen: dict[int, float] = {}
        self._waiting = False
        self._alike: list[str] = []
        """Why the last trials of this process failed, as long as it is one reason."""

    def run(self) -> Attempts:
        """Run trials until this process or another has finished every place of the study. Return all attempts.

        Raises:
            KeyboardInterrupt: it was interrupted. Its running trial is left to be run again.
            SameFailure: many trials in a row failed for one reason.
        """
        with self._interrupts:
            return self._run()

    def _run(self) -> Attempts:
        attempts = self._look()
        start, before, breaks = time.perf_counter(), attempts.finished, 0
        bar: tqdm[None] = track((), "search", unit="trial", total=self.settings.places)
        bar.initial = bar.n = before
        try:
            while attempts.finished < self.settings.places or attempts.in_state(TrialState.WAITING):
                try:
                    self._advance(attempts)
                    attempts, breaks = self._look(), 0
                except Exception as error:
                    breaks += 1
                    if breaks > MOST_BREAKS or not is_storage_error(error):
                        raise
                    self.writer.note(f"{self.worker['name']} lost its connection to the storage, and connects again")
                minutes = (time.perf_counter() - start) / 60
                scores = [
                    t.user_attrs[OUTCOME]["score"] for t in attempts.judged.values() if t.state == TrialState.COMPLETE
                ]
                bar.set_postfix(
                    best=f"{max(scores):.4f}" if scores else "-",
                    per_minute=f"{(attempts.finished - before) / minutes:.1f}",
                    refresh=False,
                )
                bar.update(attempts.finished - bar.n)
        finally:
            bar.close()
        return attempts

    def _advance(self, attempts: Attempts) -> None:
        """Run one trial; if none is left to begin, wait a little for the others."""
        self._interrupts.check()
        if not attempts.in_state(TrialState.WAITING) and not attempts.retry(self.worker):
            if attempts.begun >= self.settings.places:
                self._wait(attempts)
                return
            begin(self.study, self.worker)
        self._run_one()
        self._check_failures()

    def _check_failures(self) -> None:
        if len(self._alike) >= MOST_ALIKE:
            reason = (
                f"the last {len(self._alike)} trials failed for one reason, {self._alike[-1]}; mend it and make the "
                f"same call again with run={self.study.study_name!r}, which runs the trials that are left"
            )
            self.writer.note(f"stopped: {reason}")
            raise SameFailure(reason)

    def _note_failure(self, error: Exception) -> None:
        """Count the trials that failed in a row for one reason. Numbers, such as sizes, do not tell reasons apart."""
        reason = f"{type(error).__name__}: {error}"
        same = self._alike and re.sub(r"\d+", "", self._alike[-1]) == re.sub(r"\d+", "", reason)
        self._alike = [*self._alike, reason] if same else [reason]

    def _wait(self, attempts: Attempts) -> None:
        """Wait a little. The first time, note which workers this one waits for."""
        others = {t.user_attrs.get(WORKER, {}).get("name", "?") for t in attempts.in_state(TrialState.RUNNING)}
        if others and not self._waiting:
            self.writer.note(f"{self.worker['name']} waits for the last trials of {', '.join(sorted(others))}")
            self._waiting = True
        time.sleep(POLL_S)

    def _look(self) -> Attempts:
        attempts = Attempts(self.study, self.settings.places)
        if attempts.in_state(TrialState.RUNNING):
            bury_dead(attempts, self.worker, self._seen)
            attempts = Attempts(self.study, self.settings.places)
        return attempts

    def _run_one(self) -> None:
        try:
            self.study.optimize(self._measure, n_trials=1, catch=(Exception,), callbacks=[self._log])
        except (UpdateFinishedTrialError, ValueError) as error:
            if isinstance(error, ValueError) and "Cannot tell a" not in str(error):
                raise
            self.writer.note(f"{self.worker['name']} was taken for dead, and its trial given to another")

    def _measure(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Measure one trial and store its outcome in the study."""
        start = time.perf_counter()
        if trial.user_attrs.get(WORKER) != self.worker:
            trial.set_user_attr(WORKER, self.worker)
        attempts = Attempts(self.study, self.settings.places)
        if reason := attempts.set_aside(trial):
            trial.set_user_attr(SET_ASIDE, reason)
            raise SetAside(reason)
        plan: RankPlan | None = None
        try:
            levels = {name: trial.suggest_int(name, d.low, d.high) for name, d in self._distributions.items()}
            plan = self._plan(attempts.place[trial.number], levels)
            with self._interrupts.allowed():
                found = self.prepared.objective.measure(plan, self._climb(trial))
        except KeyboardInterrupt:
            trial.set_user_attr(SET_ASIDE, "interrupted")
            raise
        except UpdateFinishedTrialError:  # another process gave this one up and took its trial
            raise
        except STORAGE_ERRORS as error:  # says nothing about the plan, so the trial runs again
            trial.set_user_attr(SET_ASIDE, f"the storage broke the connection: {type(error).__name__}")
            raise
        except Exception as error:  # one network that cannot be measured must not end the search
            self._note_failure(error)
            values = self.recorder.failed(plan, error, time.perf_counter() - start)
            trial.set_user_attr(OUTCOME, {"rung": -1, "score": None, "levels": {}, "record": values})
            raise
        self._alike = []
        details: Values = {
            "sampler": self.settings.policy,
            "optuna_trial": trial.number,
            "worker": self.worker["name"],
        }
        if "failed_trial" in attempts.trials[trial.number].system_attrs:
            details["run_again"] = True
        values = self.recorder.measured(plan, found, time.perf_counter() - start, details)
        levels = self.prepared.space.levels_of(plan)
        outcome = {"rung": found.rung, "score": found.score, "merit": found.merit, "levels": levels, "record": values}
        trial.set_user_attr(OUTCOME, outcome)
        if values["status"] == "pruned":
            raise optuna.TrialPruned
        if self.settings.objective == "score":
            return found.score
        latency = found.latency.median_s if found.latency else 0.0
        return found.metrics["recalibrated"][self.prepared.objective.data.metric], found.params, found.macs, latency

    def _plan(self, place: int, levels: Mapping[str, int]) -> RankPlan:
        fixed = self.prepared.single_plan
        if fixed is None and place == 0:
            fixed = self.policy.first_plan(self.prepared.space)
        if fixed is not None:
            return RankPlan(fixed.layers, fixed.method, self.settings.proposer, fixed.settings)
        return self.prepared.space.plan(levels, self.settings.proposer)

    def _climb(self, trial: optuna.Trial) -> Callable[[int, float], bool] | None:
        if not self.settings.prunes:
            return None

        def climb(rung: int, score: float) -> bool:
            trial.report(score - PREDICTION_OFFSET * (self.settings.size_weight + 1) * (rung == 0), rung)
            return not trial.should_prune()

        return climb

    def _log(self, study: optuna.Study, trial: FrozenTrial) -> None:
        outcome: dict[str, Any] | None = trial.user_attrs.get(OUTCOME)
        if outcome is not None:
            number = self.given + Attempts(study, self.settings.places).place[trial.number]
            self.write(self.recorder.record(number, outcome["record"]))

    def write(self, record: TrialRecord) -> None:
        """Write a record to this process's log and show it."""
        self.writer.write(record)
        self.show(record)

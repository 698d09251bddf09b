"""A running search: the given plans, the trials, the finalists, and the result."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import optuna
from torch import nn

from common.data import DataBundle
from common.display import Display, Displayed
from common.search.finalists import Finalists
from common.search.preparation import Prepared
from common.search.probabilities import Probabilities
from common.search.study.attempts import MAIN, Attempts, check_claim
from common.search.study.records import Recorder, logged_trials
from common.search.study.runner import Runner
from common.search.study.storage import FINISHED
from common.trials import TrialRecord, TrialWriter, change, choose_best, final_metric, read_log
from common.trials.best import CRITERION_NAMES

GIVEN = "given plan {}"
"""A study's attribute: the record of a given plan, without what all records share."""


@dataclasses.dataclass(frozen=True)
class SearchResult(Displayed):
    """What a search found.

    Attributes:
        records: the latest record of every trial, by number.
        best: criterion -> the best accepted trial, see :func:`common.trials.best.choose_best`. Under a budget also
            ``metric`` -> the first by :func:`common.search.finalists.best_first`, accepted or not.
        networks: number of a chosen trial -> its network; empty if the search was stopped.
        sensitivities: layer -> its sensitivity: a divergence in nats, or the policy's own measure.
        layer_sizes: layer -> its number of parameters in the dense network.
        first_policy, last_policy: layer -> a probability for each of the policy's ``level_names``, before and after
            the trials.
        log: the log file.
        study: the Optuna study, for Optuna's plots and its ``best_trials``.
        policy: name of the search policy.
        remaining: number of trials still to run; 0 unless the search was stopped.
        finished: whether the chosen networks were tested and nothing is left to do.
    """

    records: list[TrialRecord]
    best: dict[str, TrialRecord]
    networks: dict[int, nn.Module]
    sensitivities: dict[str, float]
    layer_sizes: dict[str, int]
    first_policy: dict[str, list[float]]
    last_policy: dict[str, list[float]]
    log: Path
    study: optuna.Study
    policy: str
    remaining: int = 0
    finished: bool = True

    @property
    def best_networks(self) -> dict[int, nn.Module]:
        """Number of a best trial -> its network, if ``networks`` holds it."""
        numbers = dict.fromkeys(record.trial for record in self.best.values())
        return {number: self.networks[number] for number in numbers if number in self.networks}

    def display(self) -> Display:
        """How many trials there were, and the best by each criterion."""
        states = Counter(record.status for record in self.records)
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        rest = "" if self.finished else f"; stopped, {self.remaining} still to run"
        criteria: dict[int, list[str]] = {}
        for criterion, record in self.best.items():
            criteria.setdefault(record.trial, []).append(CRITERION_NAMES.get(criterion, criterion))
        rows = [(", ".join(names), *self._row(number)) for number, names in criteria.items()]
        headings = ("best by", "trial", "method", "params", "MACs", "validation", "test", "speedup")
        notes = [] if rows else ["No trial was accepted."]
        title = f"{self.log.stem}: {len(self.records)} trials ({counts or 'none'}){rest}"
        return Display(title, headings, rows, notes=[*notes, f"Log: {self.log}"])

    def _row(self, number: int) -> list[str]:
        record = next(record for record in self.best.values() if record.trial == number)
        values = final_metric(record), record.metrics.get("test", {}).get(record.metric)
        costs = [change(getattr(record, kind), getattr(record.baseline, kind)) for kind in ("params", "macs")]
        shown = ["-" if value is None else f"{value:.2%}" for value in values]
        speedup = record.latency.speedup if record.latency else None
        return [
            str(number),
            record.title,
            *costs,
            *shown,
            f"{speedup:.2f}x" if speedup else "-",
        ]


def finished_message(run: str, finished: int, asked: int) -> str:
    """The error message for a finished run of which more trials are asked."""
    return (
        f"run={run!r} is finished with {finished} trials, and {asked} are asked for; the test split was read, so name "
        "another run"
    )


class RunningSearch:
    """A search in the study's main process, which also fine-tunes and tests the finalists.

    Args:
        study: the study, opened and claimed by this process.
        prepared: measures the trials.
        data: the data set.
        writer: writes the run's log.
        show: is called with every record as it is written.
        command: the command that starts the search again; None for this process's command line.
    """

    def __init__(
        self,
        study: optuna.Study,
        prepared: Prepared,
        data: DataBundle,
        writer: TrialWriter,
        show: Callable[[TrialRecord], None],
        command: str | None,
    ) -> None:
        self.study, self.prepared, self.writer, self.show = study, prepared, writer, show
        self.specification = prepared.specification
        decompositions = prepared.objective.decompositions
        self.recorder = Recorder(study.study_name, writer.run, data, self.specification, decompositions, command)
        self.runner = Runner(study, prepared, self.recorder, writer, show, MAIN)

    def run(self) -> SearchResult:
        """Run the rest of the study. A KeyboardInterrupt ends it with what there is so far."""
        self._note_start()
        networks: dict[int, nn.Module] = {}
        records: dict[int, TrialRecord] = {}
        try:
            self._measure_given()
            attempts = self.runner.run()
            records = self._records(attempts)
            self._log_unlogged(records)
            check_claim(self.study, self.runner.worker)
            finalists = self._finalists(records)
            finalists.refit_best(self.runner.given)
            finalists.finetune_best(self.runner.given)
            best = finalists.test_chosen(self.runner.given)
            networks = finalists.networks
            self.study.set_user_attr(FINISHED, True)
            finalists.remove_refitted()
        except KeyboardInterrupt:
            attempts = Attempts(self.study, self.specification.settings.places)
            records = self._records(attempts) | records  # fine-tuned records replace the others
            best = choose_best(self._finalists(records).eligible(), self.specification.settings.keep)
            self.writer.note(f"stopped; the same call with run={self.writer.run!r} goes on from here")
        return self._result(records, best, networks, attempts)

    def stored(self) -> SearchResult:
        """Read what a finished search found from its log and the files beside it.

        Raises:
            ValueError: the settings ask for more trials than the study has.
        """
        attempts = Attempts(self.study, self.specification.settings.places)
        if attempts.finished < self.specification.settings.places:
            asked = self.specification.settings.places
            raise ValueError(finished_message(self.writer.run, attempts.finished, asked))
        logged = {record.trial: record for record in read_log(self.writer.path)[0]}
        records = self._records(attempts) | logged
        finalists = self._finalists(records)
        finalists.remove_refitted()
        return self._result(records, finalists.best(), finalists.stored_networks(), attempts)

    def _finalists(self, records: dict[int, TrialRecord]) -> Finalists:
        objective, settings = self.prepared.objective, self.specification.settings
        return Finalists(self.study, objective, settings, records, self.writer, self.runner.write)

    def _result(
        self,
        records: Mapping[int, TrialRecord],
        best: dict[str, TrialRecord],
        networks: dict[int, nn.Module],
        attempts: Attempts,
    ) -> SearchResult:
        start = self.runner.start
        first, last = Probabilities(start.logits), self.runner.policy.last_probabilities(self.study, start)
        return SearchResult(
            records=[records[number] for number in sorted(records)],
            best=best,
            networks=networks,
            sensitivities=self.specification.sensitivities,
            layer_sizes={name: shape.dense_cost[0] for name, shape in self.prepared.space.shapes.items()},
            first_policy=self.runner.policy.by_level_name(first),
            last_policy=self.runner.policy.by_level_name(last),
            log=self.writer.path,
            study=self.study,
            policy=self.runner.policy.name,
            remaining=self.specification.settings.places - attempts.finished,
            finished=FINISHED in self.study.user_attrs,
        )

    def _note_start(self) -> None:
        objective = self.prepared.objective
        metric = objective.data.metric
        self.writer.note(
            f"dense {self.specification.architecture} on {objective.data.name}: {metric} "
            f"{objective.dense_metrics[metric]:.2%} on validation, {objective.dense_cost.params:,} parameters, "
            f"{objective.dense_cost.macs:,} MACs, {objective.dense_latency.median_s * 1000:.2f} ms"
        )

    def _measure_given(self) -> None:
        """Measure and log the given plans that no earlier process has measured."""
        for number, plan in enumerate(self.specification.rank_plans()):
            if GIVEN.format(number) in self.study.user_attrs:
                continue
            start = time.perf_counter()
            try:
                found = self.prepared.objective.measure(plan, raw=True)
            except Exception as error:  # one network that cannot be measured must not end the search
                values = self.recorder.failed(plan, error, time.perf_counter() - start, "given")
            else:
                values = self.recorder.measured(plan, found, time.perf_counter() - start, {"sampler": "given"})
            self.runner.write(self.recorder.record(number, values))
            self.study.set_user_attr(GIVEN.format(number), values)

    def _records(self, attempts: Attempts) -> dict[int, TrialRecord]:
        given = {
            number: self.recorder.record(number, self.study.user_attrs[GIVEN.format(number)])
            for number in range(self.runner.given)
            if GIVEN.format(number) in self.study.user_attrs
        }
        return given | self.recorder.of_attempts(attempts, self.runner.given)

    def _log_unlogged(self, records: dict[int, TrialRecord]) -> None:
        """Log the trials of workers elsewhere, and those whose process was killed before it could write."""
        logged = logged_trials(self.writer.path.parent, self.writer.run, self.study.study_name)
        for number in sorted(records.keys() - logged):
            self.writer.write(records[number])

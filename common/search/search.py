"""``search_ranks``: a study of rank plans, from the first trial to the test of the best."""

from __future__ import annotations

import dataclasses
import datetime
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from torch import nn

from common.compression import save_compressed
from common.data import DataBundle
from common.data.normalization import check_normalization
from common.files import check_writable
from common.latency import RUNTIMES
from common.network.provenance import get_provenance
from common.planning.decompositions import Decompositions
from common.planning.plan import RankPlan
from common.search.finalists import Finish
from common.search.preparation import Prepared, decompose_for_search, measure_sensitivities, nothing_to_search, prepare
from common.search.samplers import policies
from common.search.settings import SearchSettings
from common.search.study.attempts import MAIN, Attempts, check_claim, claim, release, this_worker
from common.search.study.records import Recorder, logged_trials
from common.search.study.runner import Runner, print_trial
from common.search.study.specification import KEY, Blueprint, data_digest, network_digest, weights_path
from common.search.study.storage import FINISHED, check_run, journal_path, open_study, opened_storage
from common.training.distillation import check_features
from common.training.first_pass import check_network
from common.trials import TrialRecord, TrialWriter, log_path, read_log
from common.trials.best import choose_best

GIVEN = "given plan {}"
"""A study's attribute: what came of a plan that was measured first."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        records: every trial in its latest version, by number.
        best: criterion -> the accepted trial that is best by it, see :func:`common.trials.best.choose_best`; under a
            budget also ``metric``, the first by :func:`common.search.finalists.best_first`, accepted or not.
        networks: number of a chosen trial -> its network; empty when the search was stopped before its end.
        sensitivities: layer -> measured sensitivity.
        layer_sizes: layer -> its parameters in the dense network.
        first_policy, last_policy: layer -> probability of each candidate, before and after.
        log: the log file.
        study: the Optuna study, for its own plots and for ``best_trials``.
        remaining: how many trials are still to be run; 0 unless the search was stopped.
        finished: whether it came to its end: the chosen were tested, and nothing is left to be done.
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
    remaining: int = 0
    finished: bool = True

    @property
    def best_networks(self) -> dict[int, nn.Module]:
        """Number of a best trial -> its network, as far as it is there."""
        numbers = dict.fromkeys(record.trial for record in self.best.values())
        return {number: self.networks[number] for number in numbers if number in self.networks}


def search_ranks(
    model: nn.Module,
    data: DataBundle,
    settings: SearchSettings | None = None,
    *,
    plans: Sequence[RankPlan] = (),
    decompositions: Decompositions | None = None,
    logs: str | Path = "logs",
    run: str | None = None,
    storage: str | Path | None = None,
    command: str | None = None,
    on_trial: Callable[[TrialRecord], None] | None = None,
) -> SearchResult:
    """Search the ranks of every layer of ``model``; every trial is on the disk before the next one starts.

    A trial compresses the network by a proposed plan, recalibrates BatchNorm and evaluates on a part of validation;
    those that Optuna's pruner lets climb are evaluated on all of it, counted and timed. The best few are then
    fine-tuned with the dense network as their teacher. At the end, and only then, the chosen networks and the dense
    one are evaluated on the test split; they are timed anew, because the fastest of many noisy timings flatters; and
    they are saved beside the log.

    A search that was stopped, by Ctrl-C or by a kill, goes on when the same call is made again with its ``run``: the
    same trials come out as without the stop. One that came to its end is read from its log again, and nothing is
    measured or written. Other processes may take part, see :mod:`common.search.study.worker`; one alone
    makes this call.

    Args:
        model: the dense network, trained; it is not changed.
        data: its four splits.
        settings: how; None for the defaults.
        plans: measured first, as trials of their own that the policy does not learn from: rank rules to compare with.
            A study that goes on keeps those that it was begun with.
        decompositions: those of ``model``; None makes them here, with the moments of the calibration split.
        logs: folder for the log.
        run: name of the run, its log and its study; None makes one from the model, data set, method and time.
        storage: where the study lives: a URL that Optuna knows, or a journal file; None for ``logs/<run>.journal``.
        command: what starts this search again, for the records; None for this process's own command line.
        on_trial: is called with every record as it is written; None prints its summary line.

    Warns:
        UserWarning: no layer of the network can be factored; the result is empty, and nothing is logged.

    Raises:
        ValueError: the run is being searched by another process, has a log but no study, was begun with another
            network, other data or settings, or is not a study's; the logs' folder cannot be written; the storage
            cannot be opened, is a file that is no journal, or a damaged journal; the budget cannot be met; the
            network has none of the features that fine-tuning is to compare, does not return one tensor that fits the
            targets, or was trained on inputs of another scale.
        RuntimeError: a network cannot be timed in one of the runtimes here.
    """
    settings = settings or SearchSettings()
    run = run or f"{_name(model)}-{data.name}-{settings.method}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    log_path(logs, run, new=False)  # the run must be able to name a file before its folder is made
    check_writable(logs)
    for runtime in settings.runtimes:
        RUNTIMES[runtime].check(next(model.parameters()).device)
    check_features(model, settings.finetune.features)
    check_normalization(model, data.normalization)
    check_network(model, data, training=settings.finetune_top > 0 or settings.finetune_given)
    if reason := nothing_to_search(model, data):
        warnings.warn(f"there is nothing to search: {reason}", stacklevel=2)
        return _empty_result(logs, run)
    check_run(logs, run, storage)
    with opened_storage(storage or journal_path(logs, run)) as opened:
        study = _open(run, opened, settings)
        _check_same(study, settings, model, data, decompositions)
        me = this_worker(MAIN)
        claim(study, me)
        try:
            prepared = _prepare_study(study, model, data, settings, plans, decompositions, weights_path(logs, run))
            with TrialWriter(logs, run) as writer:
                search = _Search(study, prepared, data, writer, on_trial or print_trial, command)
                return search.stored() if study.user_attrs.get(FINISHED) else search.run()
        finally:
            release(study, me)


def _empty_result(logs: str | Path, run: str) -> SearchResult:
    """That of a network that offers no choice: no trial, no log."""
    study = optuna.create_study(study_name=run)
    return SearchResult([], {}, {}, {}, {}, {}, {}, log_path(logs, run, new=False), study)


def _open(run: str, storage: BaseStorage, settings: SearchSettings) -> optuna.Study:
    directions = ["maximize"] if settings.objective == "score" else ["maximize", "minimize", "minimize", "minimize"]
    study = open_study(run, storage, directions)
    if len(study.directions) != len(directions):
        raise ValueError(f"run={run!r} was begun with another objective than {settings.objective!r}; name another run")
    return study


def _check_same(
    study: optuna.Study,
    settings: SearchSettings,
    model: nn.Module,
    data: DataBundle,
    decompositions: Decompositions | None,
) -> None:
    """Refuse to go on with a study that was begun with something else."""
    if (known := study.user_attrs.get(KEY)) is None:
        return
    if differences := Blueprint.from_json(known).differences(settings, model, data, decompositions):
        raise ValueError(
            f"run={study.study_name!r} was begun differently: {', '.join(differences)}; make the same call or name "
            "another run"
        )


def _prepare_study(
    study: optuna.Study,
    model: nn.Module,
    data: DataBundle,
    settings: SearchSettings,
    plans: Sequence[RankPlan],
    decompositions: Decompositions | None,
    weights: Path,
) -> Prepared:
    """Describe a new study, or take up one that goes on; and prepare to measure its trials."""
    known = study.user_attrs.get(KEY)
    if known is None:
        decompositions = decompositions or decompose_for_search(model, data, settings.seed)
        prepared = _begin(model, data, settings, plans, decompositions, weights)
    else:
        blueprint = Blueprint.from_json(known)
        decompositions = decompositions or decompose_for_search(
            model, data, settings.seed, blueprint.data_aware, blueprint.sweeps
        )
        prepared = prepare(model, data, dataclasses.replace(blueprint, settings=settings), decompositions)
    if known is None or prepared.blueprint.settings != Blueprint.from_json(known).settings:
        study.set_user_attr(KEY, prepared.blueprint.to_json())
    return prepared


def _begin(
    model: nn.Module,
    data: DataBundle,
    settings: SearchSettings,
    plans: Sequence[RankPlan],
    decompositions: Decompositions,
    weights: Path,
) -> Prepared:
    sensitivities, divergences = measure_sensitivities(model, data, decompositions, settings)
    blueprint = Blueprint(
        settings=settings,
        architecture=_name(model),
        weights=str(save_compressed(model, weights)),
        network=network_digest(model),
        dataset=dict(data.source),
        data=data_digest(data),
        data_aware=bool(decompositions.moments),
        sweeps=decompositions.sweeps,
        plans=[plan.to_json() for plan in plans],
        sensitivities=sensitivities,
        divergences=divergences,
        baseline={},
    )
    prepared = prepare(model, data, blueprint, decompositions)
    blueprint = dataclasses.replace(blueprint, baseline=prepared.objective.baseline())
    return dataclasses.replace(prepared, blueprint=blueprint)


def _name(model: nn.Module) -> str:
    provenance = get_provenance(model)
    return (provenance.builder if provenance else None) or type(model).__name__


class _Search:
    """A search under way in the process that ends it."""

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
        self.blueprint = prepared.blueprint
        decompositions = prepared.objective.decompositions
        self.recorder = Recorder(study.study_name, writer.run, data, self.blueprint, decompositions, command)
        self.runner = Runner(study, prepared, self.recorder, writer, show, MAIN)

    def run(self) -> SearchResult:
        """Run what is left of the study; a KeyboardInterrupt ends it with what there is."""
        self._note_start()
        networks: dict[int, nn.Module] = {}
        records: dict[int, TrialRecord] = {}
        try:
            self._measure_given()
            attempts = self.runner.run()
            records = self._records(attempts)
            self._log_what_no_log_holds(records)
            check_claim(self.study, self.runner.worker)
            finish = Finish(
                self.study, self.prepared.objective, self.blueprint.settings, records, self.writer, self.runner.write
            )
            finish.finetune_best(self.runner.given)
            best = finish.test_chosen(self.runner.given)
            networks = finish.networks
            self.study.set_user_attr(FINISHED, True)
        except KeyboardInterrupt:
            attempts = Attempts(self.study, self.blueprint.settings.slots)
            records = self._records(attempts) | records  # with what was fine-tuned, if it came to that
            best = choose_best(list(records.values()), self.blueprint.settings.keep)
            self.writer.note(f"stopped; the same call with run={self.writer.run!r} goes on from here")
        return self._result(records, best, networks, attempts)

    def stored(self) -> SearchResult:
        """What a search that is finished has found, from its log and the files beside it."""
        attempts = Attempts(self.study, self.blueprint.settings.slots)
        if attempts.finished < self.blueprint.settings.slots:
            raise ValueError(
                f"run={self.writer.run!r} is finished with {attempts.finished} trials, and "
                f"{self.blueprint.settings.slots} are asked for; the test split was read, so name another run"
            )
        logged = {record.trial: record for record in read_log(self.writer.path)[0]}
        records = self._records(attempts) | logged
        objective, settings = self.prepared.objective, self.blueprint.settings
        finish = Finish(self.study, objective, settings, records, self.writer, self.runner.write)
        return self._result(records, finish.best(), finish.stored_networks(), attempts)

    def _result(
        self,
        records: Mapping[int, TrialRecord],
        best: dict[str, TrialRecord],
        networks: dict[int, nn.Module],
        attempts: Attempts,
    ) -> SearchResult:
        first, last = policies(self.study, self.blueprint.settings, self.runner.logits)
        return SearchResult(
            records=[records[number] for number in sorted(records)],
            best=best,
            networks=networks,
            sensitivities=self.blueprint.sensitivities,
            layer_sizes={name: shape.dense_cost[0] for name, shape in self.prepared.space.shapes.items()},
            first_policy=first.probabilities,
            last_policy=last.probabilities,
            log=self.writer.path,
            study=self.study,
            remaining=self.blueprint.settings.slots - attempts.finished,
            finished=FINISHED in self.study.user_attrs,
        )

    def _note_start(self) -> None:
        objective = self.prepared.objective
        metric = objective.data.metric
        self.writer.note(
            f"dense {self.blueprint.architecture} on {objective.data.name}: {metric} "
            f"{objective.dense_metrics[metric]:.2%} on validation, {objective.dense_cost.params:,} parameters, "
            f"{objective.dense_cost.macs:,} MACs, {objective.dense_latency.median_s * 1000:.2f} ms"
        )

    def _measure_given(self) -> None:
        """Measure and log the plans that were given, those that an earlier process has not."""
        for number, plan in enumerate(self.blueprint.rank_plans()):
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

    def _log_what_no_log_holds(self, records: dict[int, TrialRecord]) -> None:
        """Trials of workers elsewhere, and those whose process was killed before it could write."""
        logged = logged_trials(self.writer.path.parent, self.writer.run, self.study.study_name)
        for number in sorted(records.keys() - logged):
            self.writer.write(records[number])

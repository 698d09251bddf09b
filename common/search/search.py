"""``search_ranks``: search rank plans, from the first trial to the test of the best."""

from __future__ import annotations

import dataclasses
import datetime
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import optuna
from optuna.storages import BaseStorage
from torch import nn

from common.compression import save_compressed
from common.data import DataBundle
from common.data.normalization import check_normalization
from common.files import check_writable
from common.latency import RUNTIMES
from common.network.copies import check_copy
from common.network.given import check_has_values
from common.network.provenance import get_provenance
from common.planning import RankPlan
from common.planning.decompositions import Decompositions
from common.search.objective import search_example
from common.search.preparation import Prepared, decompose_for_search, measure_sensitivities, nothing_to_search, prepare
from common.search.session import RunningSearch, SearchResult, finished_message
from common.search.settings import SearchSettings
from common.search.study.attempts import MAIN, claim, release, this_worker
from common.search.study.specification import (
    SPECIFICATION,
    StudySpecification,
    data_digest,
    network_digest,
    weights_path,
)
from common.search.study.storage import (
    FINISHED,
    check_log,
    check_log_alone,
    journal_path,
    open_study,
    opened_storage,
)
from common.training.distillation import check_features
from common.training.first_pass import check_network
from common.trials import TrialLines, TrialRecord, TrialWriter, log_path


class StudyOptions(TypedDict, total=False):
    """Where a study is stored, and its name.

    Attributes:
        logs: folder of the log; by default ``logs``.
        run: name of the run, its log and its study; by default from the model, data set, method and time.
        storage: where the study is stored: a URL that Optuna knows, or a journal file; by default
            ``<logs>/<run>.journal``.
        command: the command that starts this search again, for the records; by default this process's command line.
    """

    logs: str | Path
    run: str | None
    storage: str | Path | None
    command: str | None


_OPTIONS = ", ".join(StudyOptions.__annotations__)


def search_ranks(
    model: nn.Module,
    data: DataBundle,
    settings: SearchSettings | None = None,
    *,
    plans: Sequence[RankPlan] = (),
    decompositions: Decompositions | None = None,
    on_trial: Callable[[TrialRecord], None] | None = None,
    **options: Unpack[StudyOptions],
) -> SearchResult:
    """Search the ranks of every layer of ``model``. Every trial is on disk before the next one starts.

    A trial compresses the network, recalibrates BatchNorm and evaluates on a part of validation. Optuna's pruner
    decides which trials are evaluated on all of it, counted and timed. The finalists are then fine-tuned with the
    dense network as their teacher. Only at the end are the chosen networks and the dense one evaluated on the test
    split, timed again and saved beside the log. (The fastest of many noisy timings would flatter.)

    To continue a stopped search, make the same call again with its ``run``; the trials will be the same. A finished
    search is read from its log. Other processes can take part, see :mod:`common.search.study.worker`.

    Args:
        model: the dense, trained network. It stays unchanged.
        data: the data set with its four splits.
        settings: of the search; None for the defaults.
        plans: plans to measure first. The policy does not learn from them. A continued study keeps its own.
        decompositions: of ``model``. None makes them from the moments of the calibration split.
        on_trial: is called with every record as it is written. None prints a line under labelled columns.
        options: ``logs``, ``run``, ``storage`` and ``command``, see :class:`StudyOptions`.

    Warns:
        UserWarning: no layer can be factored. The result is then empty, and nothing is logged.

    Raises:
        ValueError: another process searches this run; the run has a log but no study, or was begun with another
            network, other data or settings; the folder or the storage cannot be used; the budget cannot be met; or
            the network does not fit the data.
        RuntimeError: a runtime cannot be used here, or many trials in a row failed for one reason (``SameFailure``).
        TypeError: an option is unknown, or an argument is of the wrong type.
    """
    settings = _checked_types(model, data, settings, options)
    logs, storage, run = options.get("logs", "logs"), options.get("storage"), options.get("run")
    run = run or f"{_name(model)}-{data.name}-{settings.method}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    _check_arguments(model, data, settings, plans, logs, run)
    if reason := nothing_to_search(model, data):
        warnings.warn(f"there is nothing to search: {reason}", stacklevel=2)
        return _empty_result(logs, run, settings.policy)
    check_log_alone(logs, run, storage)
    with opened_storage(storage or journal_path(logs, run)) as opened:
        study = _open(logs, run, opened, settings)
        _check_same(study, settings, model, data, decompositions)
        worker = this_worker(MAIN)
        claim(study, worker)
        try:
            prepared = _prepare_study(study, model, data, settings, plans, decompositions, weights_path(logs, run))
            with TrialWriter(logs, run) as writer:
                search = RunningSearch(study, prepared, data, writer, on_trial or TrialLines(), options.get("command"))
                return search.stored() if study.user_attrs.get(FINISHED) else search.run()
        finally:
            release(study, worker)


def _checked_types(model: object, data: object, settings: object, options: Mapping[str, object]) -> SearchSettings:
    """Return the settings; raise a TypeError unless :func:`search_ranks` takes arguments of these names and types."""
    if unknown := sorted(options.keys() - StudyOptions.__annotations__.keys()):
        raise TypeError(f"{unknown[0]!r} is no parameter of search_ranks; besides its own it takes {_OPTIONS}")
    check_has_values(model)
    if not isinstance(data, DataBundle):
        raise TypeError(
            f"data is a {type(data).__name__}: it must be a DataBundle, from load_data(name) or "
            "DataBundle.from_loaders(train, validation, test)"
        )
    settings = SearchSettings() if settings is None else settings
    if not isinstance(settings, SearchSettings):
        raise TypeError(f"settings is a {type(settings).__name__}: it must be SearchSettings(...), or None")
    return settings


def _check_arguments(
    model: nn.Module, data: DataBundle, settings: SearchSettings, plans: object, logs: str | Path, run: str
) -> None:
    """Raise unless the search can begin, before any work starts."""
    if not (isinstance(plans, Sequence) and all(isinstance(plan, RankPlan) for plan in plans)):
        raise ValueError(
            f"plans is {type(plans).__name__}: it must be a list of RankPlan; plan_ranks makes one of a rule"
        )
    log_path(logs, run, new=False)  # checks the run's name before any folder is made
    check_writable(logs)
    for runtime in settings.runtimes:
        RUNTIMES[runtime].check(next(model.parameters()).device)
    check_features(model, settings.finetune.features)
    check_normalization(model, data.normalization)
    check_network(model, data, training=settings.finetune_top > 0 or settings.finetune_given)
    check_copy(model, search_example(model, data))


def _empty_result(logs: str | Path, run: str, policy: str) -> SearchResult:
    """The result for a network without a layer to factor: no trial and no log."""
    study = optuna.create_study(study_name=run)
    return SearchResult([], {}, {}, {}, {}, {}, {}, log_path(logs, run, new=False), study, policy)


def _open(logs: str | Path, run: str, storage: BaseStorage, settings: SearchSettings) -> optuna.Study:
    check_log(logs, run, storage)
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
    """Raise a ValueError if the study was begun with something else."""
    if (known := study.user_attrs.get(SPECIFICATION)) is None:
        return
    specification = StudySpecification.from_json(known)
    if study.user_attrs.get(FINISHED) and (untimed := set(settings.runtimes) - set(specification.settings.runtimes)):
        raise ValueError(
            f"run={study.study_name!r} is finished and was timed in {', '.join(specification.settings.runtimes)}, not "
            f"in {', '.join(sorted(untimed))}; name another run, or time its networks by measure_latency"
        )
    if study.user_attrs.get(FINISHED) and settings.places > specification.settings.places:
        raise ValueError(finished_message(study.study_name, specification.settings.places, settings.places))
    if differences := specification.differences(settings, model, data, decompositions):
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
    """Describe a new study or read the description of a known one, and prepare to measure its trials."""
    known = study.user_attrs.get(SPECIFICATION)
    if known is None:
        decompositions = decompositions or decompose_for_search(model, data, settings.seed)
        prepared = _begin(model, data, settings, plans, decompositions, weights)
    else:
        specification = StudySpecification.from_json(known)
        decompositions = decompositions or decompose_for_search(
            model, data, settings.seed, specification.data_aware, specification.sweeps
        )
        prepared = prepare(model, data, dataclasses.replace(specification, settings=settings), decompositions)
    changed = known is not None and prepared.specification.settings != StudySpecification.from_json(known).settings
    if known is None or (changed and not study.user_attrs.get(FINISHED)):
        study.set_user_attr(SPECIFICATION, prepared.specification.to_json())
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
    specification = StudySpecification(
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
    prepared = prepare(model, data, specification, decompositions)
    specification = dataclasses.replace(specification, baseline=prepared.objective.baseline())
    return dataclasses.replace(prepared, specification=specification)


def _name(model: nn.Module) -> str:
    provenance = get_provenance(model)
    return (provenance.builder if provenance else None) or type(model).__name__

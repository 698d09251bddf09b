"""Trial records of a study: made where a trial runs, stored in the study, read by all of its processes."""

from __future__ import annotations

import glob
import shlex
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from common.data import DataBundle
from common.environment import describe_environment, git_commit, hide_passwords
from common.planning.decompositions import Decompositions
from common.planning.methods import method_of
from common.planning.plan import RankPlan
from common.search.objective import RUNGS, Measured, four_digits
from common.search.study.attempts import OUTCOME, Attempts
from common.search.study.specification import StudySpecification
from common.trials import TrialRecord, read_log

Values = dict[str, Any]
"""The fields of a record that differ between trials. A study stores only these."""
DIED_TWICE = "the process that ran it died, and so did the one that ran it again"


class Recorder:
    """Makes the records of a study.

    Args:
        study: the study's name.
        run: name of the run whose log gets the records.
        data: the data set.
        specification: of the study.
        decompositions: of the dense network. The record of trial 0 holds their spectra.
        command: the command that started the search; None for this process's command line.
    """

    def __init__(
        self,
        study: str,
        run: str,
        data: DataBundle,
        specification: StudySpecification,
        decompositions: Decompositions,
        command: str | None = None,
    ) -> None:
        self.study, self._settings = study, specification.settings
        self._decompositions = decompositions
        self._common: Values = {
            "run": run,
            "model": specification.architecture,
            "dataset": data.name,
            "metric": data.metric,
            "seed": specification.settings.seed,
            "baseline": specification.baseline,
            "environment": describe_environment()
            | {"command": hide_passwords(command or shlex.join(["python", *sys.argv]))},
            "git_commit": git_commit(Path(__file__).parent),
        }

    def record(self, number: int, values: Values) -> TrialRecord:
        """Make the complete record of a trial.

        Args:
            number: the trial's number.
            values: from :meth:`measured` or :meth:`failed`.
        """
        details = values["details"] | ({"spectra": self._spectra} if number == 0 else {})
        return TrialRecord(**{**self._common, "trial": number, **values, "details": details})

    @cached_property
    def _spectra(self) -> dict[str, list[float]]:
        spectra = self._decompositions.spectra()
        return {name: [four_digits(value) for value in values] for name, values in spectra.items()}

    def measured(self, plan: RankPlan, found: Measured, seconds: float, details: Values) -> Values:
        """The values of a measured trial, whichever rung it reached.

        Args:
            plan: the plan that was measured.
            found: its figures.
            seconds: the time that the trial took.
            details: further fields of the record's ``details``.
        """
        full = found.cost is not None
        described = {"score": found.score, "rung": RUNGS[found.rung], "rule_settings": dict(plan.settings)}
        return self._values(plan) | {
            "status": "ok" if full else "pruned",
            "metrics": found.metrics,
            "params": found.params,
            "macs": found.macs,
            "size_bytes": found.cost.size_bytes if found.cost else 0,
            "latency": found.latency.to_json() if found.latency else None,
            "seconds": seconds,
            "details": {**described, "part": found.part, "layers": found.layers, "study": self.study, **details},
        }

    def failed(
        self, plan: RankPlan | None, error: Exception | str, seconds: float = 0.0, sampler: str | None = None
    ) -> Values:
        """The values of a trial that could not be measured.

        Args:
            plan: the plan; None if the trial failed before it had one.
            error: what failed.
            seconds: the time that the trial took.
            sampler: who proposed the plan; None for the study's policy.
        """
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return self._values(plan or RankPlan({}, self._settings.method, self._settings.proposer)) | {
            "status": "failed",
            "metrics": {},
            "params": 0,
            "macs": 0,
            "size_bytes": 0,
            "latency": None,
            "seconds": seconds,
            "error": text,
            "details": {"study": self.study, "sampler": sampler or self._settings.policy}
            | ({"rule_settings": dict(plan.settings)} if plan else {}),
        }

    def _values(self, plan: RankPlan) -> Values:
        return {**_names(plan), "rule": plan.rule, "plan": plan.layers_as_json()}

    def of_attempts(self, attempts: Attempts, given: int) -> dict[int, TrialRecord]:
        """The records of all places that are judged or lost. Their numbers begin after the ``given`` plans."""
        found = {
            given + place: self.record(given + place, trial.user_attrs[OUTCOME]["record"])
            for place, trial in attempts.judged.items()
        }
        lost = {given + place: self.record(given + place, self.failed(None, DIED_TWICE)) for place in attempts.lost}
        return dict(sorted((found | lost).items()))


def _names(plan: RankPlan) -> Values:
    """How the record, a user and a report name the method: by the rule where a method allows that one alone."""
    name, method = method_of(plan.method, plan.rule)
    return {"method": plan.method, "method_name": name, "method_title": method.title}


def logged_trials(logs: str | Path, run: str, study: str) -> set[int]:
    """Numbers of the study's trials that are in the log of the run or of one of its workers."""
    logs = Path(logs)
    found: set[int] = set()
    for path in (logs / f"{run}.log", *sorted(logs.glob(f"{glob.escape(run)}-*.log"))):
        if path.exists():
            found |= {record.trial for record in read_log(path)[0] if record.details.study == study}
    return found


def plan_of_record(record: TrialRecord) -> RankPlan:
    """The plan in a record."""
    layers = {name: layer.to_json() for name, layer in record.plan.items()}
    settings = record.details.rule_settings
    return RankPlan.from_json({"method": record.method, "rule": record.rule, "layers": layers, "settings": settings})

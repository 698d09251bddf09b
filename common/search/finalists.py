"""The end of a search: refit and fine-tune the best few, and read the test split once for the chosen ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import optuna
from torch import nn

from common.compression import compress, load_compressed, save_compressed
from common.data import DataBundle
from common.data.own import OwnLoader
from common.network.copies import independent_copy
from common.search.objective import Objective
from common.search.settings import SearchSettings
from common.search.study.records import plan_of_record
from common.training import TRAINING_ERRORS, Evaluation, evaluate_images, paired_difference, train
from common.trials import TrialRecord, TrialWriter, read_log
from common.trials.best import choose_best, final_metric

FINETUNED = "finetuned trial {}"
"""A study's attribute: the new fields of a fine-tuned trial's record; empty if fine-tuning made it worse."""
REFITTED = "refitted trial {}"
"""The same of a refitted trial."""
ENDINGS = {REFITTED: "-refitted", FINETUNED: ""}
"""Attribute -> ending of the file of the network. Each stage has its own, so that none is done twice after a stop."""
FINETUNED_DENSE = "finetuned dense"
"""A study's attribute: what fine-tuning did to the dense network: ``better`` (its file is beside the log), ``worse``
(trials are compared with it as it was) or ``failed``."""


def network_file(log: Path, trial: int, ending: str = "") -> Path:
    """The file of a trial's network beside the log of its run; for ``ending`` see ``ENDINGS``."""
    return log.with_name(f"{log.stem}-trial{trial}{ending}.safetensors")


class Finalists:
    """Refits, fine-tunes and tests the best trials of a study. After a stop, it continues where it was.

    Args:
        study: the study, with all of its trials done.
        objective: measures the networks.
        settings: of the study.
        records: every trial by number; changed in place.
        writer: writes the run's log.
        write: is called with every record that changes.
    """

    def __init__(
        self,
        study: optuna.Study,
        objective: Objective,
        settings: SearchSettings,
        records: dict[int, TrialRecord],
        writer: TrialWriter,
        write: Callable[[TrialRecord], None],
    ) -> None:
        self.study, self.objective, self.settings, self.records = study, objective, settings, records
        self.writer, self._write_record = writer, write
        self.data: DataBundle = objective.data
        self.networks: dict[int, nn.Module] = {}
        self._done = study.user_attrs
        self._images = self.data.validation_images()
        self._logged = {record.trial: {*record.metrics} for record in read_log(writer.path)[0]}

    def _write(self, record: TrialRecord) -> None:
        self.records[record.trial], self._logged[record.trial] = record, {*record.metrics}
        self._write_record(record)

    def _file(self, number: int, ending: str = "") -> Path:
        return network_file(self.writer.path, number, ending)

    def finetune_best(self, given: int) -> None:
        """Fine-tune the best trials with the dense network as their teacher, and log them again.

        The best are those with the highest scores. Under a budget they are the first by :func:`best_first` among
        those that keep to it (given plans need not). If the settings ask for it, the given plans are fine-tuned too.

        Args:
            given: how many plans were given; their trials have the first numbers.
        """
        self._for_the_best(self.settings.finetune_top, given, FINETUNED, self._finetune)

    def refit_best(self, given: int) -> None:
        """Refit the trials that :meth:`finetune_best` takes, and at least the best one, if the settings ask for it.

        Args:
            given: how many plans were given; their trials have the first numbers.
        """
        if self.settings.refit:
            self._for_the_best(max(1, self.settings.finetune_top), given, REFITTED, self._refit)

    def _for_the_best(
        self, count: int, given: int, attribute: str, work: Callable[[TrialRecord], dict[str, Any]]
    ) -> None:
        """Do ``work`` for the best trials; the study's attribute keeps its result, so that it is done once.

        Trials for which it was done before a stop keep it, although more trials may have become better since.
        """
        best = self._ranked()[:count]
        measured = [record for record in self.records.values() if record.status == "ok"]
        others = [record for record in measured if record.trial < given and record not in best]
        taken = [*best, *(others if self.settings.finetune_given else [])]
        earlier = [each for each in measured if self._done.get(attribute.format(each.trial)) and each not in taken]
        for record in [*taken, *earlier]:
            done: dict[str, Any] | None = self._done.get(attribute.format(record.trial))
            file = self._file(record.trial, ENDINGS[attribute])
            fresh = done is None or (done and not file.exists() and not self._is_finetuned(record.trial))
            if fresh:
                done = work(record)
                if done:
                    save_compressed(self.networks[record.trial], file)
                self.study.set_user_attr(attribute.format(record.trial), done)
            elif done and file.exists():
                self.networks[record.trial] = load_compressed(file, self.objective.model)
            # Last, because a copy that a callback makes must hold the file and the attribute.
            self._reach(record.replace(**(done or {})), bool(fresh))

    def _is_finetuned(self, number: int) -> bool:
        """Whether a trial was fine-tuned before a stop, and its network is on the disk."""
        return bool(self._done.get(FINETUNED.format(number))) and self._file(number).exists()

    def _reach(self, record: TrialRecord, fresh: bool) -> None:
        """Take a record after a stage; write it, unless the log has it.

        Args:
            record: of a trial.
            fresh: whether the stage was done now. Its values can differ from those in the log if a file was lost.
        """
        known, logged = self.records[record.trial], self._logged.get(record.trial, set())
        changed = record.metrics != known.metrics or not logged <= record.metrics.keys()
        self.records[record.trial] = record
        if (fresh and changed) or not record.metrics.keys() <= logged:
            self._write(record)

    def _ranked(self) -> list[TrialRecord]:
        """The trials that were measured in full and keep to the budget, the best first.

        Under a budget their latest metrics decide, otherwise their scores, which fine-tuning does not change.
        """
        measured = [record for record in self.records.values() if record.status == "ok"]
        if self.settings.budget is None:
            return sorted(measured, key=lambda record: record.details.score or 0.0, reverse=True)
        return best_first(filter(self._keeps_to_budget, measured), self._images)

    def _keeps_to_budget(self, record: TrialRecord) -> bool:
        budget, dense = self.settings.budget, self.objective.dense_cost
        idle = dense.params - dense.params_in_use
        kept, whole = (record.params - idle, record.macs), (dense.params_in_use, dense.macs)
        return budget is None or budget.allows(kept, whole)

    def _refit(self, record: TrialRecord) -> dict[str, Any]:
        start = time.perf_counter()
        description = f"refitting trial {record.trial}"
        try:
            network = self.objective.refitted(plan_of_record(record))
        except (ValueError, *TRAINING_ERRORS) as error:  # calibration data on which a layer's values are not finite
            self.writer.note(f"{description} failed: {type(error).__name__}: {error}")
            return {}
        after = record.replace(metrics={**record.metrics, "refitted": self.objective.evaluate(network)})
        if self._worse(after, record):
            self.writer.note(f"{description} made it worse; the network stays as it was")
            return {}
        return self._keep(after, network, start)

    def _keep(self, record: TrialRecord, network: nn.Module, start: float, **details: Any) -> dict[str, Any]:
        """Take a network that became better; return the new fields of its record."""
        self.networks[record.trial] = network
        return {
            "metrics": record.metrics,
            "seconds": record.seconds + time.perf_counter() - start,
            "details": {**record.details.to_json(), **details},
        }

    def _finetune(self, record: TrialRecord) -> dict[str, Any]:
        start = time.perf_counter()
        known = self.networks.get(record.trial)
        network = self.objective.build(plan_of_record(record)) if known is None else independent_copy(known)
        description = f"fine-tuning trial {record.trial}"
        try:
            history = train(
                network, self.data, self.settings.finetune, teacher=self.objective.model, description=description
            )
            tuned, metric = self.objective.evaluate(network), self.data.metric
        except TRAINING_ERRORS as error:  # the trial keeps what it reached without fine-tuning
            self.writer.note(f"{description} failed: {type(error).__name__}: {error}")
            return {}
        after = record.replace(metrics={**record.metrics, "finetuned": tuned})
        if self._worse(after, record):
            self.writer.note(f"{description} made it worse ({tuned[metric]:.2%}); the network stays as it was")
            return {}
        return self._keep(after, network, start, rung="finetuned", finetuning=history)

    @property
    def _dense_file(self) -> Path:
        return self.writer.path.with_name(f"{self.writer.run}-dense-finetuned.safetensors")

    def _finetune_dense(self, trial: TrialRecord) -> str:
        """Fine-tune a copy of the dense network as the trials were, taught by itself; save it if it is better.

        Args:
            trial: any; the rule that decided about its fine-tuning decides here.

        Returns:
            See ``FINETUNED_DENSE``.
        """
        network, metric, description = independent_copy(self.objective.model), self.data.metric, "fine-tuning dense"
        try:
            train(network, self.data, self.settings.finetune, teacher=self.objective.model, description=description)
            tuned = self.objective.evaluate(network)
        except TRAINING_ERRORS as error:
            self.writer.note(f"{description} failed: {type(error).__name__}: {error}")
            return "failed"
        before = trial.replace(metrics={"recalibrated": self.objective.dense_metrics})
        if self._worse(before.replace(metrics={**before.metrics, "finetuned": tuned}), before):
            self.writer.note(
                f"{description} made it worse ({tuned[metric]:.2%}); trials are compared with it as it was"
            )
            return "worse"
        save_compressed(network, self._dense_file)
        return "better"

    def _tuned_dense_on_test(self, chosen: Iterable[int], untuned: Evaluation) -> Evaluation | None:
        """What the dense network does on test after the fine-tuning that a chosen trial had; None if there was none.

        Args:
            chosen: numbers of the chosen trials.
            untuned: what the dense network does as it is.
        """
        tuned = [record for number in chosen if "finetuned" in (record := self.records[number]).metrics]
        if not tuned or not self.settings.finetune_dense:
            return None
        done = self._done.get(FINETUNED_DENSE)
        if done is None or (done == "better" and not self._dense_file.exists()):
            done = self._finetune_dense(tuned[0])
            self.study.set_user_attr(FINETUNED_DENSE, done)
        if done != "better":
            return untuned if done == "worse" else None
        return evaluate_images(load_compressed(self._dense_file, self.objective.model), self.data.test, self.data.task)

    def _worse(self, after: TrialRecord, before: TrialRecord) -> bool:
        if self.settings.budget is None:
            return (final_metric(after) or 0.0) < (final_metric(before) or 0.0)
        return best_first([after, before], self._images)[0] is before

    def test_chosen(self, given: int) -> dict[str, TrialRecord]:
        """Test, time and save the chosen trials; test the dense network. This alone reads the test split.

        The chosen are the best of all trials by each criterion, and the best of the policy's own trials. Under a
        budget, the first by :func:`best_first` is chosen too, accepted or not. So are all given plans if the settings
        ask for it.

        Args:
            given: how many plans were given; their trials have the first numbers.

        Returns:
            See :meth:`best`.
        """
        every = self.eligible()
        sampled = [record for record in every if record.trial >= given]
        best = choose_best(every, self.settings.keep)
        chosen = {r.trial for r in (*best.values(), *choose_best(sampled, self.settings.keep).values())}
        if top := self._best_within_budget():
            chosen.add(top.trial)
        if self.settings.finetune_given:
            chosen |= {record.trial for record in every if record.trial < given and record.status == "ok"}
        model = self.objective.model
        for number in sorted(chosen):
            if number not in self.networks:
                self.networks[number] = self.objective.build(plan_of_record(self.records[number]))
        test, loader = evaluate_images(model, self.data.test, self.data.task), self.data.test
        tuned = self._tuned_dense_on_test(sorted(chosen), test)
        images: int = loader.images if isinstance(loader, OwnLoader) else len(loader.dataset)  # type: ignore[arg-type]
        for number in sorted(chosen):
            network, record = self.networks[number], self.records[number]
            file = save_compressed(network, self._file(number))
            tested = evaluate_images(network, self.data.test, self.data.task)
            metrics = {"raw": self._raw(record), **record.metrics, "test": tested.metrics}
            dense = record.baseline.replace(
                metrics={**record.baseline.metrics, "test": test.metrics},
                images={**record.baseline.images, "test": images},
            )
            times = []
            for runtime in self.settings.runtimes:
                ratio = self.objective.macs_ratio(network, runtime)
                times.append({**self.objective.time(network, 31, runtime).to_json(), "macs_ratio": ratio})
            layers = self.objective.layer_times(network, plan_of_record(record))
            details = record.details.replace(
                weights=file.name,
                latencies=times,
                layer_times=layers,
                test_difference=paired_difference(tested, test, self.data.metric),
                tuned_difference=(
                    paired_difference(tested, tuned, self.data.metric) if tuned and "finetuned" in metrics else None
                ),
            )
            self._write(record.replace(metrics=metrics, latency=times[0], baseline=dense, details=details))
        self.networks = {number: self.networks[number] for number in sorted(chosen)}
        return self.best()

    def remove_refitted(self) -> None:
        """Remove the files of refitted networks, which only a search that is not finished needs."""
        for number in self.records:
            self._file(number, ENDINGS[REFITTED]).unlink(missing_ok=True)

    def best(self) -> dict[str, TrialRecord]:
        """Criterion -> the best trial; under a budget ``metric`` is one of the criteria."""
        best, top = choose_best(self.eligible(), self.settings.keep), self._best_within_budget()
        return {**best, "metric": self.records[top.trial]} if top else best

    def eligible(self) -> list[TrialRecord]:
        """The trials that may be chosen: given plans, and those of the policy that keep to the budget."""
        return [
            record
            for record in self.records.values()
            if record.details.sampler == "given" or self._keeps_to_budget(record)
        ]

    def stored_networks(self) -> dict[int, nn.Module]:
        """Number of a chosen trial -> its network, from those files beside the log that still exist."""
        files = {number: self._file(number) for number, record in self.records.items() if record.details.weights}
        return {
            number: load_compressed(file, self.objective.model)
            for number, file in sorted(files.items())
            if file.exists()
        }

    def _best_within_budget(self) -> TrialRecord | None:
        """Under a budget, the best trial that keeps to it; otherwise None."""
        return next(iter(self._ranked()), None) if self.settings.budget is not None else None

    def _raw(self, record: TrialRecord) -> dict[str, float]:
        """Metrics on validation before BatchNorm was recalibrated. A search measures them for the chosen only."""
        if "raw" in record.metrics:
            return record.metrics["raw"]
        plan = plan_of_record(record)
        return self.objective.evaluate(
            compress(self.objective.model, plan, decompositions=self.objective.decompositions)
        )


def best_first(records: Iterable[TrialRecord], images: int) -> list[TrialRecord]:
    """Order trials of one size by their latest metrics on validation, the one most worth fine-tuning first.

    The first has the least loss among those whose metric lies within one standard error of the best; the rest follow
    in the same way (the rule of one standard error, Breiman et al. 1984). The best of many trials on few images is
    partly luck, and the loss distinguishes trials that differ by luck. The loss alone would not do: it would prefer
    networks that are never sure to networks that are sometimes wrong.

    Args:
        records: trials that were measured in full.
        images: number of images of validation, N. The standard error of a metric m is sqrt(m (1 - m) / N).
    """
    left = [record for record in records if final_metric(record) is not None]
    ranked: list[TrialRecord] = []
    while left:
        best = max(final_metric(record) or 0.0 for record in left)
        error = math.sqrt(max(best * (1 - best), 0.0) / images)
        close = [record for record in left if (final_metric(record) or 0.0) >= best - error]
        first = min(close, key=_final_loss)
        ranked.append(first)
        left.remove(first)
    return ranked


def _final_loss(record: TrialRecord) -> float:
    loss = final_metric(record, "loss")
    return math.inf if loss is None else loss

"""``search_ranks``: the loop that samples plans, measures them, moves the policy, and fine-tunes the best few."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

from common.calibration import calibrate
from common.checkpoints import save_compressed
from common.data import DataBundle
from common.environment import describe_environment
from common.metrics import evaluate
from common.models.provenance import get_provenance
from common.planning.layers import Decompositions, trace_layers
from common.planning.plan import RankPlan
from common.search.candidates import layer_candidates, plan_of
from common.search.objective import Objective, calibration_inputs
from common.search.policy import Levels, Policy, elite_of
from common.search.sensitivity import layer_sensitivities
from common.training import TrainingSettings, train
from common.trials import TrialRecord, TrialWriter, choose_best, git_commit, log_path, summary_line

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(strict=True))
class SearchSettings:
    """How ranks are searched for.

    Attributes:
        method: the decomposition.
        policy: ``adaptive`` moves toward the best trials, ``static`` never moves.
        trials: how many plans are measured.
        batch: trials between two moves of the policy.
        elite: share of all trials so far that the policy moves toward.
        smoothing: how far it moves, in (0, 1].
        alpha, beta, temperature: of the policy's first distributions, see :class:`common.search.policy.Policy`.
        size_weight: what the score takes off for the size kept, see :meth:`common.search.objective.Objective.score`.
        keep: a trial is accepted when it keeps this share of the dense accuracy.
        finetune_top: how many of the best trials by score are fine-tuned.
        finetune: how; at most 3 epochs.
        sensitivity_images: from the calibration split, for the sensitivities.
        latency_batch: inputs in a timed pass.
        seed: of the sampling.
    """

    method: Literal["svd", "spatial_svd", "tucker2", "htd"] = "htd"
    policy: Literal["adaptive", "static"] = "adaptive"
    trials: Annotated[int, Field(ge=1)] = 30
    batch: Annotated[int, Field(ge=1)] = 10
    elite: Share = 0.2
    smoothing: Share = 0.5
    alpha: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 1.0
    temperature: Positive = 0.3
    size_weight: Annotated[float, Field(ge=0)] = 0.5
    keep: Share = 0.99
    finetune_top: Annotated[int, Field(ge=0)] = 3
    finetune: TrainingSettings = TrainingSettings(epochs=1.0, learning_rate=0.02)
    finetune_given: bool = False
    sensitivity_images: Annotated[int, Field(ge=1)] = 128
    latency_batch: Annotated[int, Field(ge=1)] = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.finetune.epochs > 5:
            raise ValueError(f"finetune.epochs={self.finetune.epochs}: a trial is fine-tuned for at most 3 epochs")


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        records: every trial in its latest version, by number.
        best: criterion -> the accepted trial that is best by it, see :func:`common.trials.choose_best`.
        networks: number of a chosen trial -> its network.
        sensitivities: layer -> measured sensitivity.
        layer_sizes: layer -> its parameters in the dense network.
        first_policy, last_policy: layer -> probability of each candidate, before and after.
        log: the log file.
    """

    records: list[TrialRecord]
    best: dict[str, TrialRecord]
    networks: dict[int, nn.Module]
    sensitivities: dict[str, float]
    layer_sizes: dict[str, int]
    first_policy: dict[str, list[float]]
    last_policy: dict[str, list[float]]
    log: Path


def search_ranks(
    model: nn.Module,
    data: DataBundle,
    settings: SearchSettings | None = None,
    *,
    plans: Sequence[RankPlan] = (),
    decompositions: Decompositions | None = None,
    logs: str | Path = "logs",
    run: str | None = None,
    on_trial: Callable[[TrialRecord], None] | None = None,
) -> SearchResult:
    """Search the ranks of every layer of ``model``; every trial is on the disk before the next one starts.

    A trial compresses the network by a sampled plan, evaluates it on validation, recalibrates BatchNorm, evaluates
    again, counts and times it. The best few are then fine-tuned with the dense network as their teacher. At the end,
    and only then, the chosen networks and the dense one are evaluated on the test split; they are timed anew, because
    the fastest of many noisy timings flatters; and they are saved beside the log.

    Args:
        model: the dense network, trained; it is not changed.
        data: its four splits.
        settings: how; None for the defaults.
        plans: measured first, as trials of their own that the policy does not learn from: rank rules to compare with.
        decompositions: those of ``model``; None makes them here, with the moments of the calibration split.
        logs: folder for the log.
        run: name of the run and its log; None makes one from the model, data set, method and time.
        on_trial: is called with every record as it is written; None prints its summary line.

    Raises:
        ValueError: the log of this run exists already.
    """
    settings = settings or SearchSettings()
    show = on_trial or (lambda record: print(summary_line(record), flush=True))
    provenance = get_provenance(model)
    architecture = (provenance.builder if provenance else None) or type(model).__name__
    run = run or f"{architecture}-{data.name}-{settings.method}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    log_path(logs, run)
    decompositions = decompositions or Decompositions(model, calibrate(model, data.calibration))
    search = _Search(model, data, settings, run, architecture, decompositions)
    with TrialWriter(logs, run) as writer:
        search.start(writer, show)
        search.run_trials(plans)
        search.finetune_best()
        best = search.test_chosen()
        return SearchResult(
            records=[search.records[number] for number in sorted(search.records)],
            best=best,
            networks=search.networks,
            sensitivities=search.sensitivities,
            layer_sizes={name: shape.dense_cost[0] for name, shape in search.shapes.items()},
            first_policy=search.first_policy,
            last_policy=search.policy.probabilities,
            log=writer.path,
        )


class _Search:
    """A search under way."""

    def __init__(
        self,
        model: nn.Module,
        data: DataBundle,
        settings: SearchSettings,
        run: str,
        architecture: str,
        decompositions: Decompositions,
    ) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.objective = Objective(model, data, decompositions, settings.latency_batch)
        self.shapes = trace_layers(model, self.objective.x)
        self.candidates = layer_candidates(self.shapes, decompositions, settings.method)
        inputs = calibration_inputs(data, settings.sensitivity_images).to(self.objective.x.device)
        self.sensitivities = layer_sensitivities(model, self.candidates, decompositions, inputs)
        self.policy = Policy(
            self.candidates,
            self.sensitivities,
            alpha=settings.alpha,
            beta=settings.beta,
            temperature=settings.temperature,
        )
        self.first_policy = self.policy.probabilities
        self._data_aware = bool(decompositions.moments)
        self.records: dict[int, TrialRecord] = {}
        self.networks: dict[int, nn.Module] = {}
        self._plans: dict[int, RankPlan] = {}
        self._scores: dict[int, float] = {}
        self._given = 0
        self._common: dict[str, Any] = {
            "run": run,
            "model": architecture,
            "dataset": data.name,
            "metric": self.data.metric,
            "seed": settings.seed,
            "baseline": self.objective.baseline(),
            "environment": describe_environment(),
            "git_commit": git_commit(Path(__file__).parent),
        }

    def start(self, writer: TrialWriter, show: Callable[[TrialRecord], None]) -> None:
        """Log what the dense network is like; from here on every trial goes to ``writer`` and to ``show``."""
        self.writer, self.show = writer, show
        dense = self.objective
        writer.note(
            f"dense {self._common['model']} on {self.data.name}: {self.data.metric} "
            f"{dense.dense_metrics[self.data.metric]:.2%} on "
            f"validation, {dense.dense_cost.params:,} parameters, {dense.dense_cost.macs:,} MACs, "
            f"{dense.dense_latency.median_s * 1000:.2f} ms"
        )

    def run_trials(self, plans: Sequence[RankPlan]) -> None:
        """Measure and log the given plans, then sampled ones; move the policy after every batch of those."""
        for plan in plans:
            self._run_trial(plan)
        self._given = len(plans)
        generator = torch.Generator().manual_seed(self.settings.seed)
        rule = f"{self.settings.policy} policy"
        sampled: list[tuple[float, Levels]] = []
        for count in range(1, self.settings.trials + 1):
            levels = self.policy.sample(generator)
            number = self._run_trial(plan_of(self.candidates, levels, self.settings.method, rule))
            if number in self._scores:
                sampled.append((self._scores[number], levels))
            if self.settings.policy == "adaptive" and count % self.settings.batch == 0 and sampled:
                self.policy.update(elite_of(sampled, self.settings.elite), self.settings.smoothing)

    def _run_trial(self, plan: RankPlan) -> int:
        """Measure one plan and log it; returns the trial's number."""
        start, number = time.perf_counter(), len(self.records)
        self._plans[number] = plan
        record = TrialRecord(
            **self._common,
            trial=number,
            status="failed",
            method=plan.method,
            rule=plan.rule,
            plan=plan.layers_as_json(),
            metrics={},
            params=0,
            macs=0,
            size_bytes=0,
            latency=None,
            seconds=0.0,
        )
        try:
            measured = self.objective.measure(plan)
        except Exception as error:  # one network that cannot be measured must not end the search
            record = dataclasses.replace(record, error=f"{type(error).__name__}: {error}")
        else:
            score = self.objective.score(measured.metrics["recalibrated"], measured.cost, self.settings.size_weight)
            self._scores[number] = score
            record = dataclasses.replace(
                record,
                status="ok",
                metrics=measured.metrics,
                params=measured.cost.params,
                macs=measured.cost.macs,
                size_bytes=measured.cost.size_bytes,
                latency=measured.latency.to_json(),
                details={"score": score, "rule_settings": dict(plan.settings), "data_aware": self._data_aware},
            )
        self._write(dataclasses.replace(record, seconds=time.perf_counter() - start))
        return number

    def _write(self, record: TrialRecord) -> None:
        self.writer.write(record)
        self.records[record.trial] = record
        self.show(record)

    def finetune_best(self) -> None:
        """Fine-tune the best trials by score, the dense network as their teacher, and log them again."""
        ranked = sorted(self._scores, key=lambda number: self._scores[number], reverse=True)
        chosen = ranked[: self.settings.finetune_top]
        given = [
            n for n in range(self._given) if self.settings.finetune_given and n in self._scores and n not in chosen
        ]
        for number in [*chosen, *given]:
            start = time.perf_counter()
            network = self.objective.build(self._plans[number])
            description = f"fine-tuning trial {number}"
            try:
                history = train(
                    network, self.data, self.settings.finetune, teacher=self.model, description=description
                )
            except FloatingPointError as error:  # the trial keeps what it reached without fine-tuning
                self.writer.note(f"{description} failed: {error}")
                continue
            record = self.records[number]
            tuned = evaluate(network, self.data.validation)
            if tuned[self.data.metric] < record.metrics["recalibrated"][self.data.metric]:
                self.writer.note(
                    f"{description} made it worse ({tuned[self.data.metric]:.2%}); the network stays as it was"
                )
                continue
            self.networks[number] = network
            self._write(
                dataclasses.replace(
                    record,
                    metrics={**record.metrics, "finetuned": tuned},
                    seconds=record.seconds + time.perf_counter() - start,
                    details={**record.details, "finetuning": history},
                )
            )

    def test_chosen(self) -> dict[str, TrialRecord]:
        """Read the test split once, for the chosen trials and the dense network; time and save the chosen.

        Chosen are the best of all trials and, where given plans beat those of the policy, the policy's best as well.
        """
        every = list(self.records.values())
        sampled = [record for record in every if record.trial >= self._given]
        best = choose_best(every, self.settings.keep)
        chosen = {r.trial for r in (*best.values(), *choose_best(sampled, self.settings.keep).values())}
        dense = self._common["baseline"]
        dense = {**dense, "metrics": {**dense["metrics"], "test": evaluate(self.model, self.data.test)}}
        for number in sorted(chosen):
            if number not in self.networks:
                self.networks[number] = self.objective.build(self._plans[number])
            network = self.networks[number]
            file = save_compressed(network, self.writer.path.with_name(f"{self.writer.run}-trial{number}.safetensors"))
            record = self.records[number]
            self._write(
                dataclasses.replace(
                    record,
                    metrics={**record.metrics, "test": evaluate(network, self.data.test)},
                    latency=self.objective.time(network, rounds=31).to_json(),
                    baseline=dense,
                    details={**record.details, "weights": file.name},
                )
            )
        self.networks = {number: self.networks[number] for number in sorted(chosen)}
        return choose_best(list(self.records.values()), self.settings.keep)

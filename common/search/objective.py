"""What a trial measures, as a ladder of three rungs: predicted, on a part of validation, on all of validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from common.calibration import recalibrate_bn, refit
from common.compression import compress
from common.data import DataBundle
from common.data.bundle import Loader
from common.decomposition.als import IMPROVING_SWEEPS
from common.deploy import fold_batchnorm, merge_factors
from common.latency import RUNTIMES, Latency, layer_times, measure_latency
from common.network import Profile, profile
from common.network.copies import independent_copy
from common.network.modes import random_state_kept
from common.network.shapes import example_of
from common.planning.costs import kept_shares
from common.planning.decompositions import Decompositions
from common.planning.plan import RankPlan
from common.search.settings import SearchSettings
from common.search.space import Space
from common.training import evaluate

Metrics = dict[str, dict[str, float]]
Batches = Iterable[tuple[Tensor, Tensor]]
RUNGS = ("predicted", "part", "full")
"""The rungs of the ladder. Fine-tuning and the test follow after the last trial, for the best few."""
EXAMPLE_INPUTS = 8
"""Inputs that costs are counted on, where one input does not do."""
HELD_BYTES = 2**29
"""Batches up to this size are prepared once and kept in memory."""


@dataclass(frozen=True)
class Measured:
    """How far a plan climbed, and its figures there.

    Attributes:
        rung: the last rung that was measured.
        score: the score there, see :meth:`Objective.score`.
        merit: the adaptive policy's criterion there, see :meth:`Objective.merit`; for a prediction, the score.
        params, macs: the network's cost.
        part: metrics on a part of validation; empty if not measured.
        metrics: stage -> metric -> value on all of validation; empty below the last rung.
        layers: the figures of each factored layer, see :meth:`Objective.layer_figures`; empty if none was built.
        cost: the network's profile; None below the last rung.
        latency: the network's latency; None below the last rung, or if trials are not timed.
    """

    rung: int
    score: float
    merit: float
    params: int
    macs: int
    part: dict[str, float] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    cost: Profile | None = None
    latency: Latency | None = None


Climb = Callable[[int, float], bool]
"""From a rung and the score there to whether to measure the plan on the next rung."""


def search_example(model: nn.Module, data: DataBundle) -> Tensor:
    """The input that costs are counted on, or a few where one does not do, see `example_of`; on the model's device."""
    return example_of(model, data.example(EXAMPLE_INPUTS).to(next(model.parameters()).device))


class Objective:
    """Measures plans for one dense network on one data set.

    Args:
        model: the dense network.
        data: calibration is used for BatchNorm, validation for the metrics.
        decompositions: of ``model``.
        space: of ``model``. It predicts the costs of plans and, under a budget, their losses.
        settings: of the search. Under a budget, the size does not count in the score, and trials are timed only if
            the search seeks a front.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataBundle,
        decompositions: Decompositions,
        space: Space,
        settings: SearchSettings,
    ) -> None:
        self.model, self.data, self.decompositions, self.space = model, data, decompositions, space
        self.size_weight, self._seed = 0.0 if space.budget else settings.size_weight, settings.seed
        self._time_trials = settings.budget is None or settings.objective == "pareto"
        self.x = search_example(model, data)
        self.timed = self.x[torch.arange(settings.latency_batch) % len(self.x)]
        self.dense_cost = profile(model, self.x)
        self._validation: Batches = held(data.validation)
        self._parts = {
            name: max(1, math.ceil(settings.part * len(loader)))
            for name, loader in (("calibration", data.calibration), ("validation", data.validation))
        }
        self.has_part = self._parts["validation"] < len(data.validation)
        self.dense_metrics = self.evaluate(model)
        self.dense_part = evaluate(model, self._part(), data.task) if self.has_part else self.dense_metrics
        _check_dense(data.metric, self.dense_metrics[data.metric])
        if self.dense_part[data.metric] <= 0:  # scores are shares of it
            self.dense_part = self.dense_metrics
        self.dense_latency = measure_latency(model, self.timed)

    def _part(self) -> Batches:
        return islice(self._validation, self._parts["validation"])

    def build(self, plan: RankPlan) -> nn.Module:
        """Compress the network and recalibrate its BatchNorm."""
        small = compress(self.model, plan, decompositions=self.decompositions)
        self._recalibrate(small)
        return small

    def refitted(self, plan: RankPlan) -> nn.Module:
        """Compress the network with improved factors and refit it, as :func:`common.shrink.shrink` does.

        BatchNorm is recalibrated if that lowers the loss on validation.
        """
        small = compress(self.model, plan, decompositions=self._improved)
        with random_state_kept(self.x.device, self._seed):
            refit(small, self.model, leading(self.data.calibration), seed=self._seed)
        recalibrated = independent_copy(small)
        self._recalibrate(recalibrated)
        return min((small, recalibrated), key=lambda network: self.evaluate(network)["loss"])

    @cached_property
    def _improved(self) -> Decompositions:
        return self.decompositions.with_sweeps(max(IMPROVING_SWEEPS, self.decompositions.sweeps))

    def _recalibrate(self, network: nn.Module, max_batches: int | None = None) -> None:
        with random_state_kept(self.x.device, self._seed):
            recalibrate_bn(network, self.data.calibration, max_batches=max_batches)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Metrics on all of validation."""
        return evaluate(network, self._validation, self.data.task)

    def measure(self, plan: RankPlan, climb: Climb | None = None, raw: bool = False) -> Measured:
        """Measure a plan rung by rung.

        Args:
            plan: for the dense network. With ``climb`` and a budget, the space must have made it.
            climb: decides after each rung but the last. None measures only the last one.
            raw: also evaluate the network before its BatchNorm is recalibrated.

        Raises:
            FloatingPointError: the loss on validation is not finite.
        """
        params, macs = self.space.cost(plan)
        if climb and self.space.fits_budget:
            # exp(-divergence) is the likelihood that the compressed network gives to what the dense one says.
            predicted = math.exp(-self.space.predicted_loss(plan)) - self.size_weight * self._kept(params, macs)
            if not climb(0, predicted):
                return Measured(0, predicted, predicted, params, macs)
        small = compress(self.model, plan, decompositions=self.decompositions)
        layers = self.layer_figures(plan)
        metrics = {"raw": self.evaluate(small)} if raw else {}
        part: dict[str, float] = {}
        if climb and self.has_part:
            self._recalibrate(small, self._parts["calibration"])
            part = _finite(evaluate(small, self._part(), self.data.task))
            score = self.score(part, params, macs, self.dense_part)
            if not climb(1, score):
                return Measured(1, score, self.merit(part, score), params, macs, part, layers=layers)
        self._recalibrate(small)
        metrics["recalibrated"] = _finite(self.evaluate(small))
        cost = profile(small, self.x)
        score = self.score(metrics["recalibrated"], cost.params, cost.macs)
        latency = self.time(small, rounds=7) if self._time_trials else None
        merit = self.merit(metrics["recalibrated"], score)
        return Measured(2, score, merit, cost.params, cost.macs, part, metrics, layers, cost, latency)

    def layer_figures(self, plan: RankPlan) -> dict[str, dict[str, Any]]:
        """Factored layer -> its figures, in the form of a trial record's.

        The error is that of the layer's output on calibration data, or of its weight if there are no moments.
        """
        found = {}
        for name, layer in plan.factored.items():
            params, macs = kept_shares(self.space.shapes[name], layer)
            made = self.decompositions.get(name, layer.method or "")
            dense_params, dense_macs = self.space.shapes[name].dense_cost
            found[name] = {
                "error": four_digits(made.relative_error(layer.ranks)),
                "params": four_digits(params),
                "macs": four_digits(macs),
                "dense_params": dense_params,
                "dense_macs": dense_macs,
                "full": list(made.max_ranks),
            }
        return found

    def time(self, network: nn.Module, rounds: int, runtime: str = "eager") -> Latency:
        """Measure the latency of ``network``, with the dense network timed in turn."""
        return measure_latency(network, self.timed, baseline=self.model, rounds=rounds, runtime=runtime)

    def macs_ratio(self, network: nn.Module, runtime: str) -> float:
        """The dense network's MACs over those of ``network``, both as ``runtime`` computes them.

        An export may pad ranks to a multiple; the padding does not count.
        """
        networks = [self.model, network]
        if RUNTIMES[runtime].merges_factors:
            networks = [merge_factors(fold_batchnorm(each, self.x), self.x) for each in networks]
        dense, small = (profile(each, self.x).macs for each in networks)
        return dense / small

    def layer_times(self, network: nn.Module, plan: RankPlan) -> dict[str, object] | None:
        """The seconds of each layer in the dense network and in this one, in PyTorch; None on a GPU.

        See :func:`common.latency.layer_times`.
        """
        if self.timed.device.type != "cpu":
            return None
        after = layer_times(network, self.timed, "eager", plan)
        rounded = [
            {name: four_digits(seconds) for name, seconds in times.items()} for times in (self._dense_times, after)
        ]
        return {"runtime": RUNTIMES["eager"].title, "before": rounded[0], "after": rounded[1]}

    @cached_property
    def _dense_times(self) -> dict[str, float]:
        return layer_times(self.model, self.timed, "eager")

    def baseline(self) -> dict[str, object]:
        """The dense network's figures, in the form of a trial record."""
        return {
            "params": self.dense_cost.params,
            "macs": self.dense_cost.macs,
            "size_bytes": self.dense_cost.size_bytes,
            "latency": self.dense_latency.to_json(),
            "metrics": {"validation": self.dense_metrics},
            "images": {"validation": self.data.validation_images()},
        }

    def score(
        self, metrics: Mapping[str, float], params: int, macs: int, dense: Mapping[str, float] | None = None
    ) -> float:
        """``metric / dense metric - size_weight * (share of parameters kept + share of MACs kept) / 2``."""
        name = self.data.metric
        reached = metrics[name] / max((dense or self.dense_metrics)[name], 1e-12)
        return reached - self.size_weight * self._kept(params, macs)

    def merit(self, metrics: Mapping[str, float], score: float) -> float:
        """The adaptive policy's criterion: ``-loss`` under a budget, otherwise the score.

        Networks of one size differ by few images, mostly by luck. The loss tells them apart, see docs/methods.md.
        """
        if self.space.budget is None:
            return score
        return -metrics["loss"] if math.isfinite(metrics["loss"]) else -math.inf

    def _kept(self, params: int, macs: int) -> float:
        return (params / self.dense_cost.params + macs / self.dense_cost.macs) / 2


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    """Return ``metrics``.

    Raises:
        FloatingPointError: the loss is not finite, so the network's outputs mean nothing.
    """
    if not math.isfinite(metrics["loss"]):
        raise FloatingPointError(f"the loss on validation is {metrics['loss']}")
    return metrics


def four_digits(value: float) -> float:
    """Round to four significant digits, which keeps a log's lines short."""
    return float(f"{value:.4g}")


def held(batches: Loader) -> Batches:
    """Keep the batches in memory if they are small enough. A search reads them hundreds of times."""
    inputs, targets = next(iter(batches))
    size = (inputs.nbytes + targets.nbytes) * len(batches)
    return list(batches) if size <= HELD_BYTES else batches


def leading(batches: Loader) -> list[Tensor]:
    """The inputs of the first batches, up to ``HELD_BYTES``, and of at least one."""
    found: list[Tensor] = []
    for inputs, _ in batches:
        if found and sum(each.nbytes for each in (*found, inputs)) > HELD_BYTES:
            break
        found.append(inputs)
    return found


def calibration_inputs(data: DataBundle, count: int) -> Tensor:
    """The first ``count`` inputs of the calibration split, or all of them if it is smaller: ``(N, C, H, W)``."""
    batches: list[Tensor] = []
    for inputs, _ in data.calibration:
        batches.append(inputs)
        if sum(map(len, batches)) >= count:
            break
    return torch.cat(batches)[:count]


def _check_dense(metric: str, reached: float) -> None:
    """Raise a ValueError if the dense network's metric on validation is no number, or below 0."""
    if not reached >= 0:
        raise ValueError(
            f"the dense network's {metric} on validation is {reached:.3g}: a search compares networks by their share "
            "of it, so it must be at least 0; train it first"
        )

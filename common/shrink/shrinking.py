"""``shrink``: the best low-rank network that the suite can make within a budget, in one call, without training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from common.calibration import calibrate, recalibrate_bn, refit
from common.calibration.divergence import Divergence
from common.compression import compress
from common.compression.compress import check_uncompressed
from common.data.tasks import TASKS
from common.decomposition.als import IMPROVING_SWEEPS
from common.latency import measured_latencies
from common.latency.cache import check_timed
from common.network import profile
from common.network.attention import join_projections, separate_projections
from common.network.batches import Batches, check_batches, inputs_of, joined
from common.network.copies import check_copy
from common.network.given import check_is_network
from common.network.inputs import to_network
from common.network.layers import factorable_layers
from common.network.modes import ordinary_precision
from common.network.passes import example_batch
from common.network.shapes import example_of, trace_layers
from common.network.state import Snapshot
from common.planning import Budget, RankPlan, plan_ranks
from common.planning.allocation import UnreachableBudget
from common.planning.correction import measured_errors
from common.planning.decompositions import Decompositions
from common.planning.options import Divergences
from common.planning.planner import check_rule
from common.planning.rules import Rule
from common.search.candidates import planned_candidates
from common.search.sensitivity import measure_divergences
from common.shrink.judging import HeldOutImages, split_images
from common.shrink.result import Shrunk, Step
from common.validation import is_whole

MEASURED_PIXELS = 256 * 32 * 32
"""Pixels of the images on which single layers' divergences are measured."""
MEASURED_IMAGES = (16, 256)
"""The fewest and the most of these images."""


@dataclass(frozen=True)
class ShrinkSteps:
    """The steps of :func:`shrink`. Each can be turned off, to study what it contributes.

    Attributes:
        measure: under a ``Budget``, measure how much each layer's error changes the network's output.
        align: under a ``Budget`` with its default ``round_to=1``, the ranks of wide layers are multiples of 16, which
            fill the blocks of channels that processors compute at once.
        improve: sweeps of alternating least squares on the full second moment of each layer's patches.
        refit: fit each layer to the dense network's outputs on the inputs that it gets in the compressed network.
        recalibrate: recompute BatchNorm's statistics, if that lowers the divergence on held-out images.
        seed: of all samples.
        correct: under a ``Budget``, with ``improve``, scale predicted errors to what improved factors lose on held-out
            patches.
    """

    measure: bool = True
    align: bool = True
    improve: int = IMPROVING_SWEEPS
    refit: bool = True
    recalibrate: bool = True
    seed: int = 0
    correct: bool = True

    def __post_init__(self) -> None:
        if not (is_whole(self.improve) and self.improve >= 0):
            raise ValueError(f"improve={self.improve!r}: it must be a whole number of sweeps of at least 0")


def shrink(
    model: nn.Module,
    batches: Batches,
    rule: Rule,
    method: str = "mixed",
    *,
    steps: ShrinkSteps | None = None,
    divergence: Divergence | None = None,
    task: str | None = None,
) -> Shrunk:
    """Make a smaller network with the least loss that the suite can reach without training.

    It calibrates, decomposes every layer once, corrects the predicted errors, measures how much each layer's error
    matters, plans the ranks, compresses, improves the factors, refits them from the first layer to the last, and
    recalibrates BatchNorm where that helps. Every eighth image is held out; it decides which steps are kept. All
    images stay in memory. The projections of attention become layers first, see
    :func:`common.network.attention.separate_projections`.

    Args:
        model: the dense network. It stays unchanged.
        batches: input tensors, or pairs (inputs, targets), from the calibration split: some hundred images. They must
            be images that the network was trained on, or like them. Budgets count what the first image runs; the first
            batch, on average, where it runs more layers (mixtures of experts) or the network takes no single image.
            Targets of a known task (class numbers, masks in [0, 1], numbers to predict) add metrics to the report.
        rule: e.g. ``Budget(params=0.3)``. For ``Budget(latency=...)``, the layers are timed on this machine first.
        method: see :func:`common.planning.plan_ranks`.
        steps: the steps to take; None takes all.
        divergence: measures how far outputs are from the dense ones. None takes the Kullback-Leibler divergence for
            class scores and, where the targets say so, for masks, for several labels of each input, or for the classes
            of each pixel ``(N, H, W)``; the relative squared error for any other output, and where the targets are
            numbers to predict, such as depths, boxes or clean images.
        task: name of the task of the targets, see :data:`common.data.TASKS`; None to recognise it, see
            :func:`common.data.tasks.base.are_numbers`.

    Returns:
        The network, its plan and a report.

    Raises:
        TypeError: ``model`` is no network, ``batches`` no series of batches, or ``divergence`` no function.
        ValueError: an argument is out of range, ``batches`` is empty, or the budget cannot be met.
    """
    return next(shrink_each(model, batches, [rule], method, steps=steps, divergence=divergence, task=task))


def shrink_each(
    model: nn.Module,
    batches: Batches,
    rules: Iterable[Rule],
    method: str = "mixed",
    *,
    steps: ShrinkSteps | None = None,
    divergence: Divergence | None = None,
    task: str | None = None,
) -> Iterator[Shrunk]:
    """Shrink one network to several sizes; calibration, decomposition and measurement are done once for all.

    Predicted errors are corrected for each budget, before the first network is made.

    Layers' divergences are measured with the methods that the first ``Budget`` plans, and serve the others as well. So
    the result for another budget may differ a little from that of :func:`shrink` by itself. Networks are made as they
    are asked for; the dense network must not change until the last one.

    Args:
        model: the dense network. It stays unchanged.
        batches: some hundred calibration images, as for :func:`shrink`.
        rules: at least one, e.g. ``[Budget(macs=share) for share in (0.5, 0.4, 0.3)]``.
        method: see :func:`common.planning.plan_ranks`.
        steps: the steps to take; None takes all.
        divergence: see :func:`shrink`.
        task: see :func:`shrink`.

    Returns:
        An iterator that makes the next network when it is asked for it. Each report lists the shared steps too.

    Raises:
        ValueError: as :func:`shrink` does, before the first network is made; or ``rules`` is empty.
    """
    check_is_network(model)
    if isinstance(rules, Rule):
        raise ValueError(f"rules={rules!r} is one rule; it must be a list: [rules]")
    rules = list(rules)
    if not rules:
        raise ValueError("rules is empty: at least one is needed")
    for rule in rules:
        check_rule(rule, method)
        if isinstance(rule, Budget) and rule.latency is not None:
            check_timed(rule.runtime, method, next(model.parameters(), torch.empty(0)).device)
    if task is not None:
        TASKS.check(task)
    check_uncompressed(model)
    check_batches(batches)
    if not (divergence is None or callable(divergence)):
        raise TypeError(f"divergence={divergence!r}: it must be a function of two outputs, or None to choose one")
    if not isinstance(steps, ShrinkSteps | None):
        raise ValueError(f"steps={steps!r}: it must be a ShrinkSteps, or None for all steps")
    with ordinary_precision():
        run = _Run(model, list(batches), rules, method, steps or ShrinkSteps(), (task, divergence))
    return _each_in_ordinary_precision(run.results())


def _each_in_ordinary_precision(results: Iterator[Shrunk]) -> Iterator[Shrunk]:
    """Make each result in ordinary precision; between them the caller's own modes hold."""
    while True:
        with ordinary_precision():
            found = next(results, None)
        if found is None:
            return
        yield found


class _Run:
    """One call of :func:`shrink_each`; see there for the arguments. ``judged_by``: the task and the divergence."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Tensor | tuple[Tensor, Tensor]],
        rules: Sequence[Rule],
        method: str,
        steps: ShrinkSteps,
        judged_by: tuple[str | None, Divergence | None],
    ) -> None:
        if not batches:
            raise ValueError("batches is empty: there is no batch to calibrate on")
        model = separate_projections(model)
        for rule in rules:
            rule.check_layers(factorable_layers(model))
        self.model, self.method, self.settings = model, method, steps
        self.rules = [_aligned(rule) if steps.align else rule for rule in rules]
        self.batches = batches
        self.inputs = [to_network(example_batch(inputs_of(batch), model), model) for batch in batches]
        self.x = example_of(model, self.inputs[0])
        check_copy(model, self.x)
        self.fitted, held_out, targets = split_images(batches, self.inputs, judged_by[0])
        self.judge = HeldOutImages(model, held_out, targets, *judged_by)
        self.steps: list[Step] = []

    def results(self) -> Iterator[Shrunk]:
        """Take the steps that all networks share, then make one network after another."""
        with self._timed("calibrate"):
            moments = calibrate(self.model, self.inputs, seed=self.settings.seed)
        decompositions = Decompositions(self.model, moments)
        with self._timed("decompose"):  # an unreachable budget is refused before the long measurement
            plans = [self._plan(rule, decompositions, None) for rule in self.rules]
        settings = self.settings
        budgets = {index: rule for index, rule in enumerate(self.rules) if isinstance(rule, Budget)}
        planned = dict.fromkeys(budgets, decompositions)
        correct = settings.correct and settings.improve > 0
        if correct and budgets:
            with self._timed("correct"):
                for index, rule in budgets.items():
                    points = measured_errors(self.model, self.x, plans[index], rule, decompositions, settings.improve)
                    planned[index] = decompositions.corrected(points)
                    plans[index] = self._replan(rule, planned[index], None, plans[index])
        divergences = None
        if settings.measure and budgets:
            with self._timed("measure"):
                sweeps = settings.improve if correct else 0
                divergences = self._measured_divergences(decompositions.with_sweeps(sweeps), plans[min(budgets)])
        shared = tuple(self.steps)
        for index, plan in enumerate(plans):
            self.steps = list(shared)
            with self._timed("plan"):
                if index in budgets:
                    plan = self._replan(budgets[index], planned[index], divergences, plan)
            yield self._shrunk(plan, decompositions)

    def _replan(
        self, rule: Rule, decompositions: Decompositions, divergences: Divergences | None, before: RankPlan
    ) -> RankPlan:
        """Plan again by better losses; where these leave no plan within the budget, stay at the plan before."""
        try:
            return self._plan(rule, decompositions, divergences)
        except UnreachableBudget:
            return before

    def _shrunk(self, plan: RankPlan, decompositions: Decompositions) -> Shrunk:
        """Take the steps from the plan to the network."""
        settings = self.settings
        with self._timed("compress") as step:
            small = compress(self.model, plan, decompositions=decompositions)
            step.append(small)
        if settings.improve:
            with self._timed("improve") as step:
                better = compress(self.model, plan, decompositions=decompositions.with_sweeps(settings.improve))
                step.append(better)
            if self.judge.distance(better) <= self.judge.distance(small):
                small = better
            else:
                self.steps[-1] = replace(self.steps[-1], kept=False)
        if settings.refit:
            self._if_better("refit", small, lambda: bool(refit(small, self.model, self.inputs, seed=settings.seed)))
        if settings.recalibrate and sum(map(len, self.fitted)) > 1:
            self._if_better("recalibrate", small, lambda: bool(recalibrate_bn(small, self.fitted)))
        join_projections(small)
        costs = profile(self.model, self.x), profile(small, self.x)
        return Shrunk(small, plan, tuple(self.steps), *costs, self.judge.dense_metrics, self.judge.divergence)

    def _plan(self, rule: Rule, decompositions: Decompositions, divergences: Divergences | None) -> RankPlan:
        """Plan the ranks; time the layers first if the rule limits the latency."""
        latencies = None
        if isinstance(rule, Budget) and rule.latency is not None:
            latencies = measured_latencies(self.model, self.x, rule.runtime, self.method)
        return plan_ranks(
            self.model,
            self.x,
            self.method,
            rule,
            decompositions=decompositions,
            divergences=divergences,
            latencies=latencies,
        )

    def _measured_divergences(self, decompositions: Decompositions, plan: RankPlan) -> Divergences:
        """How far the output moves when one layer alone errs, by the method that ``plan`` gives it."""
        least, most = MEASURED_IMAGES
        count = min(most, max(least, MEASURED_PIXELS // max(1, self.x[0, 0].numel())))
        inputs: list[Tensor] = []
        for batch in joined(self.inputs, count):
            if (left := count - sum(map(len, inputs))) > 0:
                inputs.append(batch[:left])
        candidates = planned_candidates(trace_layers(self.model, self.x), decompositions, plan)
        return measure_divergences(
            self.model,
            candidates,
            decompositions,
            inputs,
            divergence=self.judge.divergence,
            at_measured_errors=decompositions.sweeps > 0,
        )

    @contextmanager
    def _timed(self, name: str) -> Iterator[list[nn.Module]]:
        """Record a step; the network that it made, if any, is appended to what the context gives."""
        start = time.perf_counter()
        made: list[nn.Module] = []
        yield made
        seconds = time.perf_counter() - start
        if made:
            self.steps.append(Step(name, seconds, self.judge.distance(made[0]), self.judge.metrics(made[0])))
        else:
            self.steps.append(Step(name, seconds))

    def _if_better(self, name: str, small: nn.Module, change: Callable[[], bool]) -> None:
        """Change ``small`` in place; undo it unless its divergence falls. A change that does nothing is no step."""
        start = time.perf_counter()
        before = Snapshot(small)
        value = self.judge.distance(small)
        if not change():
            return
        after, metrics = self.judge.distance(small), self.judge.metrics(small)
        kept = after < value
        if not kept:
            before.restore()
        self.steps.append(Step(name, time.perf_counter() - start, after, metrics, kept))


def _aligned(rule: Rule) -> Rule:
    """The rule with ranks that suit the hardware, if it is a budget that leaves their steps open."""
    return replace(rule, round_to=None) if isinstance(rule, Budget) and rule.round_to == 1 else rule

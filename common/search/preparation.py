"""What a process prepares before its first trial: decompositions, sensitivities, the space, the dense figures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from common.calibration import calibrate
from common.data import DataBundle
from common.data.tasks import TASKS
from common.network.counting import count_operations
from common.network.modes import random_state_kept
from common.network.shapes import dense_reason, example_of, trace_layers
from common.planning import plan_ranks
from common.planning.accounting import nothing_to_factor, untouched_modules
from common.planning.decompositions import Decompositions
from common.planning.methods import decompositions_of
from common.planning.plan import RankPlan
from common.search.candidates import layer_candidates, planned_candidates
from common.search.objective import EXAMPLE_INPUTS, Objective, calibration_inputs, search_example
from common.search.policies import POLICIES
from common.search.sensitivity import (
    interpolated_sensitivities,
    layer_sensitivities,
    measure_divergences,
    single_divergences,
)
from common.search.settings import SearchSettings
from common.search.space import Space
from common.search.study.specification import Points, StudySpecification


@dataclass(frozen=True)
class Prepared:
    """Everything a process needs to measure trials. It is the same in every process of a study.

    Attributes:
        specification: of the study.
        space: what the trials choose from.
        objective: measures the trials.
        single_plan: the policy's plan, if it has only one.
    """

    specification: StudySpecification
    space: Space
    objective: Objective
    single_plan: RankPlan | None = None


def nothing_to_search(model: nn.Module, data: DataBundle) -> str:
    """Why no layer of ``model`` can be factored; empty if one can."""
    x = search_example(model, data)
    shapes = trace_layers(model, x)
    if not shapes:
        return nothing_to_factor(model, untouched_modules(model, shapes, count_operations(model, x)))
    reasons = {name: dense_reason(shape) for name, shape in shapes.items()}
    return (
        "; ".join(f"{name} stays dense: {reason}" for name, reason in reasons.items()) if all(reasons.values()) else ""
    )


def decompose_for_search(
    model: nn.Module, data: DataBundle, seed: int, data_aware: bool = True, sweeps: int = 0
) -> Decompositions:
    """The decompositions of ``model``, on the calibration split or on its weights alone.

    Args:
        model: the dense network.
        data: its calibration split is read.
        seed: seeds the split's augmentation, so that every process gets the same decompositions.
        data_aware: whether to minimise the errors of the layers' outputs on data instead of the weights' errors.
        sweeps: number of improving sweeps, see :class:`common.planning.decompositions.Decompositions`.
    """
    if not data_aware:
        return Decompositions(model, sweeps=sweeps)
    with random_state_kept(next(model.parameters()).device, seed):
        return Decompositions(model, calibrate(model, data.calibration), sweeps)


def measure_sensitivities(
    model: nn.Module, data: DataBundle, decompositions: Decompositions, settings: SearchSettings
) -> tuple[dict[str, float], dict[str, Points]]:
    """Each layer's sensitivity, and its points (squared relative error, measured divergence).

    If the policy has its own sensitivities, nothing is measured and there are no points.
    """
    device = next(model.parameters()).device
    with random_state_kept(device, settings.seed):
        inputs = calibration_inputs(data, settings.sensitivity_images).to(device)
    x = example_of(model, inputs[:EXAMPLE_INPUTS])
    shapes = trace_layers(model, x)
    divergence = TASKS[data.task].divergence
    own = POLICIES[settings.policy].sensitivities(shapes, decompositions, settings.method)
    if own is not None:
        return own, {}
    if settings.budget and settings.table:
        first = plan_ranks(model, x, settings.method, settings.budget, decompositions=decompositions)
        candidates = planned_candidates(shapes, decompositions, first)
        table = measure_divergences(model, candidates, decompositions, inputs, divergence=divergence)
        divergences = {name: list(points) for name, points in table.items()}
        return interpolated_sensitivities(candidates, divergences), divergences
    candidates = layer_candidates(shapes, decompositions, decompositions_of(settings.method)[0])
    sensitivities = layer_sensitivities(model, candidates, decompositions, inputs, divergence)
    return sensitivities, single_divergences(candidates, sensitivities)


def prepare(
    model: nn.Module, data: DataBundle, specification: StudySpecification, decompositions: Decompositions
) -> Prepared:
    """Prepare everything a process needs to measure the trials of a study.

    Raises:
        ValueError: the budget cannot be met.
    """
    settings = specification.settings
    policy = POLICIES[settings.policy]
    x = search_example(model, data)
    own = policy.candidates(trace_layers(model, x), decompositions, settings.method)
    space = Space(model, x, decompositions, settings.method, settings.budget, specification.divergences, own)
    plan = policy.single_plan(model, x, decompositions, space)
    return Prepared(specification, space, Objective(model, data, decompositions, space, settings), plan)

"""How much the network's output changes when one layer alone is factored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.calibration.divergence import Divergence, kl_divergence, mean_divergence, outputs_on
from common.compression import SingleLayers
from common.network.inputs import to_network
from common.planning.decompositions import Decompositions
from common.planning.options import Divergences
from common.planning.plan import LayerPlan
from common.progress import track
from common.search.candidates import LEVEL_SHARES, Candidate, Candidates

UNUSABLE = 1e6
"""Counts as the divergence of a network whose outputs are not finite."""
REFERENCE_LEVEL = LEVEL_SHARES.index(0.1)


def reference_candidate(choices: Sequence[Candidate | None]) -> Candidate | None:
    """The candidate at which a layer's sensitivity is measured.

    It has a tenth of the layer's parameters, or is the next larger one with an error. None if there is none.
    """
    return next((choice for choice in choices[REFERENCE_LEVEL:] if choice and choice.error), None)


def layer_sensitivities(
    model: nn.Module,
    candidates: Candidates,
    decompositions: Decompositions,
    inputs: Tensor,
    divergence: Divergence = kl_divergence,
) -> dict[str, float]:
    """Measure the sensitivity of every layer.

    Each layer in turn is cut to about a tenth of its parameters while the others stay dense. Its sensitivity is the
    mean divergence of the network's outputs from the dense ones, by default in nats for each image, or for each pixel
    if there is an output for each. No target is needed. A layer without a candidate that errs gets 0.

    Args:
        model: the dense network. Its training mode stays as it was.
        candidates: the candidates of its layers.
        decompositions: the decompositions of its layers.
        inputs: ``(N, C, H, W)`` from the calibration split.
        divergence: measures how far outputs are from the dense ones.
    """
    references = {name: reference_candidate(choices) for name, choices in candidates.items()}
    measured = _divergences(
        model,
        [(name, choice.plan) for name, choice in references.items() if choice],
        decompositions,
        inputs,
        divergence,
    )
    return dict.fromkeys(candidates, 0.0) | {name: value for (name, _), value in measured}


def measure_divergences(
    model: nn.Module,
    candidates: Candidates,
    decompositions: Decompositions,
    inputs: Tensor | Sequence[Tensor],
    shares: Sequence[float] = (0.04, 0.1, 0.2, 0.45),
    divergence: Divergence = kl_divergence,
    at_measured_errors: bool = False,
) -> Divergences:
    """Measure the divergence of the network's output at several errors of each layer alone.

    One measurement serves every budget, because :func:`common.planning.plan_ranks` interpolates in it.

    Args:
        model: the dense network. Its training mode stays as it was.
        candidates: the candidates of its layers, by one method.
        decompositions: the decompositions of its layers. With sweeps, improved factors are measured.
        inputs: ``(N, C, H, W)`` from the calibration split, or several such batches.
        shares: the levels to measure, by their share in ``LEVEL_SHARES``.
        divergence: measures how far outputs are from the dense ones, e.g. the Kullback-Leibler divergence in nats.
        at_measured_errors: give the factors' errors as measured on held-out patches, for plans by corrected errors, in
            place of the candidates' predicted ones.

    Returns:
        Layer -> points (squared relative error, mean divergence from the dense outputs).
    """
    chosen = [
        (name, choice)
        for name, choices in candidates.items()
        for share in shares
        if (choice := choices[LEVEL_SHARES.index(share)]) and choice.error
    ]
    plans = [(name, choice.plan) for name, choice in chosen]
    measured = _divergences(model, plans, decompositions, inputs, divergence)
    table: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for (name, choice), (_, value) in zip(chosen, measured, strict=True):
        error = choice.error
        if at_measured_errors:
            error = decompositions.get(name, choice.plan.method or "").measured_error(choice.plan.ranks)
        table[name].append((error**2, value))
    return {name: points for name, points in table.items() if points}


@torch.no_grad()
def _divergences(
    model: nn.Module,
    plans: Sequence[tuple[str, LayerPlan]],
    decompositions: Decompositions,
    inputs: Tensor | Sequence[Tensor],
    divergence: Divergence = kl_divergence,
) -> list[tuple[tuple[str, LayerPlan], float]]:
    """For each (layer, plan), the mean divergence of the outputs when only that layer is factored."""
    batches = [to_network(batch, model) for batch in ([inputs] if isinstance(inputs, Tensor) else inputs)]
    dense, layers = outputs_on(model, batches), SingleLayers(model, decompositions)
    found = []
    for name, plan in track(plans, "sensitivity", unit="layer"):
        with layers.factored(name, plan) as small:
            value = mean_divergence(divergence, dense, outputs_on(small, batches))
        found.append(((name, plan), min(value, UNUSABLE)))
    return found


def interpolated_sensitivities(candidates: Candidates, divergences: Divergences) -> dict[str, float]:
    """Each layer's sensitivity, interpolated in its divergences at the error of its reference candidate."""
    found = dict.fromkeys(candidates, 0.0)
    for name, choices in candidates.items():
        reference = reference_candidate(choices)
        if reference and name in divergences:
            errors, values = zip((0.0, 0.0), *sorted(divergences[name]), strict=True)
            found[name] = float(np.interp(reference.error**2, errors, values))
    return found


def single_divergences(
    candidates: Candidates, sensitivities: Mapping[str, float]
) -> dict[str, list[tuple[float, float]]]:
    """Divergences with one point for each layer: its sensitivity, at the squared error where it was measured."""
    references = {name: reference_candidate(choices) for name, choices in candidates.items()}
    return {name: [(reference.error**2, sensitivities[name])] for name, reference in references.items() if reference}

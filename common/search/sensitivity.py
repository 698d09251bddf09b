"""How much the network's output suffers when one layer alone is decomposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.compression import compress
from common.network.inputs import to_network
from common.network.modes import evaluating
from common.network.outputs import single_tensor
from common.planning.decompositions import Decompositions
from common.planning.options import Divergences
from common.planning.plan import LayerPlan, RankPlan
from common.progress import track
from common.search.candidates import LEVELS, Candidate, Candidates

REFERENCE_LEVEL = LEVELS.index(0.1)


def reference_candidate(choices: Sequence[Candidate | None]) -> Candidate | None:
    """The candidate at which a layer's sensitivity is measured: a tenth of its parameters, or the next that errs."""
    return next((choice for choice in choices[REFERENCE_LEVEL:] if choice and choice.error), None)


def layer_sensitivities(
    model: nn.Module, candidates: Candidates, decompositions: Decompositions, inputs: Tensor
) -> dict[str, float]:
    """Measured sensitivity of every layer to decomposition.

    Each layer in turn is cut to about a tenth of its parameters, the rest left dense; its sensitivity is the mean
    Kullback-Leibler divergence of the network's outputs from the dense ones, in nats for an image or, where there is
    an output for each, for a pixel. No target is needed. A layer that has no candidate with an error gets 0.

    Args:
        model: the dense network; its training mode is left as it was.
        candidates: of its layers.
        decompositions: of its layers.
        inputs: ``(N, C, H, W)`` from the calibration split.
    """
    references = {name: reference_candidate(choices) for name, choices in candidates.items()}
    measured = _divergences(
        model, [(name, choice.plan) for name, choice in references.items() if choice], decompositions, inputs
    )
    return dict.fromkeys(candidates, 0.0) | {name: value for (name, _), value in measured}


def measure_divergences(
    model: nn.Module,
    candidates: Candidates,
    decompositions: Decompositions,
    inputs: Tensor,
    levels: Sequence[float] = (0.04, 0.1, 0.2, 0.45),
) -> Divergences:
    """A table, layer x level, of what decomposing that layer alone does to the network's output.

    Measured once, it serves every budget: :func:`common.planning.plan_ranks` interpolates in it.

    Args:
        model: the dense network; its training mode is left as it was.
        candidates: of its layers, by any one method.
        decompositions: of its layers.
        inputs: ``(N, C, H, W)`` from the calibration split.
        levels: which of ``LEVELS`` are measured.

    Returns:
        Layer -> points (squared relative error, Kullback-Leibler divergence from the dense outputs in nats).
    """
    chosen = [
        (name, choice)
        for name, choices in candidates.items()
        for level in levels
        if (choice := choices[LEVELS.index(level)]) and choice.error
    ]
    measured = _divergences(model, [(name, choice.plan) for name, choice in chosen], decompositions, inputs)
    table: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for (name, choice), (_, divergence) in zip(chosen, measured, strict=True):
        table[name].append((choice.error**2, divergence))
    return {name: points for name, points in table.items() if points}


@torch.no_grad()
def _divergences(
    model: nn.Module, plans: Sequence[tuple[str, LayerPlan]], decompositions: Decompositions, inputs: Tensor
) -> list[tuple[tuple[str, LayerPlan], float]]:
    """For each (layer, plan) the divergence of the outputs when only that layer is decomposed."""
    inputs = to_network(inputs, model)
    with evaluating(model):
        dense = _log_probabilities(model(inputs))
    found = []
    for name, plan in track(plans, "sensitivity", unit="layer"):
        small = compress(model, RankPlan({name: plan}, "", ""), decompositions=decompositions)
        output = _log_probabilities(small.eval()(inputs))
        divergence = nn.functional.kl_div(output, dense, reduction="none", log_target=True).sum(1).mean()
        found.append(((name, plan), max(0.0, divergence.item())))
    return found


def _log_probabilities(output: object) -> Tensor:
    """Of the classes, along axis 1; a single channel is the logit of a mask, which has two."""
    logits = single_tensor(output, "the network")
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits.log_softmax(1)


def interpolated_sensitivities(candidates: Candidates, divergences: Divergences) -> dict[str, float]:
    """Each layer's sensitivity read off its table of divergences, at the error of its reference candidate."""
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
    """A table of divergences with one point a layer: its sensitivity, at the squared error where that was measured."""
    references = {name: reference_candidate(choices) for name, choices in candidates.items()}
    return {name: [(reference.error**2, sensitivities[name])] for name, reference in references.items() if reference}

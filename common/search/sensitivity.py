"""How much the network's output suffers when one layer alone is decomposed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.compression import compress
from common.planning.layers import Decompositions
from common.planning.plan import RankPlan
from common.progress import track
from common.search.candidates import LEVELS, Candidates

REFERENCE_LEVEL = LEVELS.index(0.1)


@torch.no_grad()
def layer_sensitivities(
    model: nn.Module, candidates: Candidates, decompositions: Decompositions, inputs: Tensor
) -> dict[str, float]:
    """Measured sensitivity of every layer that has candidates.

    Each layer in turn is cut to about a tenth of its parameters, the rest left dense. The sensitivity is the mean
    Kullback-Leibler divergence of the outputs from the dense ones, in nats, per unit of squared relative weight error;
    so a candidate's expected harm is its squared error times the sensitivity. No target is needed.

    Args:
        model: the dense network.
        candidates: of its layers.
        decompositions: of its layers.
        inputs: ``(N, C, H, W)`` from the calibration split.
    """
    training = model.training
    dense = model.eval()(inputs).log_softmax(1)
    found: dict[str, float] = {}
    for name, choices in track(candidates.items(), "sensitivity", unit="layer"):
        reference = next((choice for choice in choices[REFERENCE_LEVEL:-1] if choice and choice.error), None)
        if reference is None:
            found[name] = 0.0
            continue
        small = compress(model, RankPlan({name: reference.plan}, "", ""), decompositions=decompositions)
        output = small.eval()(inputs).log_softmax(1)
        divergence = nn.functional.kl_div(output, dense, reduction="batchmean", log_target=True)
        found[name] = max(0.0, divergence.item()) / reference.error**2
    model.train(training)
    return found

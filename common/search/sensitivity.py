"""How much the network's output suffers when one layer alone is decomposed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.compression import compress
from common.planning.layers import Decompositions
from common.planning.plan import RankPlan
from common.progress import track
from common.search.candidates import LEVELS, Candidate, Candidates

REFERENCE_LEVEL = LEVELS.index(0.1)


def reference_candidate(choices: Sequence[Candidate | None]) -> Candidate | None:
    """The candidate at which a layer's sensitivity is measured: a tenth of its parameters, or the next that errs."""
    return next((choice for choice in choices[REFERENCE_LEVEL:] if choice and choice.error), None)


@torch.no_grad()
def layer_sensitivities(
    model: nn.Module, candidates: Candidates, decompositions: Decompositions, inputs: Tensor
) -> dict[str, float]:
    """Measured sensitivity of every layer to decomposition.

    Each layer in turn is cut to about a tenth of its parameters, the rest left dense; its sensitivity is the mean
    Kullback-Leibler divergence of the network's outputs from the dense ones, in nats. No target is needed. A layer
    that has no candidate with an error gets 0.

    Args:
        model: the dense network; its training mode is left as it was.
        candidates: of its layers.
        decompositions: of its layers.
        inputs: ``(N, C, H, W)`` from the calibration split.
    """
    training = model.training
    dense = model.eval()(inputs).log_softmax(1)
    found = dict.fromkeys(candidates, 0.0)
    for name, choices in track(candidates.items(), "sensitivity", unit="layer"):
        if reference := reference_candidate(choices):
            small = compress(model, RankPlan({name: reference.plan}, "", ""), decompositions=decompositions)
            output = small.eval()(inputs).log_softmax(1)
            divergence = nn.functional.kl_div(output, dense, reduction="batchmean", log_target=True)
            found[name] = max(0.0, divergence.item())
    model.train(training)
    return found

"""How far a network's outputs are from the dense network's, without any targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from common.network.inputs import for_one_pass
from common.network.modes import evaluating
from common.network.outputs import single_tensor
from common.network.passes import explained

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Maps the outputs of the dense and of another network, ``(N, ...)`` each, to one value for each input, ``(N,)``."""


def kl_divergence(dense: Tensor, output: Tensor) -> Tensor:
    """Kullback-Leibler divergence of class probabilities from the dense ones, in nats.

    Args:
        dense: logits ``(N, classes, ...)``, with the classes along axis 1. A single channel is the logit of a mask.
        output: logits of the other network, in the same shape.

    Returns:
        ``(N,)``, the mean over pixels if there are any. A class that the dense network excludes, with a logit of minus
        infinity, adds nothing.
    """
    given, wanted = _log_probabilities(output), _log_probabilities(dense)
    terms = kl_div(given, wanted, reduction="none", log_target=True)
    return torch.where(wanted == -math.inf, 0.0, terms).sum(1).flatten(1).mean(1)


def mask_divergence(dense: Tensor, output: Tensor) -> Tensor:
    """Kullback-Leibler divergence of masks' probabilities from the dense ones, in nats.

    Args:
        dense: logits ``(N, K, ...)``; each channel is that of a mask of its own, which may overlap the others.
        output: logits of the other network, in the same shape.

    Returns:
        ``(N,)``, the mean over masks and pixels.
    """
    each = (logits.flatten(0, 1).unsqueeze(1) for logits in (dense, output))
    return kl_divergence(*each).reshape(len(dense), -1).mean(1)


def _log_probabilities(logits: Tensor) -> Tensor:
    """Log-probabilities of the classes along axis 1; two classes for a single channel."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits.flatten(2).log_softmax(1) if logits.dim() > 2 else logits.log_softmax(1).unsqueeze(2)


def squared_error(dense: Tensor, output: Tensor) -> Tensor:
    """Squared error of the outputs, relative to the variance of the dense ones over all inputs and positions."""
    variance = (dense - dense.mean()).square().mean()
    return (dense - output).reshape(len(dense), -1).square().mean(1) / torch.where(variance > 0, variance, 1.0)


def standardized_error(dense: Tensor, output: Tensor) -> Tensor:
    """Squared error of each variable, relative to the variance of the dense one over all inputs and positions.

    The variables lie along axis 1, as those of R2 do, so that none counts more for its unit. A variable that does not
    vary, to single precision, keeps its own scale.

    Args:
        dense: ``(N,)``, ``(N, K)`` or ``(N, K, ...)``.
        output: of the other network, in the same shape.

    Returns:
        ``(N,)``, the mean over variables and positions.
    """
    dense, output = (each.reshape(len(each), each.shape[1] if each.dim() > 1 else 1, -1) for each in (dense, output))
    mean = dense.mean((0, 2), keepdim=True)
    variance = (dense - mean).square().mean((0, 2), keepdim=True)
    varies = variance > (torch.finfo(torch.float32).eps * mean).square()
    return ((dense - output).square() / torch.where(varies, variance, 1.0)).flatten(1).mean(1)


def divergence_for(outputs: Tensor) -> Divergence:
    """The divergence that suits a network's outputs.

    Class scores ``(N, classes)`` with several classes take :func:`kl_divergence`. Any other output, such as an image,
    takes :func:`squared_error`, which needs no knowledge of what the outputs mean.
    """
    return kl_divergence if outputs.dim() == 2 and outputs.shape[1] > 1 else squared_error


TITLES: dict[Divergence, str] = {
    kl_divergence: "Kullback-Leibler divergence of class probabilities, in nats",
    mask_divergence: "Kullback-Leibler divergence of masks' probabilities, in nats",
    squared_error: "squared error, relative to the variance of the dense network's outputs",
    standardized_error: "squared error of each variable, relative to its variance in the dense network's outputs",
}
"""What each divergence is, in words."""


def divergence_title(divergence: Divergence) -> str:
    """What a divergence is, in words; the name of one that is not the suite's."""
    return TITLES.get(divergence) or str(getattr(divergence, "__name__", type(divergence).__name__))


def mean_divergence(divergence: Divergence, dense: Tensor, output: Tensor) -> float:
    """The mean over all inputs, at least 0; infinite where it is no number, as for outputs that are not finite."""
    value = float(divergence(dense, output).mean())
    return math.inf if math.isnan(value) else max(0.0, value)


@torch.no_grad()
def outputs_on(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """The network's outputs in evaluation mode on batches that are on its device, ``(N, ...)`` in float32.

    Complex outputs have a last axis of two: the real and the imaginary part.

    Raises:
        ValueError: the network does not take a batch, or its outputs have no axis of inputs or differ in shape.
    """
    found: list[Tensor] = []
    with evaluating(model):
        for batch in inputs:
            with explained(batch):
                output = model(for_one_pass(batch))
            output = single_tensor(output, "the network")
            if output.is_complex():  # one number for each input must not become two class scores
                output = torch.view_as_real((output if output.dim() > 1 else output[:, None]).resolve_conj())
            found.append(output.float())
            if found[-1].shape[:1] != batch.shape[:1]:
                raise ValueError(
                    f"the network's output has shape {tuple(found[-1].shape)} for {len(batch)} inputs; its first axis "
                    "must be that of the inputs"
                )
    shapes = {tuple(each.shape[1:]) for each in found}
    if len(shapes) > 1:
        raise ValueError(
            f"the network's outputs have shapes {', '.join(map(str, sorted(shapes)))} for inputs of different sizes; "
            "give inputs of one size"
        )
    return torch.cat(found)

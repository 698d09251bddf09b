"""How far a network's outputs are from the dense network's, without any targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from common.network.modes import evaluating
from common.network.outputs import single_tensor

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Maps the outputs of the dense and of another network, ``(N, ...)`` each, to one value for each input, ``(N,)``."""


def kl_divergence(dense: Tensor, output: Tensor) -> Tensor:
    """Kullback-Leibler divergence of class probabilities from the dense ones, in nats.

    Args:
        dense: logits ``(N, classes, ...)``, with the classes along axis 1. A single channel is the logit of a mask.
        output: logits of the other network, in the same shape.

    Returns:
        ``(N,)``, the mean over pixels if there are any.
    """
    given, wanted = _log_probabilities(output), _log_probabilities(dense)
    return kl_div(given, wanted, reduction="none", log_target=True).sum(1).flatten(1).mean(1)


def _log_probabilities(logits: Tensor) -> Tensor:
    """Log-probabilities of the classes along axis 1; two classes for a single channel."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits.flatten(2).log_softmax(1) if logits.dim() > 2 else logits.log_softmax(1).unsqueeze(2)


def squared_error(dense: Tensor, output: Tensor) -> Tensor:
    """Squared error of the outputs, relative to the variance of the dense ones over all inputs and positions."""
    variance = (dense - dense.mean()).square().mean()
    return (dense - output).flatten(1).square().mean(1) / torch.where(variance > 0, variance, 1.0)


def divergence_for(outputs: Tensor) -> Divergence:
    """The divergence that suits a network's outputs.

    Class scores ``(N, classes)`` with several classes take :func:`kl_divergence`. Any other output, such as an image,
    takes :func:`squared_error`, which needs no knowledge of what the outputs mean.
    """
    return kl_divergence if outputs.dim() == 2 and outputs.shape[1] > 1 else squared_error


@torch.no_grad()
def outputs_on(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """The network's outputs in evaluation mode on batches that are on its device, ``(N, ...)`` in float32."""
    with evaluating(model):
        return torch.cat([single_tensor(model(batch), "the network").float() for batch in inputs])

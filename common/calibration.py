"""What a compressed network is told of the data before any training: BatchNorm recalibration."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def recalibrate_bn(
    model: nn.Module, batches: Iterable[Tensor | tuple[Tensor, Tensor]], *, max_batches: int | None = None
) -> int:
    """Measure the running mean and variance of every BatchNorm anew, on the activations the network has now.

    Compression shifts the activations, and the stored statistics belong to the dense network. The new ones are the
    plain average over the batches; no weight is changed and no target is read.

    Args:
        model: changed in place; its training mode is left as it was.
        batches: input tensors, or pairs of (input, target), at least two inputs a batch.
        max_batches: use no more than these.

    Returns:
        How many BatchNorm layers were recalibrated; 0 for a network that has none, which is left alone.

    Raises:
        ValueError: there is no batch.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    device = next(model.parameters()).device
    seen = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average instead of a moving one
            norm.train()
        for batch in itertools.islice(batches, max_batches):
            model((batch if isinstance(batch, Tensor) else batch[0]).to(device))
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise ValueError("there is no batch to recalibrate on")
    return len(norms)

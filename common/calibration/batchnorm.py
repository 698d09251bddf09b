"""``recalibrate_bn``: BatchNorm's statistics measured anew, on the activations that a network has now."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from common.network.batches import Batches, inputs_of
from common.network.inputs import to_network
from common.network.modes import evaluating


@torch.no_grad()
def recalibrate_bn(model: nn.Module, batches: Batches, *, max_batches: int | None = None) -> int:
    """Measure the running mean and variance of every BatchNorm anew, on the activations the network has now.

    Compression shifts the activations, and the stored statistics belong to the dense network. The new ones are the
    plain average over the batches; no weight is changed and no target is read.

    Args:
        model: changed in place; its training mode is left as it was.
        batches: input tensors, or pairs of (input, target), at least two inputs a batch.
        max_batches: use no more than these.

    Returns:
        How many BatchNorm layers were recalibrated. One that no batch passed (an auxiliary head's) is left alone; when
        it ends in an error, all are.

    Raises:
        ValueError: there is no batch, or one holds no inputs.
        FloatingPointError: what reaches a BatchNorm is not finite.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    seen, done = 0, False
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average instead of a moving one
                norm.train()
            for batch in itertools.islice(batches, max_batches):
                model(to_network(inputs_of(batch), model))
                seen += 1
        broken = [n for n in norms if not all(buffer.isfinite().all() for buffer in n.buffers())]
        if broken:
            name = next(name for name, module in model.named_modules() if module is broken[0])
            raise FloatingPointError(f"BatchNorm {name!r}: its inputs on the calibration data are not finite")
        done = True
    finally:
        passed = [done and bool(norm.num_batches_tracked) for norm in norms]
        for norm, momentum, buffers, keeps in zip(norms, momenta, before, passed, strict=True):
            norm.momentum = momentum
            if not keeps:
                for name, buffer in buffers.items():
                    norm.get_buffer(name).copy_(buffer)
    if not seen:
        raise ValueError("there is no batch to recalibrate on")
    return sum(passed)

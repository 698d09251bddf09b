"""``recalibrate_bn``: recompute the statistics of BatchNorm on a network's present activations."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from common.network.batches import Batches, check_batches, inputs_of
from common.network.inputs import for_one_pass, to_network
from common.network.modes import evaluating
from common.network.passes import explained
from common.validation import is_whole


@torch.no_grad()
def recalibrate_bn(model: nn.Module, batches: Batches, *, max_batches: int | None = None) -> int:
    """Recompute the running mean and variance of every BatchNorm on the network's present activations.

    Compression shifts the activations, while the stored statistics describe the dense network. The new statistics are
    plain averages over the batches. No weight changes, and no target is read.

    Args:
        model: the network, which is changed in place. Its training mode stays unchanged.
        batches: input tensors, or pairs (inputs, targets). A batch of one input joins the next batch of its shape,
            since BatchNorm may need two; a last one is left out, unless it is the only one.
        max_batches: limit on the number of batches; None uses all.

    Returns:
        Number of recalibrated BatchNorm layers. A layer that no batch reaches (in an auxiliary head) keeps its
        statistics, and so does one that stays in evaluation mode when ``train()`` is called. After an error, all do.

    Raises:
        ValueError: there are no batches, ``batches`` is one tensor, a batch holds no inputs or does not fit the
            network, or ``max_batches`` is out of range.
        FloatingPointError: the inputs of a BatchNorm are not finite.
    """
    check_batches(batches)
    if max_batches is not None and not (is_whole(max_batches) and max_batches >= 1):
        raise ValueError(f"max_batches={max_batches!r}: it must be a whole number of at least 1, or None")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    seen, finished = 0, False
    with evaluating(model):
        for norm in norms:
            norm.train()
        norms = [norm for norm in norms if norm.training]  # a frozen one stays in evaluation mode
        momenta = [norm.momentum for norm in norms]
        before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # average over all batches instead of a moving average
            for inputs in _at_least_two(map(inputs_of, itertools.islice(batches, max_batches))):
                inputs = to_network(inputs, model)
                with explained(inputs):
                    model(for_one_pass(inputs))
                seen += 1
            broken = [n for n in norms if not all(buffer.isfinite().all() for buffer in n.buffers())]
            if broken:
                name = next(name for name, module in model.named_modules() if module is broken[0])
                raise FloatingPointError(f"BatchNorm {name!r}: its inputs on the calibration data are not finite")
            finished = True
        finally:
            reached = [finished and bool(norm.num_batches_tracked) for norm in norms]
            for norm, momentum, buffers, updated in zip(norms, momenta, before, reached, strict=True):
                norm.momentum = momentum
                if not updated:
                    for name, buffer in buffers.items():
                        norm.get_buffer(name).copy_(buffer)
    if not seen:
        raise ValueError("batches is empty: there is no batch to recalibrate on")
    return sum(reached)


def _at_least_two(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """See the ``batches`` of :func:`recalibrate_bn`."""
    single: Tensor | None = None
    seen = False
    for inputs in batches:
        if not len(inputs):
            raise ValueError(f"batches: a batch of shape {tuple(inputs.shape)} holds no inputs")
        if single is not None and single.shape[1:] == inputs.shape[1:]:
            inputs = torch.cat([single.to(inputs.device), inputs])
        single = inputs if len(inputs) == 1 else None
        if single is None:
            seen = True
            yield inputs
    if single is not None and not seen:
        yield single

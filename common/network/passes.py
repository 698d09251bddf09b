"""One pass through somebody's network, checked at the door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.network.modes import evaluating


def example_batch(x: Tensor, model: nn.Module) -> Tensor:
    """``x`` as a batch: one image ``(C, H, W)`` for a network with 2-D convolutions becomes ``(1, C, H, W)``.

    Raises:
        ValueError: it is no tensor, has no batch axis or no input in it.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"x={type(x).__name__}: it must be one tensor of shape (N, C, H, W)")
    images = any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in model.modules())
    if x.dim() == 3 and images:
        x = x[None]
    if x.dim() < 2 or not len(x):
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (N, C, H, W) with at least one input")
    return x


def run(model: nn.Module, x: Tensor) -> object:
    """What the network puts out for ``x`` in evaluation mode, without gradients.

    Raises:
        ValueError: the network does not take ``x``; the sentence says why.
    """
    with evaluating(model), torch.no_grad(), explained(x):
        return model(x)


@contextmanager
def explained(x: Tensor) -> Iterator[None]:
    """Whatever a network's pass ends in becomes one sentence.

    Raises:
        ValueError: the pass failed.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        kind = str(x.dtype).removeprefix("torch.")
        advice = ""
        if isinstance(error, TypeError) and "argument" in reason:
            advice = "; wrap a network of several inputs in a module that takes x alone"
        raise ValueError(
            f"the network does not take x of shape {tuple(x.shape)} and dtype {kind}: "
            f"{type(error).__name__}: {reason}{advice}"
        ) from error

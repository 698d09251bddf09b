"""Check an example input and run one forward pass; turn failures into clear errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.network.given import check_is_network
from common.network.inputs import for_one_pass
from common.network.modes import evaluating


def example_batch(x: Tensor, model: nn.Module) -> Tensor:
    """Return ``x`` as a batch: a single image ``(C, H, W)`` becomes ``(1, C, H, W)``.

    Only networks with 2-D convolutions accept a single image. Some of these take batches ``(N, C, L)`` and make images
    of them, such as spectrograms. Three axes are an image if the network takes it and returns one output for it.

    Raises:
        TypeError: ``model`` is no network.
        ValueError: ``x`` is not a tensor, has no batch axis or is empty.
    """
    check_is_network(model)
    if not isinstance(x, Tensor):
        raise ValueError(f"x={type(x).__name__}: it must be one tensor of shape (N, C, H, W)")
    if x.dim() == 3 and _is_image(x, model):
        x = x[None]
    if x.dim() < 2 or not len(x):
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (N, C, H, W) with at least one input")
    return x


def _is_image(x: Tensor, model: nn.Module) -> bool:
    """Whether ``x`` of three axes is one image ``(C, H, W)`` for this network: whether one output belongs to it."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    if not layers:
        return False
    here = x.to(next(model.parameters(), x).device)
    for is_image, batch in ((True, here[None]), (False, here)):
        try:
            output = run(model, batch)
        except ValueError:
            continue
        if not isinstance(output, Tensor) or output.shape[:1] == batch.shape[:1]:
            return is_image
    return any(layer.in_channels == len(x) for layer in layers)  # the error that follows shows it in this shape


def run(model: nn.Module, x: Tensor) -> object:
    """Return the network's output for ``x`` in evaluation mode, without gradients.

    Raises:
        ValueError: the network does not accept ``x``. The message says why.
    """
    with evaluating(model), torch.no_grad(), explained(x):
        return model(for_one_pass(x))


def check_input(networks: Iterable[nn.Module], x: Tensor) -> None:
    """Run each network once on ``x``, to find the one that does not take it.

    Raises:
        ValueError: a network does not accept ``x``. The message says why.
    """
    for network in networks:
        run(network, x)


@contextmanager
def explained(x: Tensor) -> Iterator[None]:
    """Turn any failure of a forward pass into an error of one sentence.

    Args:
        x: input of the pass, whose shape and dtype the message states.

    Raises:
        ValueError: the pass failed.
        MemoryError: the pass ran out of memory; this error and PyTorch's own pass unchanged.
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
            advice = "; wrap a network with several inputs in a module that takes x alone"
        raise ValueError(
            f"the network does not take x of shape {tuple(x.shape)} and dtype {kind}: "
            f"{type(error).__name__}: {reason}{advice}"
        ) from error

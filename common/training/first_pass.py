"""Check that a network and its data fit each other before any work starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from common.data import TASKS, DataBundle
from common.network.inputs import for_one_pass, to_network
from common.network.modes import evaluating, random_state_kept
from common.network.outputs import single_tensor, training_tensor
from common.network.passes import explained


def check_network(model: nn.Module, data: DataBundle, *, training: bool = True) -> None:
    """Raise unless ``model`` returns one tensor of logits that fits the data's targets.

    Two validation images pass through the network. Its modes, weights and buffers, and the global random state, stay
    as they were.

    Args:
        model: the network.
        data: for its training or evaluation.
        training: also pass the images in training mode, where auxiliary heads may return more.

    Raises:
        ValueError: it does not take the images, returns anything else, has fewer outputs than there are classes, or is
            to be trained and has no parameter with a gradient.
    """
    if training and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the network has no parameter to train: requires_grad is off for all; call requires_grad_()")
    device = next(model.parameters()).device
    with random_state_kept(device):
        batch = next((batch for batch in data.validation if len(batch[0])), None)
        if batch is None:
            raise ValueError("the validation split gives no image")
        inputs, targets = (torch.cat([tensor[:2], tensor[:1]])[:2] for tensor in batch)  # one image counts twice
        inputs = to_network(inputs, model)
        with torch.no_grad(), evaluating(model):
            _check_logits(single_tensor(_output(model, inputs), "the network"), targets, data)
            if training:
                model.train()
                with _other_buffers(model):
                    _check_logits(training_tensor(_output(model, inputs), "the network"), targets, data)


def _output(model: nn.Module, inputs: Tensor) -> object:
    """The network's output for the data's images, or an error of one sentence."""
    with explained(inputs):
        return model(for_one_pass(inputs))


@contextmanager
def _other_buffers(model: nn.Module) -> Iterator[None]:
    """Replace the buffers by copies inside the ``with`` block, so that the real ones stay as they were."""
    held = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    copies = {id(buffer): buffer.clone() for _, _, buffer in held if buffer is not None}  # one of a shared buffer
    try:
        for module, name, buffer in held:
            module._buffers[name] = copies.get(id(buffer))
        yield
    finally:
        for module, name, buffer in held:
            module._buffers[name] = buffer


def _check_logits(logits: Tensor, targets: Tensor, data: DataBundle) -> None:
    """Raise a ValueError unless these logits fit the targets and the classes."""
    if not logits.is_floating_point():
        raise ValueError(f"the network must return logits in floating point, it returns {logits.dtype}")
    task, classes = TASKS[data.task], data.num_classes
    outputs = task.count_outputs(logits)
    if outputs is not None:
        if outputs < classes or (outputs > classes and not task.spare_outputs):
            raise ValueError(
                f"the network has outputs for {outputs} classes and the data {data.name!r} has {classes}; build it "
                f"for {classes} classes or name the classes that the data has"
            )
        if outputs > classes:
            _note_spare_outputs(outputs, classes, data.name)
    task.check(logits, targets.to(logits.device))


@cache
def _note_spare_outputs(outputs: int, classes: int, name: str) -> None:
    """Say once that the network has outputs for more classes than the data has."""
    print(
        f"the network has outputs for {outputs} classes and the data {name!r} has {classes}: its first {classes} "
        "outputs are taken for them",
        file=sys.stderr,
    )

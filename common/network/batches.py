"""Read batches from data loaders; raise a clear error for any other kind of batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from common.network.outputs import describe

Batch = tuple[Tensor, Tensor]
"""A pair (inputs, targets)."""
Batches = Iterable[Tensor | tuple[Tensor, Tensor]]
"""Batches for calibration: input tensors, or pairs (inputs, targets). Calibration ignores the targets."""


def pair_of(batch: object, what: str = "a batch") -> Batch:
    """Return the inputs and the targets of a batch.

    Args:
        batch: a tuple or list of two tensors.
        what: the name of the batch in the error message.

    Raises:
        ValueError: ``batch`` is not a pair of tensors.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, targets = batch
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            return inputs, targets
    raise ValueError(
        f"{what} must be a pair of tensors (inputs, targets), but it is {describe(batch)}; "
        "give the DataLoader a collate_fn that returns such a pair"
    )


def inputs_of(batch: object) -> Tensor:
    """Return the inputs of a batch: the batch itself, or the first item of a tuple or list.

    Raises:
        ValueError: the inputs are not a tensor.
    """
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(first, Tensor):
        return first
    raise ValueError(
        f"a batch must be a tensor of inputs or a pair (inputs, targets), but it is {describe(batch)}; "
        "give the DataLoader a collate_fn that returns either"
    )


def check_batches(batches: object) -> None:
    """Raise unless ``batches`` is a series of batches.

    Raises:
        TypeError: nothing can be read from it one by one.
        ValueError: it is one tensor, whose items would be single inputs.
    """
    if not isinstance(batches, Iterable):
        advice = "; take the data's calibration split" if hasattr(batches, "calibration") else ""
        raise TypeError(f"batches is a {type(batches).__name__}: it must be a list of batches or a DataLoader{advice}")
    if isinstance(batches, Tensor):
        raise ValueError(
            f"batches is one tensor of shape {tuple(batches.shape)}; it must be a list of batches: [batches]"
        )


def joined(batches: Iterable[Tensor], least: int) -> list[Tensor]:
    """Join consecutive batches of inputs of one shape until each has at least ``least`` inputs.

    What is left over joins the batch before if that has the same shape, and stays a smaller batch otherwise.
    """
    groups: list[list[Tensor]] = []
    for batch in batches:
        if groups and batch.shape[1:] == groups[-1][0].shape[1:] and sum(map(len, groups[-1])) < least:
            groups[-1].append(batch)
        else:
            groups.append([batch])
    found: list[list[Tensor]] = []
    for group in groups:
        if found and group[0].shape[1:] == found[-1][0].shape[1:] and sum(map(len, group)) < least:
            found[-1] += group
        else:
            found.append(group)
    return [torch.cat(group) if len(group) > 1 else group[0] for group in found]

"""Read batches from data loaders; raise a clear error for any other kind of batch."""

from __future__ import annotations

from collections.abc import Iterable

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

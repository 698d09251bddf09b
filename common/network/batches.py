"""What a data loader yields: pairs of inputs and targets, or a clear error."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from common.network.outputs import describe

Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""
Batches = Iterable[Tensor | tuple[Tensor, Tensor]]
"""What calibration reads: input tensors, or pairs of (input, target); no target is looked at."""


def pair_of(batch: object, what: str = "a batch") -> Batch:
    """Inputs and targets of a batch.

    Args:
        batch: a tuple or list of two tensors.
        what: the batch, as the error names it.

    Raises:
        ValueError: it is anything else.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, targets = batch
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            return inputs, targets
    raise ValueError(
        f"{what} must be a pair of tensors (inputs, targets), it is {describe(batch)}; "
        "give the DataLoader a collate_fn that returns such a pair"
    )


def inputs_of(batch: object) -> Tensor:
    """Inputs of a batch: the batch itself, or the first of a tuple or list.

    Raises:
        ValueError: it is anything else.
    """
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(first, Tensor):
        return first
    raise ValueError(
        f"a batch must be a tensor of inputs or a pair (inputs, targets), it is {describe(batch)}; "
        "give the DataLoader a collate_fn that returns one of them"
    )

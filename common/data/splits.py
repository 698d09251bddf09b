"""Draw disjoint splits, fixed by a seed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def split_indices(count: int, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Distribute the indices 0..count-1 over the named parts in random order. ``train`` receives the rest.

    Args:
        count: number of items.
        sizes: part -> number of its items.
        seed: fixes the parts.

    Raises:
        ValueError: nothing would be left for ``train``.
    """
    taken = sum(sizes.values())
    if taken >= count:
        raise ValueError(f"{count} images cannot give {taken} to {', '.join(sizes)} and leave some for train")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    pieces = order.split([*sizes.values(), count - taken])
    return dict(zip([*sizes, "train"], pieces, strict=True))


def subset(count: int, limit: int | None, seed: int) -> Tensor:
    """Return the indices 0..count-1 in order; if there are more than ``limit``, return ``limit`` of them.

    They are drawn at random by ``seed``, because the first images of a data set may all be of one class.
    """
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values

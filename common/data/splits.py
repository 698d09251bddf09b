"""Draw disjoint splits, fixed by a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def divided_by_class(labels: Sequence[int], shares: Mapping[str, float], seed: int) -> dict[str, Tensor]:
    """Distribute the indices of ``labels`` over the named parts, each class alike, in random order.

    Each part gets at least one of each class that has enough. ``train`` receives the rest.

    Args:
        labels: class numbers.
        shares: part -> share of its items.
        seed: fixes the parts.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {name: [] for name in (*shares, "train")}
    for label in sorted(set(labels)):
        own = torch.tensor([index for index, each in enumerate(labels) if each == label])
        own = own[torch.randperm(len(own), generator=generator)]
        most = (len(own) - 1) // len(shares)
        sizes = [min(most, max(1, round(share * len(own)))) for share in shares.values()]
        pieces = own.split([*sizes, len(own) - sum(sizes)])
        for name, piece in zip(found, pieces, strict=True):
            found[name].append(piece)
    joined = {name: torch.cat(pieces) for name, pieces in found.items()}
    return {name: indices[torch.randperm(len(indices), generator=generator)] for name, indices in joined.items()}


def subset(count: int, limit: int | None, seed: int) -> Tensor:
    """Return the indices 0..count-1 in order; if there are more than ``limit``, return ``limit`` of them.

    They are drawn at random by ``seed``, because the first images of a data set may all be of one class.
    """
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values

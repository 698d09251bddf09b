"""Rank rule ``fixed``: ranks that the caller gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.decomposition import Decomposition, Ranks
from common.network.shapes import dense_reason
from common.planning.decompositions import Decompositions, layer_method
from common.planning.plan import LayerPlan
from common.planning.rules.base import RULES, Network, PerLayerRule
from common.validation import check_choice

LayerRanks = int | float | str | Sequence[int]


@RULES.add
@dataclass(frozen=True)
class Fixed(PerLayerRule):
    """Ranks as they are asked for.

    Args:
        ranks: a whole number (the rank in every mode, or the mode's maximum where that is less), a fraction in (0, 1]
            of each maximum, ``"full"``, or a map from layer names to such values or to the method's ranks, e.g.
            ``(r_in, r_mid, r_out)``. Layers that a map leaves out stay dense; ranks of a map are never rounded.
    """

    name = "fixed"
    ranks: LayerRanks | Mapping[str, LayerRanks]

    @property
    def settings(self) -> dict[str, Any]:
        """The ranks in numbers that JSON knows."""
        if isinstance(self.ranks, Mapping):
            return {"ranks": {name: _plain(asked) for name, asked in self.ranks.items()}}
        return {"ranks": _plain(self.ranks)}

    def rounded(self, plan: LayerPlan, name: str, decompositions: Decompositions) -> LayerPlan:
        """``plan``; ranks that are given layer by layer stay as they are."""
        return plan if isinstance(self.ranks, Mapping) else super().rounded(plan, name, decompositions)

    def choose(self, network: Network) -> dict[str, LayerPlan]:
        """The ranks that were asked for, as far as each layer can have them."""
        ranks, shapes, decompositions = self.ranks, network.shapes, network.decompositions
        if len(network.methods) != 1:
            raise ValueError(
                f"method={network.method!r} with Fixed ranks: the methods' ranks differ; choose another rule"
            )
        if isinstance(ranks, Mapping):
            for name in ranks:
                check_choice("layer name in ranks", name, shapes)
        per_layer = ranks if isinstance(ranks, Mapping) else dict.fromkeys(shapes, ranks)
        layers: dict[str, LayerPlan] = {}
        eligible: dict[str, Decomposition] = {}
        for name, shape in shapes.items():
            if reason := dense_reason(shape) or ("" if name in per_layer else "no ranks were given for it"):
                layers[name] = LayerPlan(reason=reason)
            else:
                eligible[name] = decompositions.get(name, layer_method(network.methods[0], shape))
        most = max((max(decomposition.max_ranks) for decomposition in eligible.values()), default=1)
        for name, decomposition in eligible.items():
            limit = max(decomposition.max_ranks) if isinstance(ranks, Mapping) else most
            chosen = fixed_ranks(decomposition, per_layer[name], name, limit)
            layers[name] = decompositions.plan(name, decomposition.method, chosen)
        return {name: layers[name] for name in shapes}


def _plain(asked: LayerRanks) -> LayerRanks:
    """The same in numbers that JSON knows."""
    if isinstance(asked, Sequence) and not isinstance(asked, str):
        return [int(rank) for rank in asked]
    return int(asked) if isinstance(asked, np.integer) else asked  # type: ignore[unreachable] # NumPy's are no int


def fixed_ranks(decomposition: Decomposition, asked: LayerRanks | None, name: str, limit: int) -> Ranks:
    """The ranks that a user asked for the layer ``name``; a single whole number may be at most ``limit``.

    Raises:
        ValueError: the layer cannot have them.
    """
    if asked == "full":
        return decomposition.max_ranks
    if isinstance(asked, int | np.integer) and not isinstance(asked, bool) and 1 <= int(asked) <= limit:
        return decomposition.cap(int(asked))
    if isinstance(asked, float) and 0 < asked <= 1:
        return decomposition.fraction(asked)
    if isinstance(asked, Sequence) and not isinstance(asked, str):
        try:
            return decomposition.check(tuple(asked))
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    names = ", ".join(decomposition.rank_names)
    allowed = f"a whole number in 1..{limit}, a fraction in (0, 1], 'full' or the ranks ({names})"
    raise ValueError(f"ranks={asked!r} for layer {name!r}: it must be {allowed}")

"""Rank rule ``fixed``: ranks that the caller gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.decomposition import Decomposition, Ranks
from common.network.shapes import dense_reason
from common.planning.decompositions import Decompositions, layer_method
from common.planning.plan import LayerPlan
from common.planning.rules.base import RULES, Network, PerLayerRule
from common.validation import check_choice, is_number, is_whole

LayerRanks = int | float | str | Sequence[int]
"""Ranks of one layer: a number, a fraction, ``"full"`` or the method's ranks."""


@RULES.add
@dataclass(frozen=True)
class Fixed(PerLayerRule):
    """Ranks that the caller gives.

    Args:
        ranks: a whole number (the rank in every mode, at most the mode's maximum), a fraction in (0, 1] of each
            maximum, ``"full"``, or a map from layer names to such values or to the method's ranks, e.g.
            ``(r_in, r_mid, r_out)``. Layers that are not in the map stay dense. Ranks in a map are not rounded.
    """

    name = "fixed"
    ranks: LayerRanks | Mapping[str, LayerRanks]

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.ranks.values() if isinstance(self.ranks, Mapping) else [self.ranks]
        for ranks in given:
            if not _may_be_ranks(ranks):
                raise ValueError(
                    f"ranks={ranks!r}: it must be a whole number of at least 1, a fraction in (0, 1], 'full' or a "
                    "method's ranks, or a map from layer names to these"
                )

    def check_method(self, method: str, decompositions: Sequence[str]) -> None:
        """See :meth:`Rule.check_method`; only one decomposition's ranks can be given."""
        if len(decompositions) != 1:
            raise ValueError(
                f"method={method!r} with Fixed ranks: its decompositions have different ranks; choose another rule"
            )

    def check_layers(self, names: Iterable[str]) -> None:
        """See :meth:`Rule.check_layers`."""
        for name in self.ranks if isinstance(self.ranks, Mapping) else ():
            check_choice("layer name in ranks", name, names)

    @property
    def settings(self) -> dict[str, Any]:
        """The ranks, as plain values."""
        if isinstance(self.ranks, Mapping):
            return {"ranks": {name: _as_json(ranks) for name, ranks in self.ranks.items()}}
        return {"ranks": _as_json(self.ranks)}

    def rounded(self, plan: LayerPlan, name: str, decompositions: Decompositions) -> LayerPlan:
        """Round the ranks of ``plan``, unless they come from a map."""
        return plan if isinstance(self.ranks, Mapping) else super().rounded(plan, name, decompositions)

    def choose(self, network: Network) -> dict[str, LayerPlan]:
        """Give each layer its ranks; a layer that cannot be factored, or is not in the map, stays dense."""
        ranks, shapes, decompositions = self.ranks, network.shapes, network.decompositions
        self.check_layers(shapes)
        per_layer = ranks if isinstance(ranks, Mapping) else dict.fromkeys(shapes, ranks)
        layers: dict[str, LayerPlan] = {}
        eligible: dict[str, Decomposition] = {}
        for name, shape in shapes.items():
            if reason := dense_reason(shape) or ("" if name in per_layer else "no ranks were given for it"):
                layers[name] = LayerPlan(reason=reason)
            else:
                eligible[name] = decompositions.get(name, layer_method(network.methods[0], shape))
        greatest = max((max(decomposition.max_ranks) for decomposition in eligible.values()), default=1)
        for name, decomposition in eligible.items():
            limit = max(decomposition.max_ranks) if isinstance(ranks, Mapping) else greatest
            chosen = fixed_ranks(decomposition, per_layer[name], name, limit)
            layers[name] = decompositions.plan(name, decomposition.method, chosen)
        return {name: layers[name] for name in shapes}


def _may_be_ranks(ranks: object) -> bool:
    """Whether a layer with great enough ranks could have these."""
    if isinstance(ranks, str):
        return ranks == "full"
    if isinstance(ranks, Sequence):
        return True
    return is_number(ranks) and (ranks >= 1 if is_whole(ranks) else 0 < ranks <= 1)  # type: ignore[operator]


def _as_json(ranks: LayerRanks) -> LayerRanks:
    """Convert NumPy integers, which JSON does not know, to Python integers."""
    if isinstance(ranks, Sequence) and not isinstance(ranks, str):
        return [int(rank) for rank in ranks]
    return int(ranks) if isinstance(ranks, np.integer) else ranks  # type: ignore[unreachable] # not an int to mypy


def fixed_ranks(decomposition: Decomposition, ranks: LayerRanks | None, name: str, limit: int) -> Ranks:
    """Convert what the caller gave for the layer ``name`` to the method's ranks.

    Args:
        decomposition: the layer's decomposition.
        ranks: a whole number, a fraction, ``"full"`` or the method's ranks.
        name: the layer's name.
        limit: the greatest whole number allowed.

    Raises:
        ValueError: the layer cannot have these ranks.
    """
    if ranks == "full":
        return decomposition.max_ranks
    if isinstance(ranks, int | np.integer) and not isinstance(ranks, bool) and 1 <= int(ranks) <= limit:
        return decomposition.cap(int(ranks))
    if isinstance(ranks, float) and 0 < ranks <= 1:
        return decomposition.fraction(ranks)
    if isinstance(ranks, Sequence) and not isinstance(ranks, str):
        try:
            return decomposition.check(tuple(ranks))
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    names = ", ".join(decomposition.rank_names)
    allowed = f"a whole number in 1..{limit}, a fraction in (0, 1], 'full' or the ranks ({names})"
    raise ValueError(f"ranks={ranks!r} for layer {name!r}: it must be {allowed}")

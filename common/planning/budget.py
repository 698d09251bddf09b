"""Ranks for a whole network under a budget: one Lagrange multiplier for all layers (Shoham and Gersho 1988)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.decomposition import Floats
from common.planning.plan import LayerPlan

BISECTIONS = 60
MIXTURES = 9


@dataclass(frozen=True)
class Budget:
    """Fractions of the dense network to keep, each in (0, 1]; at least one is given, and none is ever exceeded.

    Raises:
        ValueError: none is given, or one is out of range.
    """

    params: float | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in (("params", self.params), ("macs", self.macs)) if value is not None}
        if not given:
            raise ValueError("a Budget needs params or macs, the fraction of the dense network to keep")
        for name, value in given.items():
            if not 0 < value <= 1:
                raise ValueError(f"Budget({name}={value!r}): it must be in (0, 1]")


@dataclass(frozen=True)
class Options:
    """All that one layer may become; the arrays run over the options, ``(K,)``.

    Attributes:
        plans: what each option is.
        params: parameters.
        macs: multiply-accumulates of one input.
        harm: what choosing it costs the network, 0 for the dense layer; the sum over layers is made small.
    """

    plans: Sequence[LayerPlan]
    params: Floats
    macs: Floats
    harm: Floats


def allocate(
    options: Mapping[str, Options], budget: Budget, dense: tuple[float, float], rest: tuple[float, float]
) -> dict[str, LayerPlan]:
    """One option for each layer: the least total harm within the budget.

    For a price of size, every layer takes the option with the least harm plus price times size, which lies on the
    lower convex hull of its (size, harm) points; the price is found by bisection. What the hull's steps leave of the
    budget is then filled by the single changes that save most harm. Under two budgets the size is a mixture of
    parameters and MACs, and the best of several mixtures is taken.

    Args:
        options: of each layer.
        budget: what to keep.
        dense: parameters and MACs of the whole dense network, of which the budget's values are fractions.
        rest: parameters and MACs of what no option changes.

    Raises:
        ValueError: the budget cannot be met; the sentence names the least that can.
    """
    names = list(options)
    sizes = [np.stack([options[name].params, options[name].macs]) for name in names]  # (2, K) each
    harms = [options[name].harm for name in names]
    limits = np.array(
        [
            np.inf if kept is None else kept * whole - fixed
            for kept, whole, fixed in zip((budget.params, budget.macs), dense, rest, strict=True)
        ]
    )
    _refuse_unreachable(budget, sizes, limits, dense, rest)
    if budget.params is None or budget.macs is None:
        mixtures = [float(budget.macs is None)]
    else:
        mixtures = [float(share) for share in np.linspace(0, 1, MIXTURES)]
    found: list[tuple[float, list[int]]] = []
    for share in mixtures:
        weights = np.array([share, 1 - share]) / np.array(dense)
        chosen = _cheapest_price(sizes, harms, weights, limits)
        if chosen is not None:
            chosen = _fill(chosen, sizes, harms, limits)
            found.append((sum(harm[index] for harm, index in zip(harms, chosen, strict=True)), chosen))
    if not found:
        # Both limits can be met alone. Name what one costs the other: the least MACs found within the parameters.
        macs = [size[1] for size in sizes]
        within = _cheapest_price(sizes, macs, np.array([1 / dense[0], 0.0]), np.array([limits[0], np.inf]))
        least = "" if within is None else f"; at params={budget.params} the least found is macs="
        least += "" if within is None else f"{_shown((_total(sizes, within)[1] + rest[1]) / dense[1])}"
        raise ValueError(f"{budget} cannot be met: no ranks were found that keep to both{least}")
    best = min(found, key=lambda pair: pair[0])[1]
    return {name: options[name].plans[index] for name, index in zip(names, best, strict=True)}


def _refuse_unreachable(
    budget: Budget, sizes: list[Floats], limits: Floats, dense: tuple[float, float], rest: tuple[float, float]
) -> None:
    least = sum((size.min(axis=1) for size in sizes), np.zeros(2))
    for index, name in enumerate(("params", "macs")):
        if least[index] > limits[index]:
            reachable = _shown((least[index] + rest[index]) / dense[index])
            raise ValueError(f"{budget} cannot be met: the least that can be kept is {name}={reachable}")


def _shown(share: float) -> str:
    """A share with four decimals, rounded up so that asking for it can be met."""
    return f"{np.ceil(share * 1e4) / 1e4:.4f}"


def _total(sizes: list[Floats], chosen: Sequence[int]) -> Floats:
    return np.sum([size[:, index] for size, index in zip(sizes, chosen, strict=True)], axis=0)


def _cheapest_price(sizes: list[Floats], harms: list[Floats], weights: Floats, limits: Floats) -> list[int] | None:
    """The choice at the lowest price of size that keeps to the limits; None where no price does."""
    costs = [weights @ size for size in sizes]

    def choose(price: float) -> list[int]:
        return [int(np.argmin(harm + price * cost)) for harm, cost in zip(harms, costs, strict=True)]

    if (_total(sizes, free := choose(0.0)) <= limits).all():
        return free
    low, high = -30.0, 40.0  # powers of two
    best = choose(2.0**high)
    if not (_total(sizes, best) <= limits).all():
        return None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        chosen = choose(2.0**middle)
        if (_total(sizes, chosen) <= limits).all():
            high, best = middle, chosen
        else:
            low = middle
    return best


def _fill(chosen: list[int], sizes: list[Floats], harms: list[Floats], limits: Floats) -> list[int]:
    """Change one layer at a time to the option that saves most harm among those that still fit, until none does."""
    chosen = list(chosen)
    while True:
        slack = limits - _total(sizes, chosen)
        best, change = 0.0, None
        for layer, (size, harm) in enumerate(zip(sizes, harms, strict=True)):
            now = chosen[layer]
            fits = ((size - size[:, [now]]) <= slack[:, None]).all(axis=0)
            saved = np.where(fits, harm[now] - harm, 0.0)
            option = int(np.argmax(saved))
            if saved[option] > best:
                best, change = float(saved[option]), (layer, option)
        if change is None:
            return chosen
        chosen[change[0]] = change[1]

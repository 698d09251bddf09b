"""Ranks for a whole network within limits: one Lagrange multiplier for all layers (Shoham and Gersho 1988)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from common.decomposition import Floats
from common.planning.plan import LayerPlan

BISECTIONS = 60
MIXTURES = 9
ROUNDING = (1e-13, 1e-13, 1e-9)
"""Of the whole, for each of `SIZES`: a share of it, as a product, may fall short in the last digit. Seconds are no
whole numbers, and their sum depends on its order a little more."""
SIZES = ("params", "macs", "latency")
"""What a budget may limit."""


class UnreachableBudget(ValueError):
    """No plan of the network keeps to the budget."""


@dataclass(frozen=True)
class Limits:
    """Fractions of the dense network to keep, each in (0, 1]; at least one is given, and none is ever exceeded.

    Args:
        params: of its parameters.
        macs: of its multiply-accumulates.
        latency: of its time in ``runtime`` on this machine, as measured times predict it.
        runtime: in which the time is meant; read with ``latency`` alone.

    Raises:
        ValueError: none is given, or one is out of range.
    """

    params: float | None = None
    macs: float | None = None
    latency: float | None = None
    runtime: str = "onnxruntime"

    def __post_init__(self) -> None:
        if not self.given:
            raise ValueError("a Budget needs params or macs or latency, the fraction of the dense network to keep")
        for name, value in self.given.items():
            if not 0 < value <= 1:
                raise ValueError(f"Budget({name}={value!r}): it must be in (0, 1]")

    def __str__(self) -> str:
        timed = "" if self.latency is None else f", latency={self.latency}, runtime={self.runtime!r}"
        return f"Budget(params={self.params}, macs={self.macs}{timed})"

    @property
    def limits(self) -> tuple[float | None, float | None, float | None]:
        """The fractions in the order of `SIZES`; None where there is no limit."""
        return self.params, self.macs, self.latency

    @property
    def given(self) -> dict[str, float]:
        """The fractions that are limited."""
        return {name: value for name, value in zip(SIZES, self.limits, strict=True) if value is not None}

    def allows(self, cost: tuple[int, int], dense: tuple[int, int]) -> bool:
        """Whether a network of these parameters and MACs keeps to it, given those of the dense one."""
        limits = (self.params, self.macs)
        return all(
            share is None or part <= (share + rounding) * whole
            for share, part, whole, rounding in zip(limits, cost, dense, ROUNDING[:2], strict=True)
        )


@dataclass(frozen=True)
class Options:
    """All that one layer may become; the arrays run over the options, ``(K,)``.

    Attributes:
        plans: what each option is.
        params: parameters.
        macs: multiply-accumulates of one input.
        loss: what choosing it costs the network, 0 for the dense layer; the sum over layers is made small.
        seconds: on the clock; None where nothing was timed.
    """

    plans: Sequence[LayerPlan]
    params: Floats
    macs: Floats
    loss: Floats
    seconds: Floats | None = None

    @property
    def sizes(self) -> Floats:
        """Parameters, MACs and, where they are known, seconds: ``(2, K)`` or ``(3, K)``."""
        return np.stack([self.params, self.macs, *([] if self.seconds is None else [self.seconds])])


def allocate(
    options: Mapping[str, Options], budget: Limits, dense: Sequence[float], rest: Sequence[float]
) -> dict[str, LayerPlan]:
    """One option for each layer: the least total loss within the budget.

    For a price of size, every layer takes the option with the least loss plus price times size, which lies on the
    lower convex hull of its (size, loss) points; the price is found by bisection. What the hull's steps leave of the
    budget is then filled by the single changes that save most loss. Under several budgets the size is a mixture of
    what they limit, and the best of several mixtures is taken.

    Args:
        options: of each layer.
        budget: what to keep.
        dense: parameters, MACs and, under a latency budget, seconds of the whole dense network, of which the budget's
            values are fractions.
        rest: the same of what no option changes.

    Raises:
        UnreachableBudget: the budget cannot be met; the sentence names the least that can.
        ValueError: it limits the latency, and nothing was timed.
    """
    if len(dense) < len(SIZES) and budget.latency is not None:
        raise ValueError(f"{budget}: the latency was not measured; plan_ranks takes measured latencies")
    names = list(options)
    sizes = [options[name].sizes for name in names]
    losses = [options[name].loss for name in names]
    whole = np.array(dense, dtype=np.float64)
    kept = np.array([np.inf if share is None else share for share in budget.limits[: len(whole)]])
    limits = np.where(np.isfinite(kept), np.minimum(kept, 1) * whole, np.inf) - np.array(rest)
    limits += ROUNDING[: len(whole)] * whole
    _refuse_unreachable(budget, sizes, limits, dense, rest)
    found: list[tuple[float, list[int]]] = []
    for mixture in _mixtures(np.isfinite(kept)):
        chosen = _cheapest_price(sizes, losses, mixture / whole, limits)
        if chosen is not None:
            chosen = _fill(chosen, sizes, losses, limits)
            found.append((sum(loss[index] for loss, index in zip(losses, chosen, strict=True)), chosen))
    if not found:
        raise UnreachableBudget(_exclusion(budget, sizes, limits, dense, rest))
    best = min(found, key=lambda pair: pair[0])[1]
    return {name: options[name].plans[index] for name, index in zip(names, best, strict=True)}


def _mixtures(limited: NDArray[np.bool_]) -> list[Floats]:
    """Weights of the sizes, which sum to 1 and are 0 where there is no limit."""
    count = int(limited.sum())
    steps = MIXTURES - 1
    found = []
    for parts in product(range(steps + 1), repeat=count - 1):
        if sum(parts) <= steps:
            weights = np.zeros(len(limited))
            weights[limited] = np.array([*parts, steps - sum(parts)]) / steps
            found.append(weights)
    return found


def _refuse_unreachable(
    budget: Limits, sizes: list[Floats], limits: Floats, dense: Sequence[float], rest: Sequence[float]
) -> None:
    least = sum((size.min(axis=1) for size in sizes), np.zeros(len(limits)))
    for index, name in enumerate(SIZES[: len(limits)]):
        if least[index] > limits[index]:
            reachable = _shown((least[index] + rest[index]) / dense[index])
            raise UnreachableBudget(f"{budget} cannot be met: the least that can be kept is {name}={reachable}")


def _exclusion(
    budget: Limits, sizes: list[Floats], limits: Floats, dense: Sequence[float], rest: Sequence[float]
) -> str:
    """Each limit can be met alone. Name what the others cost the last: the least of it found within them."""
    *others, last = [SIZES.index(name) for name in budget.given]
    within = limits.copy()
    within[last] = np.inf
    costs = [size[last] for size in sizes]
    least = ""
    for mixture in _mixtures(np.isin(np.arange(len(limits)), others)):
        chosen = _cheapest_price(sizes, costs, mixture / np.array(dense), within)
        if chosen is not None:
            asked = ", ".join(f"{SIZES[index]}={budget.limits[index]}" for index in others)
            share = _shown((_total(sizes, chosen)[last] + rest[last]) / dense[last])
            least = f"; at {asked} the least found is {SIZES[last]}={share}"
            break
    number = "both" if len(budget.given) == 2 else "all"
    return f"{budget} cannot be met: no ranks were found that keep to {number}{least}"


def _shown(share: float) -> str:
    """A share with four decimals, rounded up so that asking for it can be met."""
    return f"{np.ceil(share * 1e4) / 1e4:.4f}"


def _total(sizes: list[Floats], chosen: Sequence[int]) -> Floats:
    return np.sum([size[:, index] for size, index in zip(sizes, chosen, strict=True)], axis=0)


def _cheapest_price(sizes: list[Floats], losses: list[Floats], weights: Floats, limits: Floats) -> list[int] | None:
    """The choice at the lowest price of size that keeps to the limits; None where no price does."""
    costs = [weights @ size for size in sizes]

    def choose(price: float) -> list[int]:
        return [int(np.argmin(loss + price * cost)) for loss, cost in zip(losses, costs, strict=True)]

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


def _fill(chosen: list[int], sizes: list[Floats], losses: list[Floats], limits: Floats) -> list[int]:
    """Change one layer at a time to the option that saves most loss among those that still fit, until none does."""
    chosen = list(chosen)
    while True:
        slack = limits - _total(sizes, chosen)
        best, change = 0.0, None
        for layer, (size, loss) in enumerate(zip(sizes, losses, strict=True)):
            now = chosen[layer]
            fits = ((size - size[:, [now]]) <= slack[:, None]).all(axis=0)
            saved = np.where(fits, loss[now] - loss, 0.0)
            option = int(np.argmax(saved))
            if saved[option] > best:
                best, change = float(saved[option]), (layer, option)
        if change is None:
            return chosen
        chosen[change[0]] = change[1]

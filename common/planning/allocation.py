"""Allocate ranks to a whole network within limits, by one Lagrange multiplier (Shoham and Gersho 1988)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from common.decomposition import Floats
from common.planning.limits import SIZE_TOLERANCES, SIZES, Limits
from common.planning.plan import LayerPlan

BISECTIONS = 60
MIXTURES = 9
"""Number of mixtures of two limited sizes that are tried first."""
REFINEMENTS = 5
"""Number of times that the steps around the best mixture are halved."""


class UnreachableBudget(ValueError):
    """No plan of the network meets the budget."""


@dataclass(frozen=True)
class Options:
    """The K options of one layer, with their costs. All arrays are ``(K,)``.

    Attributes:
        plans: the plan of each option.
        params: parameters.
        macs: multiply-accumulates of one input.
        loss: predicted loss, 0 for the dense layer. An allocation minimises its sum over layers.
        seconds: predicted seconds; None without measured times.
    """

    plans: Sequence[LayerPlan]
    params: Floats
    macs: Floats
    loss: Floats
    seconds: Floats | None = None

    @property
    def sizes(self) -> Floats:
        """Parameters, MACs and, if known, seconds: ``(2, K)`` or ``(3, K)``."""
        return np.stack([self.params, self.macs, *([] if self.seconds is None else [self.seconds])])


def allocate(
    options: Mapping[str, Options], budget: Limits, dense: Sequence[float], rest: Sequence[float]
) -> dict[str, LayerPlan]:
    """Choose one option for each layer, so that the total predicted loss is least within the budget.

    At a price of size, every layer takes the option with the least loss plus price times size. This option lies on the
    lower convex hull of the layer's (size, loss) points. Bisection finds the price. The steps of the hull leave a part
    of the budget unused; the single changes that lower the loss most then use it. Under several limits, the size is a
    mixture of the limited sizes, and the best of several mixtures counts.

    Args:
        options: layer -> its options.
        budget: the fractions to keep.
        dense: parameters, MACs and, under a latency budget, seconds of the whole dense network. The budget's values
            are fractions of these.
        rest: the same sizes of the parts that no option changes.

    Raises:
        UnreachableBudget: the budget cannot be met; the message names the least that can be kept.
        ValueError: the budget limits the latency, and no times were measured.
    """
    if len(dense) < len(SIZES) and budget.latency is not None:
        raise ValueError(f"{budget}: the latency was not measured; plan_ranks takes measured latencies")
    names = list(options)
    sizes = [options[name].sizes for name in names]
    losses = [options[name].loss for name in names]
    whole = np.array(dense, dtype=np.float64)
    shares = np.array([np.inf if share is None else share for share in budget.limits[: len(whole)]])
    limits = np.where(np.isfinite(shares), np.minimum(shares, 1) * whole, np.inf) - np.array(rest)
    limits += SIZE_TOLERANCES[: len(whole)] * whole
    _check_reachable(budget, sizes, limits, dense, rest)

    def chosen_at(mixture: Floats) -> tuple[float, list[int]]:
        """The loss and the choice at a mixture; infinite if no price meets the limits."""
        chosen = _choose_at_least_price(sizes, losses, mixture / whole, limits)
        if chosen is None:
            return np.inf, []
        chosen = _use_slack(chosen, sizes, losses, limits)
        return sum(loss[index] for loss, index in zip(losses, chosen, strict=True)), chosen

    loss, best = _best_mixture(_mixtures(np.isfinite(shares)), chosen_at)
    if np.isinf(loss):
        raise UnreachableBudget(_conflict_message(budget, sizes, limits, dense, rest))
    return {name: options[name].plans[index] for name, index in zip(names, best, strict=True)}


def _best_mixture(
    mixtures: Sequence[Floats], chosen_at: Callable[[Floats], tuple[float, list[int]]]
) -> tuple[float, list[int]]:
    """Find the mixture with the least loss: first among ``mixtures``, then in smaller and smaller steps around it."""
    found = [(*chosen_at(mixture), mixture) for mixture in mixtures]
    loss, best, centre = min(found, key=lambda each: each[0])
    limited = np.flatnonzero(np.sum(mixtures, axis=0))
    step = 1 / (MIXTURES - 1)
    for _ in range(REFINEMENTS if len(limited) > 1 and best else 0):
        step /= 2
        for giver, taker in permutations(limited, 2):
            moved = centre.copy()
            moved[[giver, taker]] += [-step, step]
            if moved.min() >= 0 and (trial := chosen_at(moved))[0] < loss:
                (loss, best), centre = trial, moved
    return loss, best


def _mixtures(limited: NDArray[np.bool_]) -> list[Floats]:
    """List the weights of the sizes in each mixture; they sum to 1 and are 0 for a size without a limit."""
    count = int(limited.sum())
    steps = MIXTURES - 1
    mixtures = []
    for parts in product(range(steps + 1), repeat=count - 1):
        if sum(parts) <= steps:
            weights = np.zeros(len(limited))
            weights[limited] = np.array([*parts, steps - sum(parts)]) / steps
            mixtures.append(weights)
    return mixtures


def _check_reachable(
    budget: Limits, sizes: list[Floats], limits: Floats, dense: Sequence[float], rest: Sequence[float]
) -> None:
    """Raise an UnreachableBudget if a single limit is below the least that can be kept."""
    least = sum((size.min(axis=1) for size in sizes), np.zeros(len(limits)))
    for index, name in enumerate(SIZES[: len(limits)]):
        if least[index] > limits[index]:
            reachable = _rounded_up((least[index] + rest[index]) / dense[index])
            raise UnreachableBudget(f"{budget} cannot be met: the least that can be kept is {name}={reachable}")


def _conflict_message(
    budget: Limits, sizes: list[Floats], limits: Floats, dense: Sequence[float], rest: Sequence[float]
) -> str:
    """The message for limits that can be met singly but not together.

    It names the least value found for the last limited size within the other limits.
    """
    *others, last = [SIZES.index(name) for name in budget.given]
    other_limits = limits.copy()
    other_limits[last] = np.inf
    costs = [size[last] for size in sizes]
    least = ""
    for mixture in _mixtures(np.isin(np.arange(len(limits)), others)):
        chosen = _choose_at_least_price(sizes, costs, mixture / np.array(dense), other_limits)
        if chosen is not None:
            given = ", ".join(f"{SIZES[index]}={budget.limits[index]}" for index in others)
            share = _rounded_up((_total_sizes(sizes, chosen)[last] + rest[last]) / dense[last])
            least = f"; at {given} the least found is {SIZES[last]}={share}"
            break
    number = "both" if len(budget.given) == 2 else "all"
    return f"{budget} cannot be met: no ranks were found that keep to {number}{least}"


def _rounded_up(share: float) -> str:
    """A fraction with four decimals, rounded up so that a budget of this value can be met."""
    return f"{np.ceil(share * 1e4) / 1e4:.4f}"


def _total_sizes(sizes: list[Floats], chosen: Sequence[int]) -> Floats:
    """The sizes of the chosen options, summed over layers."""
    return np.sum([size[:, index] for size, index in zip(sizes, chosen, strict=True)], axis=0)


def _choose_at_least_price(
    sizes: list[Floats], losses: list[Floats], weights: Floats, limits: Floats
) -> list[int] | None:
    """Choose one option for each layer at the least price of size that meets the limits; None if no price does."""
    costs = [weights @ size for size in sizes]

    def choose(price: float) -> list[int]:
        return [int(np.argmin(loss + price * cost)) for loss, cost in zip(losses, costs, strict=True)]

    if (_total_sizes(sizes, free := choose(0.0)) <= limits).all():
        return free
    low, high = -30.0, 40.0  # powers of two
    best = choose(2.0**high)
    if not (_total_sizes(sizes, best) <= limits).all():
        return None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        chosen = choose(2.0**middle)
        if (_total_sizes(sizes, chosen) <= limits).all():
            high, best = middle, chosen
        else:
            low = middle
    return best


def _use_slack(chosen: list[int], sizes: list[Floats], losses: list[Floats], limits: Floats) -> list[int]:
    """Change one layer at a time to the fitting option that lowers the loss most, until no change lowers it."""
    chosen = list(chosen)
    while True:
        slack = limits - _total_sizes(sizes, chosen)
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

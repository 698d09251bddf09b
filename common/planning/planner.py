"""``plan_ranks``: a rank rule applied to every layer of a network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from common.choices import check_choice
from common.decomposition import DECOMPOSITIONS, Decomposition, LayerMoments, Ranks, RankSelector
from common.network.counting import Operations, count_operations
from common.network.passes import example_batch
from common.planning.accounting import in_the_way, nothing_to_factor, untouched_modules, used_parameters
from common.planning.budget import Budget, UnreachableBudget, allocate
from common.planning.latency_table import LatencyTable
from common.planning.layers import Decompositions, LayerShape, dense_reason, layer_method, trace_layers
from common.planning.options import Harms, layer_options
from common.planning.plan import LayerPlan, RankPlan, Untouched
from common.planning.rules import energy_rank, entropy_rank
from common.planning.vbmf import vbmf_rank

METHODS = (*DECOMPOSITIONS, "mixed", "arsvd")
RULES = ("fixed", "energy", "entropy", "vbmf", "budget")

LayerRanks = int | float | str | Sequence[int]


class _Network(NamedTuple):
    """A network, what it is fed, and what is known of its layers."""

    model: nn.Module
    x: Tensor
    shapes: Mapping[str, LayerShape]
    decompositions: Decompositions
    operations: Operations
    untouched: tuple[Untouched, ...]


def plan_ranks(
    model: nn.Module,
    x: Tensor,
    method: str = "htd",
    rule: str = "energy",
    *,
    ranks: LayerRanks | Mapping[str, LayerRanks] | None = None,
    threshold: float = 0.9,
    tau: float = 0.9,
    exponent: int = 1,
    budget: Budget | None = None,
    harms: Harms | None = None,
    latencies: LatencyTable | None = None,
    round_to: int = 1,
    only_if_smaller: bool = True,
    moments: Mapping[str, LayerMoments] | None = None,
    decompositions: Decompositions | None = None,
) -> RankPlan:
    """Choose the ranks of every Conv2d, ConvTranspose2d and Linear of ``model``.

    Args:
        model: the dense network; it is not changed.
        x: one example input ``(N, C, H, W)``; it tells the layers' spatial sizes.
        method: ``svd``, ``spatial_svd``, ``tucker2``, ``htd``; ``mixed``, for each layer the best of them; or
            ``arsvd``, which is ``svd`` with the rule ``entropy``. Layers that a method does not fit take the nearest
            that does, see :func:`common.planning.layers.layer_method`.
        rule: ``fixed``, ``energy``, ``entropy``, ``vbmf`` or ``budget``.
        ranks: for ``fixed``: a whole number (the rank in every mode, or the mode's maximum where that is less), a
            fraction in (0, 1] of each maximum, ``"full"``, or a map from layer names to such values or to the
            method's ranks, e.g. ``(r_in, r_mid, r_out)``. Layers that a map leaves out stay dense.
        threshold: for ``energy``: the share of the squared singular values to keep, in [0, 1].
        tau: for ``entropy``: the share of the spectral entropy to keep, in [0, 1].
        exponent: for ``entropy``: 1 (the paper) or 2.
        budget: for ``budget``: what to keep of the network; the plan never exceeds it.
        harms: for ``budget``: measured harm of errors, layer by layer, from
            :func:`common.search.sensitivity.measure_harms`; without it every layer's squared relative error counts
            the same.
        latencies: for a ``budget`` of latency: measured times of the layers, for batches of N, from
            :func:`common.latency_cache.latency_table`; None takes those that this machine keeps, and measures what it
            lacks, which takes a minute or a few the first time.
        round_to: ranks are multiples of it, raised to the next one, or a mode's maximum; ranks that are given layer by
            layer stay as they are.
        only_if_smaller: keep a layer dense where its factors would not have fewer parameters and no more MACs; under a
            budget that is always so.
        moments: from :func:`common.calibration.calibrate`: spectra and errors are then those of the layers' outputs
            on data instead of their weights. (``vbmf`` is a model of the weights and always reads theirs.)
        decompositions: those of ``model``, when they are there already; they bring their own moments.

    Raises:
        ValueError: an argument is unknown or out of range, or the budget cannot be met; the sentence names it, its
            value and what is allowed.
    """
    check_choice("method", method, METHODS)
    check_choice("rule", rule, RULES)
    if method == "arsvd":
        if rule not in ("energy", "entropy"):  # energy is what a caller gets who names no rule
            raise ValueError(f"rule={rule!r} with method='arsvd': ARSVD is the rule 'entropy'")
        method, rule = "svd", "entropy"
    for name, value, owner in (("ranks", ranks, "fixed"), ("budget", budget, "budget")):
        if (rule == owner) != (value is not None):
            raise ValueError(
                f"{name}={value!r} with rule={rule!r}: the rule {owner!r} needs {name}, no other takes them"
            )
    if harms is not None and rule != "budget":
        raise ValueError(f"harms with rule={rule!r}: only the rule 'budget' takes them")
    if latencies is not None and (budget is None or budget.latency is None):
        raise ValueError(f"latencies with budget={budget}: only a Budget(latency=...) takes them")
    if method == "mixed" and rule == "fixed":
        raise ValueError("method='mixed' with rule='fixed': the methods' ranks differ; choose another rule")
    if round_to < 1:
        raise ValueError(f"round_to={round_to!r}: it must be at least 1")
    x = example_batch(x, model)
    decompositions = decompositions or Decompositions(model, moments)
    shapes = decompositions.keep(("shapes", x.shape), lambda: trace_layers(model, x))
    operations = decompositions.keep(("operations", x.shape), lambda: count_operations(model, x))
    untouched = untouched_modules(model, shapes, operations)
    if not shapes and budget is None:
        warnings.warn(nothing_to_factor(model, untouched), stacklevel=2)
    methods = tuple(DECOMPOSITIONS) if method == "mixed" else (method,)
    settings: dict[str, Any]
    if budget is not None:
        network = _Network(model, x, shapes, decompositions, operations, untouched)
        layers, predicted = _budget_plans(network, method, methods, budget, harms, latencies, round_to)
        settings = {"params": budget.params, "macs": budget.macs, "round_to": round_to, "harms": harms is not None}
        settings |= predicted
    elif rule == "fixed":
        layers = _fixed_plans(shapes, decompositions, method, ranks)
        settings = {
            "ranks": {name: _plain(asked) for name, asked in ranks.items()}
            if isinstance(ranks, Mapping)
            else _plain(ranks)
        }
    elif rule == "energy":
        layers = _selected_plans(shapes, decompositions, methods, lambda s, _: energy_rank(s, threshold))
        settings = {"threshold": threshold}
    elif rule == "entropy":
        layers = _selected_plans(shapes, decompositions, methods, lambda s, _: entropy_rank(s, tau, exponent))
        settings = {"tau": tau, "exponent": exponent}
    else:
        # VBMF models a weight as signal and noise; of outputs on data it knows nothing.
        weights = Decompositions(model) if decompositions.moments else decompositions
        layers = _selected_plans(shapes, weights, methods, vbmf_rank)
        layers = {
            name: replace(plan, shift=name in decompositions.moments) if plan.method else plan
            for name, plan in layers.items()
        }
        settings = {}
    if round_to > 1 and rule != "budget" and not isinstance(ranks, Mapping):
        layers = {
            name: replace(plan, ranks=decompositions.get(name, plan.method).round_up(plan.ranks, round_to))
            if plan.method
            else plan
            for name, plan in layers.items()
        }
    if only_if_smaller:
        layers = {name: dense_unless_smaller(shapes[name], plan) for name, plan in layers.items()}
    return RankPlan(layers, method, rule, settings, untouched)


def _budget_plans(
    network: _Network,
    method: str,
    methods: Sequence[str],
    budget: Budget,
    harms: Harms | None,
    latencies: LatencyTable | None,
    round_to: int,
) -> tuple[dict[str, LayerPlan], dict[str, Any]]:
    """The plans with the least harm within the budget, which counts the whole network; and what a latency is told."""
    from common.latency_cache import latency_table, whole_network  # what it imports would import this module

    model, x, shapes, decompositions, operations, untouched = network
    if not shapes:
        raise ValueError(f"{budget} cannot be met: {nothing_to_factor(model, untouched)}")
    if budget.latency is not None and latencies is None:
        latencies = latency_table(model, x, budget.runtime, method)
    if latencies is not None and latencies.conditions.runtime != budget.runtime:
        raise ValueError(f"{budget} with latencies of the runtime {latencies.conditions.runtime!r}")
    whole = None if latencies is None else whole_network(model, x, latencies)
    options = {
        name: layer_options(
            name,
            shape,
            decompositions,
            methods,
            harms=harms,
            round_to=round_to,
            latencies=latencies,
            whole=whole,
        )
        for name, shape in shapes.items()
    }
    if budget.macs is not None and operations.uncounted:
        named = ", ".join(operations.uncounted)
        warnings.warn(f"the budget of MACs leaves out operators whose MACs are not known: {named}", stacklevel=3)
    dense: list[float] = [used_parameters(model, operations), operations.macs]
    own = np.sum([(0, 0), *(shape.dense_cost for shape in shapes.values())], axis=0).tolist()
    if latencies is not None and whole is not None:
        own.append(whole.factor * latencies.layers_seconds(shapes) + whole.per_weight * own[0])
        dense.append(whole.seconds)
    rest = [of_all - part for of_all, part in zip(dense, own, strict=True)]
    try:
        layers = allocate(options, budget, dense, rest)
    except UnreachableBudget as error:
        obstacles = in_the_way(model, shapes, untouched)
        raise UnreachableBudget(f"{error}; {obstacles}" if obstacles else str(error)) from None
    if latencies is None or whole is None:
        return layers, {}
    predicted = latencies.network_seconds(shapes, whole, layers)
    conditions = asdict(latencies.conditions)
    return layers, {"latency": budget.latency, **conditions, "dense_s": whole.seconds, "predicted_s": predicted}


def _selected_plans(
    shapes: Mapping[str, LayerShape], decompositions: Decompositions, methods: Sequence[str], select: RankSelector
) -> dict[str, LayerPlan]:
    """The ranks that ``select`` finds on the spectra; of several methods the one that keeps least of the layer."""
    layers: dict[str, LayerPlan] = {}
    for name, shape in shapes.items():
        if reason := dense_reason(shape):
            layers[name] = LayerPlan(reason=reason)
        else:
            fitting = dict.fromkeys(layer_method(method, shape) for method in methods)
            plans = [decompositions.plan(name, m, decompositions.get(name, m).select_ranks(select)) for m in fitting]
            layers[name] = min(plans, key=lambda plan: sum(kept_shares(shape, plan)))
    return layers


def kept_shares(shape: LayerShape, plan: LayerPlan) -> tuple[float, float]:
    """Shares of the dense layer's parameters and of its MACs that the plan keeps."""
    (params, macs), (dense_params, dense_macs) = shape.cost(plan), shape.dense_cost
    return params / dense_params, macs / max(dense_macs, 1)


def _fixed_plans(
    shapes: Mapping[str, LayerShape],
    decompositions: Decompositions,
    method: str,
    ranks: LayerRanks | Mapping[str, LayerRanks] | None,
) -> dict[str, LayerPlan]:
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
            eligible[name] = decompositions.get(name, layer_method(method, shape))
    most = max((max(decomposition.max_ranks) for decomposition in eligible.values()), default=1)
    for name, decomposition in eligible.items():
        limit = max(decomposition.max_ranks) if isinstance(ranks, Mapping) else most
        chosen = fixed_ranks(decomposition, per_layer[name], name, limit)
        layers[name] = decompositions.plan(name, decomposition.method, chosen)
    return {name: layers[name] for name in shapes}


def dense_unless_smaller(shape: LayerShape, plan: LayerPlan) -> LayerPlan:
    """``plan``, or a dense layer and the reason, where the factors would not be smaller."""
    if plan.method is None:
        return plan
    (params, macs), (dense_params, dense_macs) = shape.cost(plan), shape.dense_cost
    ranks = "x".join(map(str, plan.ranks))
    if params >= dense_params:
        reason = f"at ranks {ranks} its factors would have {params:,} parameters, the layer has {dense_params:,}"
        return LayerPlan(reason=reason)
    if macs > dense_macs:
        return LayerPlan(
            reason=f"at ranks {ranks} its factors would need {macs:,} MACs, the layer needs {dense_macs:,}"
        )
    return plan


def _plain(asked: LayerRanks | None) -> LayerRanks | None:
    """The same in numbers that JSON knows."""
    if isinstance(asked, Sequence) and not isinstance(asked, str):
        return [int(rank) for rank in asked]
    return int(asked) if isinstance(asked, np.integer) else asked


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

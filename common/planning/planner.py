"""``plan_ranks``: apply a rank rule to every layer of a network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from common.decomposition import LayerMoments
from common.network.counting import count_operations
from common.network.passes import example_batch
from common.network.shapes import trace_layers
from common.planning.accounting import nothing_to_factor, untouched_modules
from common.planning.decompositions import Decompositions
from common.planning.latencies import Latencies
from common.planning.methods import method_named
from common.planning.options import Divergences
from common.planning.plan import RankPlan
from common.planning.rules import Budget, Network, Rule


def plan_ranks(
    model: nn.Module,
    x: Tensor,
    method: str = "htd",
    rule: Rule | None = None,
    *,
    moments: Mapping[str, LayerMoments] | None = None,
    decompositions: Decompositions | None = None,
    divergences: Divergences | None = None,
    latencies: Latencies | None = None,
) -> RankPlan:
    """Choose the ranks of every convolution and Linear of ``model``.

    Args:
        model: the dense network; it is not changed.
        x: one example input ``(N, C, H, W)``, which sets the layers' spatial sizes.
        method: a decomposition (``svd``, ``spatial_svd``, ``tucker2``, ``htd``, ``cp``); ``mixed``, the best of them
            for each layer; or ``arsvd``, which is ``svd`` with the rule ``Entropy``. If a method does not serve a
            layer, another takes its place, see :func:`common.decomposition.serving_method`.
        rule: ``Fixed(ranks)``, ``Energy(threshold)``, ``Entropy(tau)``, ``VBMF()`` or ``Budget(params=, macs=)``. The
            default is ``Energy()``, or ``Entropy()`` for ``arsvd``.
        moments: layer -> moments, from :func:`common.calibration.calibrate`. Spectra and errors are then those of the
            layers' outputs on data, not of their weights. (``VBMF`` models the weights and always reads their
            spectra.)
        decompositions: existing decompositions of ``model``; they replace ``moments`` with their own.
        divergences: for a ``Budget``, the measured divergence of the network's output at given errors of each layer,
            from :func:`common.search.sensitivity.measure_divergences`. Without it, the squared relative errors of all
            layers count equally.
        latencies: for a ``Budget(latency=...)``, measured times of the layers, dense and factored, from
            :func:`common.latency.measured_latencies`.

    Warns:
        UserWarning: no layer of the network can be factored.

    Raises:
        ValueError: an argument is unknown or out of range, or the budget cannot be met. The message names the
            argument, its value and what is allowed.
    """
    named = method_named(method)
    rule = rule if rule is not None else named.rule
    check_rule(rule, method)
    for name, value in {"divergences": divergences, "latencies": latencies}.items():
        if value is not None and not isinstance(rule, Budget):
            raise ValueError(f"{name} with rule={rule!r}: only a Budget takes them")
    x = example_batch(x, model)
    decompositions = decompositions or Decompositions(model, moments)
    shapes = decompositions.cached(("shapes", x.shape), lambda: trace_layers(model, x))
    operations = decompositions.cached(("operations", x.shape), lambda: count_operations(model, x))
    untouched = untouched_modules(model, shapes, operations)
    if not shapes and not isinstance(rule, Budget):  # a Budget raises instead
        warnings.warn(nothing_to_factor(model, untouched), stacklevel=2)
    layers = (shapes, decompositions, operations, untouched)
    return rule.plan(Network(model, x, named.name, named.decompositions, *layers, divergences, latencies))


def check_rule(rule: object, method: str) -> None:
    """Raise a ValueError unless ``rule`` is a rank rule that the method, whose name must be known, allows."""
    named = method_named(method)
    only = named.only
    if not isinstance(rule, Rule):
        raise ValueError(f"rule={rule!r}: it must be a rule, e.g. Energy(0.9) or Budget(params=0.5)")
    if only is not None and not isinstance(rule, only):
        raise ValueError(f"rule={rule!r} with method={method!r}: it must be {only.__name__}(...)")
    rule.check_method(method, named.decompositions)

"""``plan_ranks``: a rank rule applied to every layer of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from common.choices import check_choice
from common.decomposition import DECOMPOSITIONS, Decomposition, LayerMoments, Ranks
from common.planning.layers import Decompositions, LayerShape, dense_reason, layer_method, trace_layers
from common.planning.plan import LayerPlan, RankPlan
from common.planning.rules import energy_rank, entropy_rank

METHODS = (*DECOMPOSITIONS, "arsvd")
RULES = ("fixed", "energy", "entropy")

LayerRanks = int | float | str | Sequence[int]


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
    only_if_smaller: bool = True,
    moments: Mapping[str, LayerMoments] | None = None,
    decompositions: Decompositions | None = None,
) -> RankPlan:
    """Choose the ranks of every Conv2d, ConvTranspose2d and Linear of ``model``.

    Args:
        model: the dense network; it is not changed.
        x: one example input ``(N, C, H, W)``; it tells the layers' spatial sizes.
        method: ``svd``, ``spatial_svd``, ``tucker2``, ``htd``, or ``arsvd``, which is ``svd`` with the rule
            ``entropy``. Layers that a method does not fit take the nearest that does, see
            :func:`common.planning.layers.layer_method`.
        rule: ``fixed``, ``energy`` or ``entropy``.
        ranks: for ``fixed``: a whole number (the rank in every mode, or the mode's maximum where that is less), a
            fraction in (0, 1] of each maximum, ``"full"``, or a map from layer names to such values or to the
            method's ranks, e.g. ``(r_in, r_mid, r_out)``. Layers that a map leaves out stay dense.
        threshold: for ``energy``: the share of the squared singular values to keep, in [0, 1].
        tau: for ``entropy``: the share of the spectral entropy to keep, in [0, 1].
        exponent: for ``entropy``: 1 (the paper) or 2.
        only_if_smaller: keep a layer dense where its factors would not have fewer parameters and no more MACs.
        moments: from :func:`common.calibration.calibrate`: spectra and errors are then those of the layers' outputs
            on data instead of their weights.
        decompositions: those of ``model``, when they are there already; they bring their own moments.

    Raises:
        ValueError: an argument is unknown or out of range; the sentence names it, its value and what is allowed.
    """
    check_choice("method", method, METHODS)
    check_choice("rule", rule, RULES)
    if method == "arsvd":
        method, rule = "svd", "entropy"
    if (rule == "fixed") != (ranks is not None):
        raise ValueError(f"ranks={ranks!r} with rule={rule!r}: the rule 'fixed' needs ranks, no other takes them")
    shapes = trace_layers(model, x)
    decompositions = decompositions or Decompositions(model, moments)
    if isinstance(ranks, Mapping):
        for name in ranks:
            check_choice("layer name in ranks", name, shapes)
    per_layer = ranks if isinstance(ranks, Mapping) else dict.fromkeys(shapes, ranks)

    layers: dict[str, LayerPlan] = {}
    eligible: dict[str, Decomposition] = {}
    for name, shape in shapes.items():
        if name not in per_layer:
            layers[name] = LayerPlan(reason="no ranks were given for it")
        elif reason := dense_reason(shape):
            layers[name] = LayerPlan(reason=reason)
        else:
            eligible[name] = decompositions.get(name, layer_method(method, shape))

    most = max((max(decomposition.max_ranks) for decomposition in eligible.values()), default=1)
    for name, decomposition in eligible.items():
        if rule == "fixed":
            limit = max(decomposition.max_ranks) if isinstance(ranks, Mapping) else most
            chosen = fixed_ranks(decomposition, per_layer[name], name, limit)
        elif rule == "energy":
            chosen = decomposition.select_ranks(lambda spectrum: energy_rank(spectrum, threshold))
        else:
            chosen = decomposition.select_ranks(lambda spectrum: entropy_rank(spectrum, tau, exponent))
        plan = decompositions.plan(name, decomposition.method, chosen)
        layers[name] = dense_unless_smaller(shapes[name], plan) if only_if_smaller else plan
    settings: dict[str, Any] = {
        "fixed": {"ranks": dict(ranks) if isinstance(ranks, Mapping) else ranks},
        "energy": {"threshold": threshold},
        "entropy": {"tau": tau, "exponent": exponent},
    }
    return RankPlan({name: layers[name] for name in shapes}, method, rule, settings[rule])


def dense_unless_smaller(shape: LayerShape, plan: LayerPlan) -> LayerPlan:
    """``plan``, or a dense layer and the reason, where the factors would not be smaller."""
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


def fixed_ranks(decomposition: Decomposition, asked: LayerRanks | None, name: str, limit: int) -> Ranks:
    """The ranks that a user asked for the layer ``name``; a single whole number may be at most ``limit``.

    Raises:
        ValueError: the layer cannot have them.
    """
    if asked == "full":
        return decomposition.max_ranks
    if isinstance(asked, int) and not isinstance(asked, bool) and 1 <= asked <= limit:
        return decomposition.cap(asked)
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

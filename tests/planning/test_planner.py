from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from common.compression import compress
from common.decomposition import DECOMPOSITIONS, SVD
from common.network import profile
from common.network.shapes import trace_layers
from common.planning import Energy, Entropy, Fixed, LayerPlan, RankPlan, Rule, method_names, plan_ranks
from common.planning.decompositions import Decompositions
from common.planning.rules.entropy import entropy_rank
from tests.networks import tiny_cnn

X = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def plan(method: str = "htd", rule: Rule | None = None) -> RankPlan:
    return plan_ranks(tiny_cnn(), X, method, rule)


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("rule", [None, Entropy(0.6)])
def test_every_layer_gets_a_plan(method: str, rule: Rule | None) -> None:
    found = plan(method, rule)
    assert list(found.layers) == ["stem.0", "conv", "shortcut", "head"]
    assert found.layers["shortcut"].method in {"svd", None}
    assert found.layers["head"].method in {"svd", None}
    for name, reason in found.skipped.items():
        assert reason
        assert reason in str(found)
        assert name in str(found)


def test_a_layer_that_would_grow_stays_dense_with_the_reason() -> None:
    found = plan("htd", Fixed("full"))
    assert not found.factored
    assert found.skipped["conv"] == ("at ranks 16x48x32 its factors would have 8,224 parameters, the layer has 4,640")
    assert list(plan("htd", Fixed("full", only_if_smaller=False)).skipped) == []


def test_a_layer_that_would_need_more_macs_stays_dense() -> None:
    """The 1x1 factor before a stride of 4 runs over 16 times the pixels."""
    model = nn.Sequential(nn.Conv2d(32, 32, 3, stride=4, padding=1, bias=False))
    found = plan_ranks(model, torch.randn(1, 32, 16, 16), "tucker2", Fixed({"0": (20, 10)}))
    assert "MACs, the layer needs 147,456" in found.skipped["0"]


def test_arsvd_is_svd_with_entropy() -> None:
    model = tiny_cnn()
    found = plan_ranks(model, X, "arsvd", Entropy(0.8, exponent=2, only_if_smaller=False))
    assert (found.method, found.rule, found.settings) == ("svd", "entropy", {"tau": 0.8, "exponent": 2})
    assert found.layers["conv"].ranks == (entropy_rank(SVD(model.conv.weight).spectrum, 0.8, 2),)


@pytest.mark.parametrize(
    ("ranks", "method", "expected"),
    [
        (5, "svd", (5,)),
        (5, "tucker2", (5, 5)),
        (20, "tucker2", (16, 20)),
        (0.5, "tucker2", (8, 16)),
        (0.5, "htd", (8, 12, 16)),
        ("full", "htd", (16, 48, 32)),
        ({"conv": (3, 4, 5)}, "htd", (3, 4, 5)),
        ({"conv": 0.25}, "svd", (8,)),
    ],
)
def test_fixed_ranks_are_planned(ranks: Any, method: str, expected: tuple[int, ...]) -> None:
    found = plan(method, Fixed(ranks, only_if_smaller=False))
    assert found.layers["conv"] == LayerPlan(method, expected)


def test_layers_that_are_not_in_the_map_stay_dense() -> None:
    found = plan("svd", Fixed({"conv": 4}))
    assert list(found.factored) == ["conv"]
    assert found.skipped["head"] == "no ranks were given for it"


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (lambda: Entropy(1.5), r"tau=1.5: it must be in \[0, 1\]"),
        (lambda: Entropy(exponent=3), "exponent=3: it must be 1 or 2"),
        (lambda: Energy(-1), r"threshold=-1: it must be in \[0, 1\]"),
        (lambda: Energy(round_to=0), "round_to=0: it must be a whole number of at least 1"),
        (lambda: "energy", r"rule='energy': it must be a rule, e.g. Energy\(0.9\)"),
        (lambda: Fixed(0), "ranks=0: it must be a whole number of at least 1"),
        (lambda: Fixed(49), r"ranks=49 .* it must be a whole number in 1\.\.48"),
        (lambda: Fixed(1.5), r"ranks=1.5: .* a fraction in \(0, 1\]"),
        (lambda: Fixed(True), "ranks=True: it must be"),
        (lambda: Fixed("half"), "ranks='half': it must be"),
        (lambda: Fixed({"conv": (1, 2, 99)}), r"layer 'conv': r_out=99 .* must be in 1\.\.32"),
        (lambda: Fixed({"head": 11}), r"ranks=11 for layer 'head': it must be a whole number in 1\.\.10"),
        (lambda: Fixed({"cnov": 1}), r"layer name in ranks='cnov' is unknown \(did you mean 'conv'\?\)"),
    ],
)
def test_invalid_rules_are_refused(rule: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan(rule=rule())


def test_an_unknown_method_is_refused() -> None:
    allowed = "svd, spatial_svd, tucker2, htd, cp, mixed, arsvd"
    with pytest.raises(ValueError, match=rf"method='hdt' is unknown \(did you mean 'htd'\?\); allowed: {allowed}"):
        plan("hdt")


def test_depthwise_layers_stay_dense() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2))
    found = plan_ranks(model, torch.randn(1, 8, 9, 9), "svd", Fixed(1))
    assert "depthwise" in found.skipped["0"]
    assert found.layers["1"] == LayerPlan("svd", (1,))


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_the_predicted_cost_is_the_measured_cost(method: str) -> None:
    kernels, strides = [(3, 3), (5, 3)], [(1, 1), (2, 1)]
    for kernel, stride, groups, bias in itertools.product(kernels, strides, [1, 2], [True, False]):
        model = nn.Sequential(
            nn.Conv2d(6, 8, kernel, stride, 1, groups=groups, bias=bias), nn.Flatten(1, 2), nn.Linear(8, 4)
        )
        x = torch.randn(3, 6, 12, 10)
        model[2] = nn.Linear(model[1](model[0](x)).shape[-1], 4)
        found = plan_ranks(model, x, method, Fixed(2, only_if_smaller=False))
        shapes = trace_layers(model, x)
        costs = [shapes[name].cost(layer) for name, layer in found.layers.items()]
        small, dense = profile(compress(model, found), x), profile(model, x)
        assert (small.params, small.macs) == tuple(map(sum, zip(*costs, strict=True)))
        dense_costs = [shape.dense_cost for shape in shapes.values()]
        assert (dense.params, dense.macs) == tuple(map(sum, zip(*dense_costs, strict=True)))


def test_a_plan_survives_json() -> None:
    found = plan("htd", Energy(0.5))
    assert RankPlan.from_json(found.to_json()) == found
    with pytest.raises(ValueError, match="not a rank plan"):
        RankPlan.from_json({"layers": {"a": 3}})


def test_shared_decompositions_run_the_network_only_once_for_each_input_size() -> None:
    model, sizes = tiny_cnn(), []
    decompositions = Decompositions(model)
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    small, large = X[:, :, :8, :8], X
    plans = [plan_ranks(model, x, "svd", Fixed(4), decompositions=decompositions) for x in (small, large)]
    assert set(sizes) == {tuple(small.shape), tuple(large.shape)}
    passes = len(sizes)
    plans += [plan_ranks(model, x, "svd", Fixed(4), decompositions=decompositions) for x in (small, large)]
    assert len(sizes) == passes
    assert plans[0] == plans[2]
    assert plans[1] == plans[3] == plan_ranks(model, large, "svd", Fixed(4))


def test_tracing_does_not_change_the_network() -> None:
    model = tiny_cnn()
    model.train()
    model.norm.eval()
    trace_layers(model, X)
    assert model.training
    assert not model.norm.training
    assert not model.conv._forward_hooks

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from common.calibration import calibrate, recalibrate_bn
from common.checkpoints import load_compressed, save_compressed
from common.compression import compress
from common.decomposition import DECOMPOSITIONS
from common.models import build_model
from common.planning import Budget, LayerPlan, RankPlan, plan_ranks
from common.planning.layers import Decompositions
from common.profiling import profile
from tests.networks import same_weights, tiny_cnn

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_both_modes_are_the_same_function(method: str) -> None:
    model = tiny_cnn()
    before = copy.deepcopy(model)
    plan = plan_ranks(model, X, method, "fixed", ranks=0.4)
    small, rebuilt = compress(model, plan), compress(model, plan, mode="reconstruct")
    with torch.no_grad():
        torch.testing.assert_close(small(X), rebuilt(X), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(small(X), model(X), rtol=1e-2)
    assert same_weights(model, before)
    assert profile(small, X).params < profile(model, X).params
    assert profile(rebuilt, X) == profile(model, X)


def test_nothing_is_shared_with_the_dense_network() -> None:
    model = tiny_cnn()
    before = copy.deepcopy(model)
    for mode in ("factorized", "reconstruct"):
        small = compress(model, plan_ranks(model, X, "htd", "fixed", ranks=0.4), mode=mode)
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.zero_()
    assert same_weights(model, before)


def test_decompositions_are_made_once_and_give_the_same_networks() -> None:
    model = tiny_cnn()
    kept = Decompositions(model)
    plan = plan_ranks(model, X, "htd", "fixed", ranks=0.4, decompositions=kept)
    assert same_weights(compress(model, plan, decompositions=kept), compress(model, plan, sweeps=0))
    assert kept.get("conv", "htd") is kept.get("conv", "htd")


def test_a_module_that_is_used_twice_is_factored_once(tmp_path: Path) -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), shared, nn.ModuleDict({"again": shared})["again"]).eval()
    plan = plan_ranks(model, X, "svd", "fixed", ranks=2)
    assert list(plan.layers) == ["0", "1"]
    small = compress(model, plan)
    assert small.get_submodule("1") is small.get_submodule("2")
    cost = profile(small, X)
    assert cost.params == sum(parameter.numel() for parameter in small.parameters())
    loaded = load_compressed(save_compressed(small, tmp_path / "shared.safetensors"), copy.deepcopy(model))
    assert loaded.get_submodule("1") is loaded.get_submodule("2")
    assert same_weights(loaded, small)
    with torch.no_grad():
        torch.testing.assert_close(small(X), compress(model, plan, mode="reconstruct")(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_modes_devices_and_gradients_are_kept(device: str) -> None:
    model = tiny_cnn().train().to(device)
    model.conv.requires_grad_(False)
    small = compress(model, plan_ranks(model, X.to(device), "svd", "fixed", ranks=2, only_if_smaller=False))
    assert {parameter.device.type for parameter in small.parameters()} == {device}
    assert all(module.training for module in small.modules())
    assert not any(parameter.requires_grad for parameter in small.get_submodule("conv").parameters())
    assert all(parameter.requires_grad for parameter in small.get_submodule("head").parameters())


def test_the_bias_stands_on_the_last_factor_only() -> None:
    model = tiny_cnn()
    small = compress(model, RankPlan({"conv": LayerPlan("htd", (2, 3, 4))}, "htd", "fixed"))
    factors = list(small.get_submodule("conv").children())
    assert [factor.bias is not None for factor in factors] == [False, False, False, True]
    assert [tuple(factor.get_parameter("weight").shape) for factor in factors] == [
        (2, 16, 1, 1),
        (3, 2, 3, 1),
        (4, 3, 1, 3),
        (32, 4, 1, 1),
    ]
    assert torch.equal(factors[-1].get_parameter("bias"), model.conv.get_parameter("bias"))


@pytest.mark.parametrize(
    ("name", "layer", "sentence"),
    [
        ("cnov", LayerPlan("svd", (1,)), "layer of the plan='cnov' is unknown"),
        ("norm", LayerPlan("svd", (1,)), "layer 'norm' of the plan is a BatchNorm2d"),
        ("conv", LayerPlan("svd", (99,)), "rank=99 .* must be in"),
    ],
)
def test_plans_that_do_not_fit_are_refused(name: str, layer: LayerPlan, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        compress(tiny_cnn(), RankPlan({name: layer}, "svd", "fixed"))


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="mode='factorised' is unknown"):
        compress(tiny_cnn(), RankPlan({}, "svd", "fixed"), mode="factorised")


def test_a_network_is_compressed_once_only() -> None:
    model = build_model("resnet20", 10).eval()
    plan = plan_ranks(model, X, "svd", "fixed", ranks=4)
    with pytest.raises(ValueError, match="compressed already"):
        compress(compress(model, plan), plan)


def test_a_single_layer_has_no_place_to_be_replaced_in() -> None:
    layer = nn.Conv2d(3, 16, 3)
    with pytest.raises(ValueError, match="put it in a Sequential"):
        compress(layer, plan_ranks(layer, X, "svd", "fixed", ranks=2))


@NEEDS_GPU
def test_the_whole_way_on_a_gpu() -> None:
    model, x = tiny_cnn(width=32).cuda(), X.cuda()
    moments = calibrate(model, [X])
    plan = plan_ranks(model, x, "mixed", "budget", budget=Budget(params=0.5), moments=moments)
    small = compress(model, plan, moments=moments)
    recalibrate_bn(small, [X])
    assert small(x).isfinite().all()

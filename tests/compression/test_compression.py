from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.calibration import calibrate, recalibrate_bn
from common.compression import SingleLayers, compress, load_compressed, save_compressed
from common.decomposition import DECOMPOSITIONS
from common.models import build_model
from common.network import profile
from common.network.shapes import trace_layers
from common.planning import Budget, Energy, Fixed, LayerPlan, RankPlan, plan_ranks
from common.planning.decompositions import Decompositions
from tests.networks import same_weights, tiny_cnn

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_both_modes_compute_the_same_outputs(method: str) -> None:
    model = tiny_cnn()
    before = copy.deepcopy(model)
    plan = plan_ranks(model, X, method, Fixed(0.4))
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
        small = compress(model, plan_ranks(model, X, "htd", Fixed(0.4)), mode=mode)
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.zero_()
    assert same_weights(model, before)


def test_reused_decompositions_give_the_same_network() -> None:
    model = tiny_cnn()
    decompositions = Decompositions(model)
    plan = plan_ranks(model, X, "htd", Fixed(0.4), decompositions=decompositions)
    assert same_weights(compress(model, plan, decompositions=decompositions), compress(model, plan, sweeps=0))
    assert decompositions.get("conv", "htd") is decompositions.get("conv", "htd")


def test_a_module_that_is_used_twice_is_factored_once(tmp_path: Path) -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), shared, nn.ModuleDict({"again": shared})["again"]).eval()
    plan = plan_ranks(model, X, "svd", Fixed(2))
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
    small = compress(model, plan_ranks(model, X.to(device), "svd", Fixed(2, only_if_smaller=False)))
    assert {parameter.device.type for parameter in small.parameters()} == {device}
    assert all(module.training for module in small.modules())
    assert not any(parameter.requires_grad for parameter in small.get_submodule("conv").parameters())
    assert all(parameter.requires_grad for parameter in small.get_submodule("head").parameters())


class Held(nn.Module):
    """Layers in a plain list, one that runs twice, and one with a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.steps = [self.shared, nn.ReLU(), self.shared]
        self.head.register_forward_hook(lambda _, __, output: 2 * output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for step in self.steps:
            x = step(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("make", [tiny_cnn, Held])
def test_one_layer_at_a_time_is_factored_as_compress_does_it(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    before = copy.deepcopy(model)
    decompositions = Decompositions(model, calibrate(model, [torch.randn(100, 3, 12, 12)]))
    single = SingleLayers(model, decompositions)
    plan = plan_ranks(model, X, "svd", Fixed(0.3, only_if_smaller=False), decompositions=decompositions)
    assert len(plan.factored) >= 2
    with torch.no_grad():
        dense = model(X)
        for name in 2 * list(plan.factored):
            wanted = compress(model, RankPlan({name: plan.layers[name]}, "svd", ""), decompositions=decompositions)
            with single.factored(name, plan.layers[name]) as small:
                assert torch.equal(small(X), wanted(X))
                assert not torch.allclose(small(X), dense, rtol=1e-3)
            assert torch.equal(small(X), dense)
    assert same_weights(small, before)
    assert same_weights(model, before)


def test_a_layer_that_cannot_be_factored_alone_stays() -> None:
    model = tiny_cnn()
    single = SingleLayers(model, Decompositions(model))
    with pytest.raises(ValueError, match=r"rank=99 .* must be in"), single.factored("conv", LayerPlan("svd", (99,))):
        pass
    with single.factored("conv", LayerPlan("svd", (1,))) as small:
        pass
    assert same_weights(small, model)
    with pytest.raises(ValueError, match="compressed already"):
        SingleLayers(compress(model, RankPlan({"conv": LayerPlan("svd", (1,))}, "svd", "")), Decompositions(model))


def test_only_the_last_factor_has_a_bias() -> None:
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
    ("name", "layer", "message"),
    [
        ("cnov", LayerPlan("svd", (1,)), "layer of the plan='cnov' is unknown"),
        ("norm", LayerPlan("svd", (1,)), "layer 'norm' of the plan is a BatchNorm2d"),
        ("conv", LayerPlan("svd", (99,)), "rank=99 .* must be in"),
    ],
)
def test_plans_that_do_not_fit_are_refused(name: str, layer: LayerPlan, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(tiny_cnn(), RankPlan({name: layer}, "svd", "fixed"))


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="mode='factorised' is unknown"):
        compress(tiny_cnn(), RankPlan({}, "svd", "fixed"), mode="factorised")


def test_a_network_cannot_be_compressed_twice() -> None:
    model = build_model("resnet20", 10).eval()
    plan = plan_ranks(model, X, "svd", Fixed(4))
    with pytest.raises(ValueError, match="compressed already"):
        compress(compress(model, plan), plan)


def test_a_single_layer_cannot_be_compressed() -> None:
    layer = nn.Conv2d(3, 16, 3)
    with pytest.raises(ValueError, match="put it in a Sequential"):
        compress(layer, plan_ranks(layer, X, "svd", Fixed(2)))


@NEEDS_GPU
def test_every_step_runs_on_a_gpu() -> None:
    model, x = tiny_cnn(width=32).cuda(), X.cuda()
    moments = calibrate(model, [torch.randn(32, 3, 12, 12)])
    plan = plan_ranks(model, x, "mixed", Budget(params=0.5), moments=moments)
    small = compress(model, plan, moments=moments)
    recalibrate_bn(small, [X])
    assert small(x).isfinite().all()


class Scaled(nn.Conv2d):
    """Halves its output."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 0.5 * nn.functional.conv2d(input, self.weight, self.bias, padding=self.padding)


def with_tied_weights() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 32, 3))
    model[2].weight = model[0].weight
    return model


def with_tied_memory() -> nn.Sequential:
    """Tie two parameters by their memory."""
    model = with_tied_weights()
    own = nn.Parameter(torch.empty(8, 8, 3, 3))
    own.data = model[0].get_parameter("weight").data
    model[2].weight = own
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(Scaled(8, 8, 3, padding=1), nn.Conv2d(8, 32, 3)), "its class Scaled does more"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 32, 3)),
            "its weight is computed from other parameters",
        ),
        (with_tied_weights(), "it shares its weight with 2"),
        (with_tied_memory(), "it shares its weight with 2"),
    ],
)
def test_layers_that_cannot_be_replaced_stay_dense_with_a_reason(model: nn.Sequential, reason: str) -> None:
    x = torch.randn(2, 8, 8, 8)
    plan = plan_ranks(model, x, "tucker2", Budget(params=0.8))
    assert reason in plan.skipped["0"]
    small = compress(model, plan)
    assert profile(small, x).params <= 0.8 * profile(model, x).params
    forced = RankPlan({"0": LayerPlan("svd", (2,))}, "svd", "fixed")
    with pytest.raises(ValueError, match=rf"^layer '0' of the plan must stay dense: .*{reason}"):
        compress(model, forced)


class UnusualCalls(nn.Module):
    """Calls its layers in unusual ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(4, 24, 3, padding=1), nn.ConvTranspose2d(24, 24, 3, 2, padding=1)
        self.table, self.rows = nn.Linear(8, 24), nn.Parameter(torch.randn(1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = torch.cat([*x.chunk(2, 2)], 0)  # two patches for each image, along the batch axis
        y: torch.Tensor = self.conv(input=patches)
        y = self.up(y, output_size=[2 * side for side in y.shape[2:]])
        return y + self.table(self.rows).unflatten(1, (24, 1, 1))


def test_unusual_calls_are_counted_and_compressed() -> None:
    model, x = UnusualCalls(), torch.randn(4, 4, 8, 8)
    with pytest.warns(UserWarning, match="too few calibration patches for the layers 'table'"):
        moments = calibrate(model, [x])  # table sees one row a batch
    shapes = trace_layers(model, x)
    cost = profile(model, x)
    assert shapes["conv"].dense_cost[1] == cost.layers["conv"].macs == 2 * 4 * 24 * 9 * 4 * 8
    plan = plan_ranks(model, x, "svd", Fixed(2), moments=moments)
    assert plan.skipped == {"up": "it is called with an output size, which its factors do not accept"}
    assert set(plan.factored) == {"conv", "table"}
    assert compress(model, plan, moments=moments)(x).shape == model(x).shape


class InContainers(nn.Module):
    """Runs its layers through plain containers that also hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.steps: list[Any] = [[self.one], {"two": self.two}]
        self.last = (self.three, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last[0](self.steps[1]["two"](self.steps[0][0](x)))
        return y


def test_layers_in_plain_containers_are_replaced_too() -> None:
    model = InContainers()
    plan = plan_ranks(model, X, "svd", Fixed(2))
    assert set(plan.factored) == {"one", "two", "three"}
    small = compress(model, plan)
    dense, cost = profile(model, X), profile(small, X)
    assert cost.macs < 0.5 * dense.macs
    assert isinstance(model.steps[0][0], nn.Conv2d)  # the dense network keeps its layer
    with torch.no_grad():
        assert not torch.equal(small(X), model(X))


def test_a_layer_with_an_empty_input_is_counted_for_one_row() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.taken, self.passed = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.taken(x), self.passed(x[:0])])

    assert trace_layers(Experts(), X)["passed"].dense_cost[1] > 0
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 4, 1))
    assert list(trace_layers(lazy, X)) == ["0", "1"]


class Consensus(nn.Module):
    """Passes the mean over the batch, one row, through two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 8, 3), nn.Linear(8, 200), nn.Linear(200, 200)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.two(self.one(self.conv(x).mean((2, 3)).mean(0, keepdim=True)))
        return y


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_shared_row_counts_as_a_fraction_for_each_input(batch: int) -> None:
    model, x = Consensus(), torch.randn(batch, 3, 4, 4)
    dense = profile(model, x)
    shapes = trace_layers(model, x)
    assert sum(shape.dense_cost[1] for shape in shapes.values()) == pytest.approx(dense.macs, abs=1)
    plan = plan_ranks(model, x, "svd", Budget(macs=0.5))
    assert profile(compress(model, plan), x).macs <= 0.5 * dense.macs


def test_a_network_without_factorable_layers_cannot_meet_a_budget() -> None:
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(
        ValueError, match=r"^Budget\(params=0\.5.* cannot be met: nothing can be factored: .*BatchNorm2d x 1"
    ):
        plan_ranks(nn.Sequential(nn.BatchNorm2d(3)), x, "svd", Budget(params=0.5))


def test_ranks_must_be_whole_numbers(tmp_path: Path) -> None:
    model = build_model("resnet20", 10).eval()
    wanted: Any = {"layer1.0.conv1": (np.int64(2), np.int64(3)), "layer1.0.conv2": np.int64(4)}
    plan = plan_ranks(model, X, "tucker2", Fixed(wanted))
    save_compressed(compress(model, plan), tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"^layer 'layer1\.0\.conv1': ranks=\(2\.5, 3\): they must be whole numbers$"):
        plan_ranks(model, X, "tucker2", Fixed({"layer1.0.conv1": (2.5, 3)}))  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("layer1.0.conv1", LayerPlan("tucker2", (4,)), r"layer 'layer1\.0\.conv1' of the plan: ranks=\(4,\)"),
        ("layer1.0.conv1", LayerPlan("svd", (999,)), r"layer 'layer1\.0\.conv1' of the plan: rank=999"),
        ("layer1.0.conv1", LayerPlan("svdd", (4,)), r"method of layer .*='svdd' is unknown \(did you mean 'svd'\?\)"),
        ("fc", LayerPlan("htd", (4, 4, 4)), r"method of layer 'fc'='htd' is unknown; allowed: svd$"),
    ],
)
def test_every_layer_of_a_manual_plan_is_checked(name: str, layer: LayerPlan, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        compress(build_model("resnet20", 10), RankPlan({name: layer}, "svd", "fixed"))


def test_bad_weights_and_sweeps_are_refused_by_name() -> None:
    model = tiny_cnn()
    plan = plan_ranks(model, X, "svd", Fixed(0.4))
    with pytest.raises(ValueError, match=r"^sweeps=-1: it must be at least 0$"):
        compress(model, plan, sweeps=-1)
    nn.init.constant_(model.stem.get_parameter("0.weight"), torch.nan)
    with pytest.raises(ValueError, match=r"^layer 'stem\.0' has weights that are not finite"):
        compress(model, plan)


def test_moments_of_other_layers_are_refused() -> None:
    model = tiny_cnn()
    wrapped = {f"module.{name}": found for name, found in calibrate(model, [torch.randn(32, 3, 12, 12)]).items()}
    with pytest.raises(ValueError, match=r"^layer of the moments='module\.stem\.0' is unknown"):
        plan_ranks(model, X, "svd", Energy(), moments=wrapped)


def test_moments_that_the_plan_lacked_cause_a_warning() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 16, 3)).eval()
    moments = calibrate(model, [X])
    with pytest.warns(UserWarning, match=r"gives no bias to 0, which therefore lose the mean"):
        compress(model, plan_ranks(model, X, "svd", Fixed(2)), moments=moments)
    compress(model, plan_ranks(model, X, "svd", Fixed(2), moments=moments), moments=moments)

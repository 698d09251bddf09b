from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from common.compression import compress
from common.network import profile
from common.planning import Budget, Energy, Fixed, RankPlan, plan_ranks

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Mixture(nn.Module):
    """A network with layers of many kinds, a weight that is read without a call, and a head only for training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.frames = nn.Conv2d(3, 64, 4, 4), nn.GRU(64, 64, batch_first=True)
        self.memory = nn.LSTM(64, 64, batch_first=True)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.project, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)
        self.scale = nn.Parameter(torch.ones(64))
        self.scripted = torch.jit.script(nn.Linear(64, 64))
        self.helper = nn.Sequential(nn.Linear(64, 520), nn.Linear(520, 10))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.frames(self.stem(x).flatten(2).transpose(1, 2))[0]
        tokens = self.attention(*[self.memory(tokens)[0]] * 3, need_weights=False)[0]
        tokens = self.scripted(self.norm(tokens)) * self.scale
        if self.training:
            tokens = self.helper(tokens)
        return nn.functional.linear(tokens, self.project.weight, self.project.bias)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's
def test_a_plan_names_every_parameter() -> None:
    model = Mixture().eval()
    plan = plan_ranks(model, X, "svd", Fixed(4))
    cost = profile(model, X)
    kinds = {group.kind: group for group in plan.untouched}
    assert set(kinds) == {
        *("GRU", "LSTM", "MultiheadAttention", "NonDynamicallyQuantizableLinear", "Linear", "LayerNorm"),
        *("Mixture", "scripted Linear", "Sequential"),
    }
    stem = cost.layers["stem"].params / cost.params
    assert stem + sum(group.params for group in plan.untouched) == pytest.approx(1, abs=1e-9)
    assert cost.layers["stem"].macs / cost.macs + sum(group.macs for group in plan.untouched) == pytest.approx(1)
    assert kinds["LSTM"].macs == pytest.approx(cost.layers["memory"].macs / cost.macs)
    assert kinds["Linear"].names == ("project",)
    assert kinds["Linear"].reason == "its weight is used without calling it"
    assert kinds["Sequential"].names == ("helper",)
    assert kinds["Sequential"].reason.startswith("a pass in evaluation mode never runs it")
    assert re.search(r"^stem +svd +4$", str(plan), re.MULTILINE)
    for word in ("LSTM x 1 (memory)", "MultiheadAttention x 1 (attention)", "project", "helper"):
        assert word in str(plan)
    assert RankPlan.from_json(plan.to_json()) == plan


class Auxiliary(nn.Module):
    """A network with a head only for training, like GoogLeNet."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.Conv2d(64, 256, 3, 2), nn.ReLU())
        self.head = nn.Linear(256, 10)
        helper = nn.Sequential(nn.Linear(256, 520), nn.Linear(520, 10))
        self.helper = nn.ModuleDict({"one": helper, "two": nn.Conv2d(8, 200, 5)}) if deep else helper

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).mean((2, 3))
        y: Tensor = self.head(features) + (self.helper(features) if self.training else 0)
        return y


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("method", ["svd", "tucker2", "mixed"])
def test_budgets_are_fractions_of_what_a_pass_runs(deep: bool, share: float, method: str) -> None:
    torch.manual_seed(0)
    model = Auxiliary(deep).eval()
    small = compress(model, plan_ranks(model, X, method, Budget(params=share)))
    dense, compressed = profile(model, X), profile(small, X)
    assert dense.params_in_use < 0.7 * dense.params
    assert 0.9 * share * dense.params_in_use <= compressed.params_in_use <= share * dense.params_in_use
    assert compressed.params - compressed.params_in_use == dense.params - dense.params_in_use


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 64, 3), weight_norm(nn.Conv2d(64, 64, 3)))


def recurrent() -> nn.Module:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.memory = nn.Conv2d(3, 64, 4, 4), nn.LSTM(64, 64, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.memory(self.stem(x).flatten(2).transpose(1, 2))[0]
            return y

    return Recurrent()


def depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 30, 1), nn.Conv2d(30, 30, 11, groups=30))


@pytest.mark.parametrize("budget", [Budget(params=0.1), Budget(params=0.5, macs=0.05)])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (weight_normed, r"1 \(9\d\.\d% of the parameters\): its weight is computed from other parameters"),
        (recurrent, r"LSTM x 1 \(memory\), 9\d\.\d% of the parameters and 9\d\.\d% of the MACs, stays as it is"),
        (depthwise, r"1 \(9\d\.\d% of the parameters\): a depthwise convolution has no channels to factor"),
    ],
)
def test_a_budget_that_cannot_be_met_names_its_obstacles(
    make: Callable[[], nn.Module], sentence: str, budget: Budget
) -> None:
    with pytest.raises(ValueError, match=rf"cannot be met: the least that can .*; {sentence}"):
        plan_ranks(make().eval(), X, "svd", budget)


class Frames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.GRU(3, 10, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.memory(x.flatten(2).mT)[0].mean(1)
        return y


def scripted() -> nn.Module:
    module: nn.Module = torch.jit.script(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()))
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Frames, r"nothing can be factored: a pass calls no convolution .*; GRU x 1 \(memory\), 100\.0% of the param"),
        (scripted, "nothing can be factored: .*; the network is a RecursiveScriptModule: compress before scripting"),
        (nn.Flatten, "nothing can be factored: a pass calls no convolution and no Linear$"),
    ],
)
def test_a_network_with_nothing_to_factor_warns_or_raises(make: Callable[[], nn.Module], sentence: str) -> None:
    model = make().eval()
    with pytest.warns(UserWarning, match=sentence):
        plan = plan_ranks(model, X, "svd", Energy())
    assert not plan.layers
    with pytest.raises(ValueError, match=rf"cannot be met: {sentence}"):
        plan_ranks(model, X, "svd", Budget(params=0.5))


def test_a_module_that_holds_running_layers_again_does_not_count_as_never_run() -> None:
    """MONAI's DynUNet holds its layers in lists, and again in a nested module of which it calls only parts."""

    class TwiceHeld(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 32, 3), nn.GRU(32, 8)
            self.nested = nn.ModuleDict({"one": nn.Sequential(self.first), "two": self.second})

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).flatten(2).mT)[0]

    plan = plan_ranks(TwiceHeld().eval(), X, "svd", Fixed(4))
    assert list(plan.factored) == ["first"]
    assert [(group.kind, group.names) for group in plan.untouched] == [("GRU", ("second",))]

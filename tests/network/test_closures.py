"""Functions of a copied network refer to the copy, whatever holds them and however they refer to the network."""

from __future__ import annotations

import functools
import gc
import io
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.compression import compress, load_compressed, save_compressed
from common.network.copies import check_copy, independent_copy
from common.planning import Budget, Fixed, RankPlan, plan_ranks
from common.shrink import shrink
from tests.network.functions import Net, set_forward


class Holder:
    """Holds a network, or a function of it."""

    def __init__(self, held: Any) -> None:
        self.held, self.itself = held, self

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.held(x)
        return found


def method(net: Net) -> None:
    old = net.whole
    set_forward(net, types.MethodType(lambda self, x: old(x), net))


def partial(net: Net) -> None:
    set_forward(net, functools.partial(lambda scale, x: net.whole(x) * scale, 1.0))


def partial_in_a_cell(net: Net) -> None:
    old = functools.partial(net.whole)
    set_forward(net, lambda x: old(x))


def list_in_a_cell(net: Net) -> None:
    stages, head = [net.conv, net.mid], net.head
    set_forward(net, lambda x: head(functools.reduce(lambda h, stage: stage(h).relu(), stages, x).mean((2, 3))))


def list_of_functions(net: Net) -> None:
    net.steps = [lambda x: net.conv(x).relu(), lambda x: net.mid(x).relu(), lambda x: net.head(x.mean((2, 3)))]


def dict_of_functions(net: Net) -> None:
    list_of_functions(net)
    net.steps = dict(enumerate(net.steps))


def tuple_of_functions(net: Net) -> None:
    list_of_functions(net)
    net.steps = tuple(net.steps)


def weak_reference(net: Net) -> None:
    known = weakref.ref(net)
    set_forward(net, lambda x: known().whole(x))  # type: ignore[union-attr]


def weak_proxy(net: Net) -> None:
    known = weakref.proxy(net)
    set_forward(net, lambda x: known.whole(x))


def recursion(net: Net) -> None:
    def run(x: Tensor, depth: int) -> Tensor:
        steps = (lambda: net.conv(x).relu(), lambda: net.mid(x).relu(), lambda: net.head(x.mean((2, 3))))
        return run(steps[depth](), depth + 1) if depth < len(steps) else x

    set_forward(net, lambda x: run(x, 0))


def plain_object(net: Net) -> None:
    holder = Holder(net)
    set_forward(net, lambda x: holder.held.whole(x))


def callable_object(net: Net) -> None:
    set_forward(net, Holder(net.whole))


def decorated(net: Net) -> None:
    set_forward(net, torch.no_grad()(net.whole))


def with_globals(code: str) -> Callable[[Net], None]:
    def install(net: Net) -> None:
        scope: dict[str, Any] = {"net": net, "torch": torch}
        exec(code, scope)
        set_forward(net, scope["forward"])

    return install


GLOBALS = {
    "a global": "forward = lambda x: net.whole(x)",
    "a global in nested code": "forward = lambda x: torch.cat([net.whole(image[None]) for image in x])",
    "a global function": "def run(x):\n    return net.whole(x)\nforward = lambda x: run(x)",
}
WAYS: dict[str, Callable[[Net], None]] = {
    **{
        each.__name__: each
        for each in (
            *(method, partial, partial_in_a_cell, list_in_a_cell, list_of_functions, dict_of_functions),
            *(tuple_of_functions, weak_reference, weak_proxy, recursion, plain_object, callable_object, decorated),
        )
    },
    **{name: with_globals(code) for name, code in GLOBALS.items()},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_runs_its_own_layers(way: str) -> None:
    net, x = Net().eval(), torch.randn(4, 3, 10, 10)
    WAYS[way](net)
    check_copy(net, x)
    with torch.no_grad():
        before = net(x)
        for layer in ("conv", "mid", "head"):
            copied = independent_copy(net)
            torch.testing.assert_close(copied(x), before)
            copied.get_submodule(layer).get_parameter("weight").zero_()
            assert not torch.allclose(copied(x), before)
            assert torch.equal(net(x), before)


def test_functions_that_name_each_other_are_copied_once() -> None:
    net = Net().eval()

    def wrapped(inner: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: inner(x) if x.dim() else inner(x + 0)

    forward: Callable[[Tensor], Tensor] = net.whole
    for _ in range(60):
        forward = wrapped(forward)
    set_forward(net, forward)
    copied = independent_copy(net)
    with torch.no_grad():
        copied.head.weight.zero_()
        copied.head.bias.zero_()
        assert not copied(torch.randn(1, 3, 8, 8)).any()


def test_functions_that_share_a_variable_share_it_in_the_copy() -> None:
    net = nn.ModuleDict({"trunk": nn.Conv2d(3, 8, 3), "dark": nn.Conv2d(8, 4, 1), "bright": nn.Conv2d(8, 4, 1)})

    def install(head: nn.Module) -> None:
        def choose(_: nn.Module, given: tuple[Tensor]) -> None:
            nonlocal head
            head = net["bright" if given[0].mean() > 0 else "dark"]

        def forward(x: Tensor) -> Any:
            found = net["trunk"](x)
            return head(found)

        net["trunk"].register_forward_pre_hook(choose)
        net.__dict__["forward"] = forward

    install(net["dark"])
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(net(x), compress(net, RankPlan({}, "svd", ""))(x))


def test_global_variables_are_read_and_written_as_before() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    scope: dict[str, Any] = {"net": net, "plain": net.forward, "big": torch.zeros(1000)}
    exec(
        "features = None\n"
        "def remember(module, given, output):\n"
        "    global features\n"
        "    features = net[1](output)\n"
        "forward = lambda x: plain(x).mean((2, 3)) + features.mean((2, 3))\n",
        scope,
    )
    net[0].register_forward_hook(scope["remember"])
    net.__dict__["forward"] = scope["forward"]
    net(torch.zeros(2, 3, 8, 8))
    kept, x = scope["features"], torch.rand(2, 3, 8, 8)
    small = compress(net, RankPlan({}, "svd", ""))
    output = small(x)
    assert scope["features"] is kept  # the copy has its own
    assert torch.equal(net(x), output)
    gone = weakref.ref(scope.pop("big"))
    gc.collect()
    assert gone() is None


LEVELS = {"slope": 0.1}


def leaky(x: Tensor) -> Tensor:
    return nn.functional.leaky_relu(x, LEVELS["slope"])


class Configured(nn.Module):
    """Holds a function of its file, and the configuration that this reads."""

    def __init__(self) -> None:
        super().__init__()
        self.levels, self.activation = LEVELS, leaky
        self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.activation(self.conv(x)))
        return found


def test_a_function_that_reads_a_shared_configuration_stays_as_it_is() -> None:
    net = Configured().eval()
    small = compress(net, plan_ranks(net, torch.rand(1, 3, 8, 8), "svd", Fixed(2)))
    assert isinstance(small, Configured)
    assert small.activation is leaky
    torch.save(small, io.BytesIO())  # pickle finds functions by their names


class ResetsItsHead(nn.Module):
    """A hook resets the head before a state is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.register_load_state_dict_pre_hook(lambda module, *_: self.head.weight.data.zero_())

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.conv(x).mean((2, 3)))
        return found


def test_loading_leaves_the_network_alone_whatever_its_hooks_do(tmp_path: Any) -> None:
    net = ResetsItsHead()
    path = save_compressed(net, tmp_path / "net.safetensors")
    before = net.head.weight.clone()
    load_compressed(path, net)
    assert torch.equal(before, net.head.weight)


class Slot:
    __slots__ = ("net",)


def test_a_copy_that_cannot_run_on_its_own_is_refused_before_any_work() -> None:
    net, slot = Net().eval(), Slot()
    slot.net = net  # type: ignore[attr-defined]
    set_forward(net, lambda x: slot.net.whole(x))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="a copy of the network runs module 'conv' of the network itself"):
        shrink(net, [torch.randn(16, 3, 10, 10)], Budget(params=0.5))


def test_a_layer_that_a_function_names_stays_dense() -> None:
    net = Net().eval()
    scope: dict[str, Any] = {"mid": net.mid}
    exec("def hook(*_):\n    mid.training", scope)
    net.conv.register_forward_hook(scope["hook"])
    plan = plan_ranks(net, torch.randn(2, 3, 10, 10), "svd", Fixed(1))
    assert "a function also refers to it" in plan.skipped["mid"]
    assert "conv" in plan.factored


@pytest.mark.parametrize("closure_first", [True, False])
def test_a_list_that_a_function_shares_is_changed_in_place(closure_first: bool) -> None:
    class Ordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            order: list[nn.Module] = []
            if closure_first:
                self.last = lambda x: order[-1](x)
            self.order = order
            if not closure_first:
                self.last = lambda x: order[-1](x)
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
            order += [self.a, self.b]

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.last(self.order[0](x))
            return found

    net, x = Ordered().eval(), torch.randn(2, 3, 10, 10)
    plan = plan_ranks(net, x, "svd", Fixed(1))
    assert {"a", "b"} <= set(plan.factored)
    small = compress(net, plan)
    calls: list[str] = []
    small.get_submodule("b").register_forward_hook(lambda *_: calls.append("b"))
    small(x)
    assert calls == ["b"]

"""Functions of a copied network refer to the copy, whatever holds them and however they refer to the network."""

from __future__ import annotations

import copy
import functools
import gc
import io
import logging
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.compression import compress, load_compressed, save_compressed
from common.network.copies import check_copy, independent_copy
from common.planning import Budget, Fixed, RankPlan, plan_ranks
from common.shrink import shrink


class Net(nn.Module):
    """Two convolutions and a head. What is set as ``steps`` runs in place of the forward."""

    steps: Any = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.mid, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def whole(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.mid(self.conv(x).relu()).relu().mean((2, 3)))
        return found

    def forward(self, x: Tensor) -> Tensor:
        if self.steps is None:
            return self.whole(x)
        for step in self.steps.values() if isinstance(self.steps, dict) else self.steps:
            x = step(x)
        return x


class Holder:
    """Holds a network, or a function of it."""

    def __init__(self, held: Any) -> None:
        self.held, self.itself = held, self

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.held(x)
        return found


def set_forward(net: Net, forward: Callable[[Tensor], Tensor]) -> None:
    net.__dict__["forward"] = forward


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


class Recorder:
    """Records values."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def note(self) -> None:
        self.seen.append(1)


def test_hooks_record_in_what_the_copy_holds() -> None:
    net = Net()
    recorder, store, kept = Recorder(), [], OrderedDict[str, int]()  # type: ignore[var-annotated]
    vars(net).update(recorder=recorder, store=store, kept=kept)
    note = recorder.note
    net.conv.register_forward_hook(lambda *_: note())

    def by_default(*_: Any, store: list[int] = store) -> None:
        store.append(1)

    net.mid.register_forward_hook(by_default)
    net.head.register_forward_hook(functools.partial(lambda kept, *_: kept.update(a=1), kept))
    copied = independent_copy(net)
    copied(torch.randn(1, 3, 8, 8))
    assert (recorder.seen, store, kept) == ([], [], {})
    found = vars(copied)
    assert (found["recorder"].seen, found["store"], found["kept"]) == ([1], [1], {"a": 1})


def test_a_hook_that_removes_itself_does_so_in_the_copy() -> None:
    net = Net()

    def install(layer: nn.Module) -> None:
        def once(*_: Any) -> None:
            handle.remove()

        handle = layer.register_forward_hook(once)

    install(net.conv)
    copied = independent_copy(net)
    copied(torch.randn(1, 3, 8, 8))
    assert (len(net.conv._forward_hooks), len(copied.conv._forward_hooks)) == (1, 0)


class OnlyOne:
    """A singleton."""

    one: OnlyOne | None = None
    run: Any = None

    def __new__(cls) -> OnlyOne:
        cls.one = cls.one or super().__new__(cls)
        return cls.one


class Closes:
    """Frees something at its end."""

    def __init__(self, net: nn.Module, closed: list[bool]) -> None:
        self.net, self.closed = net, closed

    def __del__(self) -> None:
        self.closed.append(True)


def test_objects_outside_the_network_stay_as_they_are() -> None:
    net, x, only = Net().eval(), torch.randn(2, 3, 8, 8), OnlyOne()
    only.run, logger, closed = net.whole, logging.getLogger("a network"), list[bool]()
    vars(logger)["net"] = net
    holder = Closes(net, closed)
    net.conv.register_forward_hook(lambda *_: logger.debug("%s", holder.net))

    @functools.wraps(net.whole)
    def forward(self: nn.Module, x: Tensor) -> Any:
        return forward.__wrapped__(x)

    set_forward(net, types.MethodType(forward, net))
    net.mid.register_forward_hook(lambda *_: only.run and None)
    with torch.no_grad():
        before = net(x)
        copied = independent_copy(net)
        for parameter in copied.parameters():
            parameter.zero_()
        assert torch.equal(net(x), before)
        assert not copied(x).any()
    gone = weakref.ref(copied)
    del copied
    gc.collect()
    assert gone() is None
    assert not closed
    assert only.run.__self__ is vars(logger)["net"] is holder.net is net


def test_a_part_of_the_network_under_a_new_module_belongs_to_the_copy() -> None:
    net = nn.ModuleDict({"a": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8), "head": nn.Linear(8, 5)})
    body = nn.Sequential(net["a"], net["norm"])
    steps = OrderedDict(body=body, head=net["head"])
    net.__dict__["forward"] = lambda x: steps["head"](steps["body"](x).mean((2, 3)))
    check_copy(net, torch.randn(4, 3, 8, 8))
    before = copy.deepcopy(net.state_dict())
    independent_copy(net).train()(torch.randn(4, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_weak_methods_and_attributes_of_partial_functions_survive() -> None:
    net, x = Net().eval(), torch.randn(1, 3, 8, 8)
    known = weakref.WeakMethod(net.whole)
    scaled = functools.partial(lambda scale, x: known()(x) * scale, 2.0)  # type: ignore[misc]
    scaled.bias = 1.0  # type: ignore[attr-defined]
    set_forward(net, lambda x: scaled(x) + scaled.bias)  # type: ignore[attr-defined]
    check_copy(net, x)
    torch.testing.assert_close(independent_copy(net)(x), net(x))


class SharedByAll(nn.Sequential):
    """Frozen, and shared by all copies on purpose."""

    def __deepcopy__(self, memo: Any) -> SharedByAll:
        return self


def test_a_module_that_all_copies_share_stays_as_it_is() -> None:
    net = nn.Sequential(SharedByAll(nn.Conv2d(3, 16, 3), nn.ReLU()), nn.Conv2d(16, 16, 3)).eval()
    x = torch.rand(2, 3, 9, 9)
    plan = plan_ranks(net, x, "svd", Fixed(2))
    assert plan.skipped["0.0"] == "a __deepcopy__ lets all copies of the network share it"
    before = net(x)
    assert not torch.equal(compress(net, plan)(x), before)
    assert torch.equal(net(x), before)


def test_an_optimizer_or_a_list_of_parameters_keeps_no_layer_dense() -> None:
    net = Net().eval()
    vars(net)["optimizer"] = torch.optim.SGD(net.parameters(), 0.1, foreach=False)
    vars(net)["decayed"] = list(net.parameters())
    assert {"conv", "mid"} <= set(plan_ranks(net, torch.randn(2, 3, 10, 10), "svd", Fixed(1)).factored)

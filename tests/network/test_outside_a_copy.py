"""Copying a network changes nothing outside the copy, whatever its functions refer to."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import types
import weakref
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.compression import compress
from common.network.copies import check_copy, independent_copy
from common.planning import Fixed, plan_ranks
from tests.network.functions import Net, set_forward


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


def test_references_to_what_is_gone_do_no_harm() -> None:
    net, gone = Net().eval(), nn.Linear(2, 2)
    proxy, known = weakref.proxy(gone), weakref.ref(gone)
    del gone
    gc.collect()
    set_forward(net, lambda x: net.whole(x) if known() is None else proxy(x))
    x = torch.randn(2, 3, 10, 10)
    check_copy(net, x)
    assert {"conv", "mid"} <= set(plan_ranks(net, x, "svd", Fixed(1)).factored)


def test_a_weak_reference_to_something_outside_stays_alive() -> None:
    class Holder:
        def __init__(self, net: Net) -> None:
            self.net = net

    net = Net().eval()
    holder = Holder(net)
    known = weakref.ref(holder)
    set_forward(net, lambda x: known().net.whole(x))  # type: ignore[union-attr]
    x = torch.randn(2, 3, 10, 10)
    torch.testing.assert_close(independent_copy(net)(x), net(x))
    with pytest.raises(ValueError, match="runs module 'conv' of the network itself"):
        check_copy(net, x)


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

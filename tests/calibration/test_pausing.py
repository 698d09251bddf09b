"""A pass that waits before each call of some layers."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from common.calibration.pausing import PausedPass


class Chain(nn.Module):
    """Three layers, of which the first runs again at the end."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        if self.fails:
            try:
                return self.c(self.b(self.a(x))) + torch.zeros(5)
            except Exception as error:
                raise KeyError("no such thing") from error
        return self.a(self.c(self.b(self.a(x))))


def layers(model: Chain) -> dict[str, nn.Module]:
    return {"a": model.a, "c": model.c}


def test_it_stops_before_each_call_and_goes_on_with_todays_weights() -> None:
    torch.manual_seed(0)
    model, x = Chain().eval(), torch.randn(3, 4)
    with PausedPass(model, x, layers(model)) as this:
        assert this.waiting is None
        first = this.advance()
        assert first == this.waiting
        nn.init.constant_(model.a.weight, 0.5)
        second = this.advance()
        nn.init.constant_(model.c.weight, 2.0)
        third = this.advance()
        found = [(each.name, each.given[0]) for each in (first, second, third) if each]
        with torch.no_grad():
            after_b = model.b(model.a(x))
            wanted = [("a", x), ("c", after_b), ("a", model.c(after_b))]
        assert [name for name, _ in found] == [name for name, _ in wanted]
        assert all(torch.equal(one, other) for (_, one), (_, other) in zip(found, wanted, strict=True))
        assert [this.advance(), this.advance(), this.waiting] == [None] * 3
    assert not model.a._forward_pre_hooks


def test_other_passes_are_not_stopped() -> None:
    model, x = Chain().eval(), torch.randn(1, 4)
    with torch.no_grad(), PausedPass(model, x, layers(model)) as this:
        this.advance()
        model(x)
        assert this.waiting is not None
    assert not model.a._forward_pre_hooks


def test_a_pass_that_is_given_up_leaves_no_thread_and_no_hook() -> None:
    model, before = Chain(fails=True).eval(), threading.active_count()
    with PausedPass(model, torch.randn(3, 4), layers(model)) as this:
        this.advance()
        assert threading.active_count() == before + 1
    with PausedPass(model, torch.randn(3, 4), layers(model)):
        pass
    assert threading.active_count() == before
    assert not model.a._forward_pre_hooks


def test_errors_of_the_network_reach_the_caller() -> None:
    model = Chain(fails=True).eval()
    with PausedPass(model, torch.randn(3, 4), layers(model)) as this:
        assert this.advance()
        assert this.advance()
        with pytest.raises(KeyError, match="no such thing"):
            this.advance()


class Stubborn(Chain):
    """A network that catches everything and tries another way."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.c(self.a(x))
        except BaseException:
            return self.c(x)


def test_a_network_that_catches_everything_ends_too() -> None:
    model, before = Stubborn().eval(), threading.active_count()
    with PausedPass(model, torch.randn(1, 4), layers(model)) as this:
        this.advance()
    assert threading.active_count() == before
    assert not model.a._forward_pre_hooks

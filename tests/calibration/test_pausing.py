"""A pass that waits before each call of some layers."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from common.calibration import paired, refit
from common.calibration.pausing import PausedPass
from common.compression import compress
from common.planning import Fixed, plan_ranks
from tests.calibration.test_refit import NETWORKS, images, network
from tests.networks import same_weights


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


def test_other_passes_are_not_stopped_and_several_wait_at_once() -> None:
    model = Chain().eval()
    with torch.no_grad():
        wanted = [model(torch.full((1, 4), float(i))) for i in range(3)]
    passes = [PausedPass(model, torch.full((1, 4), float(i)), layers(model)) for i in range(3)]
    with passes[0], passes[1], passes[2], torch.no_grad():
        for this in passes:
            this.advance()
        assert torch.equal(model(torch.full((1, 4), 2.0)), wanted[2])
        inputs = [this.waiting.given[0][0, 0].item() for this in passes if this.waiting]
        assert inputs == [0, 1, 2]
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


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("waiting", [0, 20_000])
def test_refit_is_the_same_however_many_passes_wait(kind: str, waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, batches = network(kind), list(images(96).split(32))
    plan = plan_ranks(dense, batches[0], "tucker2", Fixed(0.4))
    runs: Counter[int] = Counter()
    found = []
    for limit in (waiting, 2**30):
        small = compress(dense, plan)
        handle = small.register_forward_pre_hook(lambda *_, limit=limit: runs.update([limit]))
        monkeypatch.setattr(paired, "MOST_WAITING", limit)
        errors = refit(small, dense, batches)
        handle.remove()
        found.append((small, errors))
    assert same_weights(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert runs[2**30] < runs[waiting]
    repeated = 2 if kind == "called twice" else 1  # a layer that runs twice takes a new pass of each batch
    assert runs[2**30] == repeated * len(batches)

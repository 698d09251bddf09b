"""Refitting in one pass that waits gives what refitting in a pass for each layer gives, whatever the network does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from common.calibration import refit, waiting
from common.calibration.paired import DenseOutputs, paired_layers
from common.compression import compress
from common.planning import Fixed, plan_ranks
from tests.calibration.test_refit import NETWORKS, images


class SkipOnModule(nn.Module):
    """A U-Net that stores its skip connection on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, padding=1)
        self.up, self.mix = nn.ConvTranspose2d(12, 12, 2, 2), nn.Conv2d(15, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.skip = x
        y = self.up(torch.relu(self.inner(torch.relu(self.down(x)))))
        return self.head(torch.relu(self.mix(torch.cat([y, self.skip], 1))))


class EarlyRead(SkipOnModule):
    """It reads a bias before that layer is fitted, and uses it afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        early = [each.clone() for each in self.mix.parameters()][-1]
        y = self.up(torch.relu(self.inner(torch.relu(self.down(x)))))
        y = torch.relu(self.mix(torch.cat([y, x], 1)) + 5 * early[:, None, None])
        return self.head(y)


class OneSize(SkipOnModule):
    """It takes batches of 32 images only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(32, 3, 8, 8))


class Locked(SkipOnModule):
    """It holds a lock of the whole process while it runs, and changes a setting."""

    lock, setting = threading.Lock(), 0

    def forward(self, x: Tensor) -> Tensor:
        with Locked.lock:
            before, Locked.setting = Locked.setting, 1
            try:
                return super().forward(x)
            finally:
                Locked.setting = before


class Mixing(SkipOnModule):
    """Its outputs depend on the other images of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True) + x.flip(0))


STRANGE: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "skip on module": (SkipOnModule, True),
    "locked": (Locked, True),
    "early read": (EarlyRead, False),
    "one size": (OneSize, False),
    "mixing": (Mixing, False),
    **{kind: (make, kind != "called twice") for kind, make in NETWORKS.items()},
}
"""Name -> how to make it, and whether one waiting pass serves it."""


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("method", ["tucker2", "svd"])
def test_the_result_is_that_of_a_pass_for_each_layer(kind: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    make, waits = STRANGE[kind]
    dense, batches = make().eval(), list(images(96).split(32))
    plan = plan_ranks(dense, batches[0], method, Fixed(0.4))
    passes: list[int] = []
    found = []
    for limit in (0, 2**30):
        monkeypatch.setattr(waiting, "MOST_HELD", limit)
        small = compress(dense, plan)
        runs = 0

        def count(*_: object) -> None:
            nonlocal runs
            runs += 1

        handle = small.register_forward_pre_hook(count)
        errors = refit(small, dense, batches)
        handle.remove()
        passes.append(runs)
        found.append((small, errors))
    (one, errors), (other, found_errors) = found
    assert errors.keys() == found_errors.keys()
    for name, error in errors.items():
        assert found_errors[name].before == pytest.approx(error.before, rel=1e-2, abs=1e-6), name
        assert found_errors[name].after == pytest.approx(error.after, rel=1e-2, abs=1e-6), name
    x = images(32, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x), rtol=1e-2, atol=1e-2)
    if waits:  # one pass, and one for each batch to compare the last layer
        assert passes[1] == 1 + len(batches) < passes[0]
    else:
        assert passes[1] >= passes[0]
    assert (Locked.setting, Locked.lock.locked()) == (0, False)
    assert all(not module._forward_pre_hooks for module in other.modules())


def test_memory_is_counted_by_what_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Collecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(8))

        def forward(self, x: Tensor) -> Tensor:
            kept = [x]
            for layer in self.layers:
                kept.append(layer(kept[-1]))
            return torch.stack(kept).sum(0)

    dense, batches = Collecting().eval(), list(torch.randn(16, 4, 8, 8).split(8))
    layers = paired_layers(dense, dense)
    recorded = DenseOutputs(layers)
    with torch.no_grad():
        recorded.record(dense, batches)
    image = 4 * 8 * 8 * 4
    assert 8 * image <= recorded.held <= 10 * image
    monkeypatch.setattr(waiting, "MOST_HELD", 100 * image)
    assert not waiting.can_wait(recorded, layers, batches)
    monkeypatch.setattr(waiting, "MOST_HELD", 200 * image)
    assert waiting.can_wait(recorded, layers, batches)
    assert not waiting.can_wait(recorded, layers, [batches[0], batches[1][:, :, :4]])
    with torch.autocast("cpu", torch.bfloat16):
        assert not waiting.can_wait(recorded, layers, batches)

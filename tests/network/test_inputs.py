from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.calibration import calibrate, recalibrate_bn
from common.compression import compress
from common.models import build_model
from common.network.inputs import to_network
from common.planning import Fixed, plan_ranks
from common.training import evaluate

CHANNELS_LAST = torch.channels_last


@pytest.fixture(scope="module")
def ours() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet20", 10).eval()


class Flattening(nn.Module):
    """A user's network whose ``view`` requires channels-first inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.head(x.view(len(x), -1))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 3), (2, 3, 4, 5, 6)])
def test_moving_inputs_keeps_their_values(shape: tuple[int, ...], ours: nn.Module) -> None:
    inputs = torch.rand(shape)
    moved = to_network(inputs, ours)
    assert torch.equal(moved, inputs)
    assert moved.dim() != 4 or moved.is_contiguous(memory_format=CHANNELS_LAST)


def test_networks_of_the_suite_get_channels_last_inputs_and_give_the_same_outputs(ours: nn.Module) -> None:
    inputs, targets = torch.rand(8, 3, 32, 32), torch.randint(10, (8,))
    plan = plan_ranks(ours, inputs[:1], "svd", Fixed(0.5))
    for network in (ours, compress(ours, plan).eval()):
        with torch.no_grad():
            loss = nn.functional.cross_entropy(network(inputs), targets)
        seen: list[bool] = []
        handle = network.register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append(given[0].is_contiguous(memory_format=CHANNELS_LAST))
        )
        assert evaluate(network, [(inputs, targets)])["loss"] == pytest.approx(float(loss), rel=1e-5)
        recalibrate_bn(network, [inputs])
        handle.remove()
        assert seen == [True, True]


def test_other_networks_get_their_inputs_unchanged() -> None:
    network = Flattening()
    inputs, targets = torch.rand(4, 3, 8, 8), torch.randint(10, (4,))
    assert to_network(inputs, network).is_contiguous()
    assert 0 <= evaluate(network, [(inputs, targets)])["accuracy"] <= 1
    assert recalibrate_bn(network, [inputs]) == 1
    assert calibrate(network, [torch.rand(32, 3, 8, 8)]).keys() == {"conv", "head"}

from __future__ import annotations

import pytest
import torch

from common.inputs import to_network
from common.metrics import evaluate
from common.models import build_model


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 3), (2, 3, 4, 5, 6)])
def test_inputs_keep_their_values(shape: tuple[int, ...]) -> None:
    inputs = torch.rand(shape)
    moved = to_network(inputs, torch.device("cpu"))
    assert torch.equal(moved, inputs)
    assert moved.is_contiguous(memory_format=torch.channels_last) == (len(shape) == 4)


def test_networks_say_the_same_with_channels_last() -> None:
    torch.manual_seed(0)
    model = build_model("resnet20", 10).eval()
    inputs, targets = torch.rand(8, 3, 32, 32), torch.randint(10, (8,))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
    assert evaluate(model, [(inputs, targets)])["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert all(p.is_contiguous() for p in model.parameters())  # the network is left as it was

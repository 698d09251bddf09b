"""Tests of the moving average of the weights."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from torch import nn

from common.training import TrainingSettings, train
from common.training.averaging import averaged_model
from tests.networks import same_weights, tiny_cnn, tiny_digits
from tests.training.test_training import train_and_continue


def test_the_average_is_that_of_the_formula() -> None:
    model = nn.BatchNorm1d(1).requires_grad_(False)
    mean, count = model.get_buffer("running_mean"), model.get_buffer("num_batches_tracked")
    average = averaged_model(model, 0.9)
    expected = 0.0
    for step, value in enumerate([4.0, 1.0, -2.0, 0.5] * 30):
        nn.init.constant_(model.weight, value)
        mean.fill_(value)
        count.fill_(step)
        average.update_parameters(model)
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0
        expected = decay * expected + (1 - decay) * value
        assert float(average.module.get_parameter("weight")) == pytest.approx(expected, abs=1e-5)
    assert float(average.module.get_buffer("running_mean")) == pytest.approx(expected, abs=1e-5)
    assert int(average.module.get_buffer("num_batches_tracked")) == 119
    assert float(model.weight) == 0.5


def test_training_returns_the_average() -> None:
    networks = {ema: tiny_cnn() for ema in (0.0, 1e-9, 0.99)}
    for ema, network in networks.items():
        train(network, tiny_digits(), TrainingSettings(epochs=2.0, amp="off", recalibrate=False, ema=ema))
    plain, latest, averaged = networks.values()
    assert not same_weights(plain, averaged)
    for one, other in zip(plain.parameters(), latest.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_an_interrupted_training_continues_with_its_average(tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=3.0, amp="off", ema=0.9)
    train_and_continue(tiny_cnn, tiny_digits, settings, tmp_path / "run.checkpoint")


def test_a_network_that_deepcopy_refuses_has_an_average_too() -> None:
    model = tiny_cnn()
    model.settings = MappingProxyType({"width": 8})  # type: ignore[assignment]
    train(model, tiny_digits(64), TrainingSettings(epochs=1.0, amp="off", ema=0.9))


@pytest.mark.parametrize("ema", [-0.1, 1.0, 2.0])
def test_a_decay_out_of_range_is_refused(ema: float) -> None:
    with pytest.raises(ValueError, match="ema"):
        TrainingSettings(ema=ema)

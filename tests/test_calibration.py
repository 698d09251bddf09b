from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from common.calibration import calibrate, recalibrate_bn
from tests.networks import tiny_cnn


def test_statistics_are_those_of_the_batches() -> None:
    norm = nn.BatchNorm2d(3)
    nn.init.constant_(norm.get_buffer("running_mean"), 9.0)
    batches = [torch.randn(8, 3, 4, 4) * 2 + 1 for _ in range(5)]
    assert recalibrate_bn(norm.eval(), batches) == 1
    torch.testing.assert_close(
        norm.get_buffer("running_mean"), torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    )
    variances = torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches]).mean(0)
    torch.testing.assert_close(norm.get_buffer("running_var"), variances)
    assert norm.momentum == 0.1
    assert not norm.training


def test_only_statistics_change_and_targets_are_not_read() -> None:
    model = tiny_cnn()
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    x = torch.randn(6, 3, 12, 12)
    assert recalibrate_bn(model, [(x, torch.empty(0))]) == 2
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    conv, norm = model.stem.get_submodule("0"), model.stem.get_submodule("1")
    torch.testing.assert_close(norm.get_buffer("running_mean"), conv(x).mean((0, 2, 3)).detach())


def test_it_undoes_a_shift_of_the_activations() -> None:
    model = tiny_cnn()
    x = torch.randn(32, 3, 12, 12)
    recalibrate_bn(model, [x])
    with torch.no_grad():
        expected = model(x)
        model.stem.get_parameter("0.weight").mul_(3)
        assert not torch.allclose(model(x), expected, rtol=0.01)
        recalibrate_bn(model, [x])
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)


def test_max_batches_and_networks_without_batchnorm() -> None:
    norm = nn.BatchNorm1d(2)
    recalibrate_bn(norm, [torch.ones(2, 2), torch.full((2, 2), 100.0)], max_batches=1)
    assert norm.get_buffer("running_mean").tolist() == [1, 1]
    assert recalibrate_bn(nn.Linear(2, 2), [torch.ones(2, 2)]) == 0
    with pytest.raises(ValueError, match="no batch"):
        recalibrate_bn(nn.BatchNorm1d(2), [])


class TwoHeads(nn.Module):
    """The second head is one that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.auxiliary = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        nn.init.constant_(self.auxiliary.get_buffer("running_var"), 7.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)


def test_a_head_that_no_batch_passes_keeps_its_statistics() -> None:
    model = TwoHeads()
    assert recalibrate_bn(model, [torch.randn(4, 3, 5, 5)]) == 1
    assert model.auxiliary.get_buffer("running_var").tolist() == [7.0] * 3


@pytest.mark.parametrize("batches", [[], [torch.randn(4, 3, 5, 5), torch.randn(4, 2, 5, 5)]])
def test_after_an_error_the_statistics_are_those_before(batches: list[torch.Tensor]) -> None:
    model = TwoHeads()
    recalibrate_bn(model, [torch.randn(4, 3, 5, 5) * 3])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises((ValueError, RuntimeError)):
        recalibrate_bn(model, iter(batches))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_statistics_of_what_is_not_finite_are_refused_and_undone(value: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    bad = torch.randn(4, 3, 5, 5)
    bad[0, 0, 0, 0] = value
    with pytest.raises(
        FloatingPointError, match=r"^BatchNorm '1': its inputs on the calibration data are not finite$"
    ):
        recalibrate_bn(model, [torch.randn(4, 3, 5, 5), bad])
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_bad_calibration_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"^positions=0: it must be at least 1$"):
        calibrate(model, [torch.randn(2, 3, 5, 5)], positions=0)
    with pytest.raises(ValueError, match=r"^layer '0': its inputs or outputs on the calibration data are not finite$"):
        calibrate(model, [torch.full((2, 3, 5, 5), torch.nan)])


def test_batches_of_plain_loaders_serve_and_others_are_named() -> None:
    model, dataset = tiny_cnn(), TensorDataset(torch.randn(6, 3, 8, 8), torch.arange(6))
    assert calibrate(model, DataLoader(dataset, batch_size=3)).keys() == calibrate(model, [dataset.tensors[0]]).keys()
    assert recalibrate_bn(model, DataLoader(dataset, batch_size=3)) == 2
    for call in (calibrate, recalibrate_bn):
        with pytest.raises(ValueError, match=r"a tensor of inputs or a pair .* it is a dict \(keys image, label\)"):
            call(model, [{"image": dataset.tensors[0], "label": dataset.tensors[1]}])  # type: ignore[list-item]
        with pytest.raises(ValueError, match=r"it is a list \(of length 0\)"):
            call(model, [[]])  # type: ignore[list-item]

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from common.calibration import calibrate, recalibrate_bn
from common.calibration.moments import HELD_OUT, held_out_images
from common.decomposition import LayerMoments
from tests.networks import tiny_cnn


def test_recalibration_averages_the_statistics_of_the_batches() -> None:
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


def test_recalibration_changes_statistics_only_and_reads_no_targets() -> None:
    model = tiny_cnn()
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    x = torch.randn(6, 3, 12, 12)
    assert recalibrate_bn(model, [(x, torch.empty(0))]) == 2
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    conv, norm = model.stem.get_submodule("0"), model.stem.get_submodule("1")
    torch.testing.assert_close(norm.get_buffer("running_mean"), conv(x).mean((0, 2, 3)).detach())


def test_recalibration_corrects_a_shift_of_the_activations() -> None:
    model = tiny_cnn()
    x = torch.randn(32, 3, 12, 12)
    recalibrate_bn(model, [x])
    with torch.no_grad():
        expected = model(x)
        model.stem.get_parameter("0.weight").mul_(3)
        assert not torch.allclose(model(x), expected, rtol=0.01)
        recalibrate_bn(model, [x])
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)


def test_recalibration_handles_limits_empty_data_and_networks_without_batchnorm() -> None:
    norm = nn.BatchNorm1d(2)
    recalibrate_bn(norm, [torch.ones(2, 2), torch.full((2, 2), 100.0)], max_batches=1)
    assert norm.get_buffer("running_mean").tolist() == [1, 1]
    assert recalibrate_bn(nn.Linear(2, 2), [torch.ones(2, 2)]) == 0
    with pytest.raises(ValueError, match="no batch"):
        recalibrate_bn(nn.BatchNorm1d(2), [])


class TwoHeads(nn.Module):
    """A network whose second head runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.auxiliary = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        nn.init.constant_(self.auxiliary.get_buffer("running_var"), 7.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)


def test_a_head_that_no_batch_reaches_keeps_its_statistics() -> None:
    model = TwoHeads()
    assert recalibrate_bn(model, [torch.randn(4, 3, 5, 5)]) == 1
    assert model.auxiliary.get_buffer("running_var").tolist() == [7.0] * 3


@pytest.mark.parametrize("batches", [[], [torch.randn(4, 3, 5, 5), torch.randn(4, 2, 5, 5)]])
def test_an_error_restores_the_statistics(batches: list[torch.Tensor]) -> None:
    model = TwoHeads()
    recalibrate_bn(model, [torch.randn(4, 3, 5, 5) * 3])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises((ValueError, RuntimeError)):
        recalibrate_bn(model, iter(batches))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_inputs_that_are_not_finite_are_refused_and_change_nothing(value: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    bad = torch.randn(4, 3, 5, 5)
    bad[0, 0, 0, 0] = value
    with pytest.raises(
        FloatingPointError, match=r"^BatchNorm '1': its inputs on the calibration data are not finite$"
    ):
        recalibrate_bn(model, [torch.randn(4, 3, 5, 5), bad])
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_bad_calibration_arguments_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"^positions=0: it must be a whole number of at least 1$"):
        calibrate(model, [torch.randn(2, 3, 5, 5)], positions=0)
    with pytest.raises(ValueError, match=r"^layer '0': its inputs or outputs on the calibration data are not finite$"):
        calibrate(model, [torch.full((2, 3, 5, 5), torch.nan)])


def test_plain_loaders_work_and_other_batches_are_refused() -> None:
    model, dataset = tiny_cnn(), TensorDataset(torch.randn(96, 3, 8, 8), torch.arange(96))
    assert calibrate(model, DataLoader(dataset, batch_size=48)).keys() == calibrate(model, [dataset.tensors[0]]).keys()
    assert recalibrate_bn(model, DataLoader(dataset, batch_size=48)) == 2
    for call in (calibrate, recalibrate_bn):
        with pytest.raises(ValueError, match=r"a tensor of inputs or a pair .* it is a dict \(keys image, label\)"):
            call(model, [{"image": dataset.tensors[0], "label": dataset.tensors[1]}])  # type: ignore[list-item]
        with pytest.raises(ValueError, match=r"but it is a list \(of length 0\)"):
            call(model, [[]])  # type: ignore[list-item]


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2, 2)).eval()


def same_moments(one: LayerMoments, other: LayerMoments) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("output_covariance", "patch_mean", "held_out")]
    return one.patches == other.patches and all(
        a.shape == b.shape and torch.allclose(a.sum((0, -1)), b.sum((0, -1)), rtol=1e-4, atol=1e-4) for a, b in pairs
    )


@pytest.mark.parametrize("sizes", [[20], [1] * 20, [7, 13], [16, 3, 1]])
def test_the_same_images_are_held_out_for_any_batch_size(sizes: list[int]) -> None:
    x = torch.randn(20, 3, 4, 4)
    whole = calibrate(layers(), [x], positions=10_000)
    for name, found in calibrate(layers(), x.split(sizes), positions=10_000).items():
        assert same_moments(found, whole[name])
    held_out = torch.cat([held_out_images(sum(sizes[:i]), size) for i, size in enumerate(sizes)])
    assert held_out.nonzero()[:, 0].tolist() == [1, 3, 5, 7, 9, 11, 13, 15]


@pytest.mark.parametrize(("images", "expected"), [(1, 0), (2, 1), (16, 8), (24, 9), (1616, 208)])
def test_half_of_few_images_and_an_eighth_of_many_are_held_out(images: int, expected: int) -> None:
    assert int(held_out_images(0, images).sum()) == expected


def test_held_out_patches_are_limited_and_come_from_every_batch() -> None:
    batches = [torch.full((32, 3, 6, 6), float(index)) + torch.rand(32, 3, 6, 6) for index in range(10)]
    moments = calibrate(layers(), batches)
    held_out = moments["0"].held_out
    assert held_out is not None
    assert held_out.shape == (HELD_OUT, 3, 3, 3)
    counts = torch.bincount(held_out[:, 0, 1, 1].long(), minlength=10)
    assert counts.min() > 0.5 * HELD_OUT / 10
    assert counts[1:].max() < 1.5 * HELD_OUT / 10
    assert moments["2"].held_out is not None
    assert moments["2"].held_out.shape == (HELD_OUT, 4, 2, 2)


def test_repeated_patches_are_counted_once() -> None:
    """Cases: a blank background around different patches, identical images, blank images."""
    drawn = torch.zeros(64, 3, 20, 20)
    drawn[:, :, 8:12, 8:12] = torch.rand(64, 3, 4, 4)
    seen = int((~held_out_images(0, 64)).sum()) * 20 * 20
    count = calibrate(layers(), [drawn], positions=100_000)["0"].patches
    assert count == pytest.approx(seen * 36 / 400, rel=0.2)  # 6 x 6 patches touch the 4 x 4 pixels
    repeated = calibrate(layers(), [torch.rand(1, 3, 4, 4).expand(64, 3, 4, 4).contiguous()])["0"].patches
    assert repeated == 16
    with pytest.warns(UserWarning, match="'0' \\(1 of 4 different patches"):
        assert calibrate(layers(), [torch.zeros(64, 3, 1, 1)])["0"].patches == 1


@pytest.mark.parametrize("image", [0, 1])
def test_values_that_are_not_finite_are_refused_in_held_out_images_too(image: int) -> None:
    x = torch.randn(32, 3, 4, 4)
    x[image, 0, 2, 2] = torch.inf
    with pytest.raises(ValueError, match=r"^layer '0': its inputs or outputs on the calibration data are not finite$"):
        calibrate(layers(), [x])


class Pooled(nn.Module):
    """One Linear sees one row for the whole batch, the other many rows for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.tokens = nn.Linear(4, 4), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.tokens(x.flatten(2).mT + self.context(x.mean((0, 2, 3))[None]))
        return y


def test_rows_that_are_not_images_are_held_out_by_their_own_count() -> None:
    torch.manual_seed(0)
    moments = calibrate(Pooled(), [torch.randn(4, 4, 3, 3) for _ in range(40)])
    assert (moments["context"].patches, len(moments["context"].held_out)) == (29, 11)  # type: ignore[arg-type]
    tokens = int((~held_out_images(0, 160)).sum()) * 9
    assert (moments["tokens"].patches, len(moments["tokens"].held_out)) == (tokens, 234)  # type: ignore[arg-type]

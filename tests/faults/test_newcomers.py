"""Networks and data of newcomers that were refused, miscounted or silently judged by the wrong values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.calibration import calibrate
from common.calibration.divergence import divergence_for, outputs_on, squared_error
from common.compression import compress
from common.data import DataBundle
from common.deploy import export_onnx
from common.network import profile
from common.network.passes import example_batch
from common.planning import Budget, Fixed, plan_ranks
from common.shrink import shrink

BATCHES = [torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class Spectrogram(nn.Module):
    """Classify signals ``(N, 1, L)`` by their spectrograms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 32, 3, 2), nn.Conv2d(32, 64, 3, 2)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        window = torch.hann_window(32)
        images = torch.stft(x.reshape(-1, x.shape[-1]), 32, 16, window=window, return_complex=True).abs()[:, None]
        return self.head(F.relu(self.second(F.relu(self.first(images)))).mean((2, 3)))


class Electrodes(nn.Module):
    """Classify signals ``(N, electrodes, L)``, as EEGNet does: each is an image of one channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 16, (1, 9)), nn.Conv2d(16, 32, (8, 3))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x.unsqueeze(1))))).mean((2, 3)))


class Filter(nn.Module):
    """Return complex numbers whose real part is the input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, self.second(F.relu(self.first(x))))


@pytest.mark.filterwarnings("ignore:the MACs of these operators are unknown")
@pytest.mark.parametrize("count", [16, 32])
@pytest.mark.parametrize("channels", [1, 8])
def test_signals_may_become_images_inside_the_network(channels: int, count: int) -> None:
    model = Spectrogram() if channels == 1 else Electrodes()
    signals = torch.randn(count, channels, 256, generator=torch.Generator().manual_seed(0))
    one, many = profile(model, signals[:1]), profile(model, signals)
    assert one.macs == many.macs > 0
    assert next(iter(calibrate(model, [signals]).values())).held_out is not None
    found = shrink(model, [signals, signals + 0.1], Budget(params=0.5))
    assert found.model(signals).shape == (count, 4)
    assert profile(found.model, signals).params <= 0.5 * many.params


def test_signals_on_another_device_than_the_network_are_no_image() -> None:
    model = Electrodes().to("meta")  # it stands in for a GPU
    assert example_batch(torch.randn(16, 8, 256), model).shape == (16, 8, 256)


def test_one_image_counts_as_a_batch_of_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    assert profile(model, BATCHES[0][0]).macs == profile(model, BATCHES[0][:1]).macs
    patches = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3))
    assert profile(patches, BATCHES[0][0]).macs == profile(patches, BATCHES[0][:1]).macs
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 2\)"):
        profile(model, BATCHES[0][0, :, :2, :2])


def test_the_imaginary_part_of_outputs_counts() -> None:
    found = shrink(Filter(), BATCHES, Budget(params=0.1))
    with torch.no_grad():
        dense, small = Filter()(BATCHES[0]), found.model(BATCHES[0])
    assert (dense - small).imag.abs().max() > 1e-3
    assert found.divergence > 1e-6


@pytest.mark.parametrize("one_number", [False, True])
def test_conjugate_and_single_complex_outputs_are_compared(one_number: bool) -> None:
    class Conjugate(Filter):
        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            return output.mean((1, 2, 3)) if one_number else output.conj()

    outputs = outputs_on(Conjugate(), BATCHES)
    assert outputs.shape == ((48, 1, 2) if one_number else (48, 3, 12, 12, 2))
    assert divergence_for(outputs) is squared_error


def test_factors_keep_which_weights_and_biases_are_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(64 * 64, 8))
    assert isinstance(model[2].bias, Tensor)
    model[2].bias.requires_grad_(False)
    model[4].weight.requires_grad_(False)
    small = compress(model, plan_ranks(model, BATCHES[0], "svd", Fixed(0.3)))
    frozen = {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    assert frozen == {"2.1.bias", "4.0.weight", "4.1.weight"}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_part_stays_as_it_is() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
    model = nn.Sequential(scripted, nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.Flatten())
    found = shrink(model, BATCHES, Budget(params=0.5))
    assert found.model(BATCHES[0]).shape == model(BATCHES[0]).shape


def test_a_wrapper_that_was_compressed_itself_is_exported(tmp_path: Path) -> None:
    model = nn.DataParallel(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3, 2)))
    small = compress(model, plan_ranks(model, BATCHES[0], "htd", Budget(params=0.5)))
    assert export_onnx(small, tmp_path / "small.onnx", BATCHES[0]).exists()


@pytest.mark.parametrize(
    ("targets", "said", "unsaid"),
    [
        (torch.zeros(16, 12, 12, dtype=torch.long), r"or masks \(16, K, H, W\), one for each class", "argmax"),
        (torch.full((16, 1), 0.5, dtype=torch.complex64), "class numbers", "squeeze"),
        (torch.rand(16, 4).round(), "class numbers", "argmax"),
        (F.one_hot(torch.arange(16) % 4), r"targets\.argmax\(1\)", "squeeze"),
        (F.one_hot(torch.arange(16) % 4).bool(), r"targets\.argmax\(1\)", "squeeze"),
        (torch.ones(16, 4, dtype=torch.bool), "class numbers", "argmax"),
        (torch.ones(16, 1), r"targets\.squeeze\(1\)", "argmax"),
    ],
)
def test_targets_that_are_no_class_numbers_get_no_wrong_advice(targets: Tensor, said: str, unsaid: str) -> None:
    if unsaid == "argmax" and targets.shape == (16, 4):
        targets[0] = 1  # several labels
    with pytest.raises(ValueError, match=said) as error:
        DataBundle.from_loaders([(BATCHES[0], targets)], [(BATCHES[0], targets)])
    assert unsaid not in str(error.value)

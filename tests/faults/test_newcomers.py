"""Networks and data of newcomers that were refused, miscounted or silently judged by the wrong values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from common.calibration import calibrate
from common.calibration.divergence import divergence_for, outputs_on, squared_error
from common.compression import compress, load_compressed, save_compressed
from common.data import DataBundle
from common.deploy import export_onnx
from common.network import profile
from common.network.copies import independent_copy
from common.network.passes import example_batch
from common.planning import Budget, Fixed, plan_ranks
from common.search import SearchSettings, search_ranks
from common.shrink import shrink
from common.training import TrainingSettings

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


class Experts(nn.Module):
    """Send each image to one of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gate, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 2), nn.Linear(32, 4)
        self.experts = nn.ModuleList([nn.Conv2d(32, 32, 3) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        maps = F.relu(self.first(x))
        chosen, found = self.gate(maps.mean((2, 3))).argmax(1), maps.mean((2, 3))
        for index, expert in enumerate(self.experts):
            if (chosen == index).any():
                rows = expert(maps[chosen == index]).mean((2, 3))
                found = found.index_put(((chosen == index).nonzero()[:, 0],), rows)
        return self.head(found)


def test_budgets_count_all_the_experts_that_images_run() -> None:
    model, tints = Experts().eval(), torch.randn(16, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    batch = BATCHES[0] + 3 * tints
    assert set(model.gate(F.relu(model.first(batch)).mean((2, 3))).argmax(1).tolist()) == {0, 1}
    for budget in (Budget(params=0.5), Budget(macs=0.5)):
        found = shrink(model, [batch], budget)
        assert {"experts.0", "experts.1"} <= set(found.plan.layers)
        params, macs = found.after.params / found.before.params, found.after.macs / found.before.macs
        assert (params if budget.params else macs) <= 0.5
        assert found.before.macs < profile(model, batch[:1]).macs * 1.01  # of one image, on average


class SqueezesTheBatch(nn.Module):
    """Takes no batch of one image, because it squeezes the axis of images away."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)
        self.norm, self.head = nn.BatchNorm1d(32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.second(F.relu(self.first(x)))
        return self.head(self.norm(F.adaptive_avg_pool2d(maps, 1).squeeze()))


@pytest.mark.parametrize("size", [8, 10, 16])
def test_a_network_that_takes_no_batch_of_one_image(size: int) -> None:
    batches = torch.cat(BATCHES).split(size)
    targets = (torch.arange(48) % 4).split(size)
    found = shrink(SqueezesTheBatch().eval(), list(zip(batches, targets, strict=True)), Budget(macs=0.5))
    assert "accuracy" in found.metrics
    assert found.model(BATCHES[0]).shape == (16, 4)
    assert found.after.macs <= 0.5 * found.before.macs
    with pytest.raises(ValueError, match=r"x of shape \(1, 2, 12, 12\)"):
        shrink(SqueezesTheBatch().eval(), [BATCHES[0][:, :2]], Budget(macs=0.5))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripted_parts_are_trained_with_the_rest(tmp_path: Path) -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    scripted[0].bias.requires_grad_(False)  # stays frozen in copies
    model = nn.Sequential(scripted, nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3200, 4)).eval()
    loader = DataLoader(TensorDataset(BATCHES[0], torch.arange(16) % 4), 8)
    settings = SearchSettings(
        method="tucker2", trials=2, finetune_top=1, finetune=TrainingSettings(epochs=1), budget=Budget(params=0.5)
    )
    copied = independent_copy(model)
    assert all(parameter.is_leaf for parameter in copied.parameters())
    assert [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in model.parameters()]
    data = DataBundle.from_loaders(loader, loader, loader)
    result = search_ranks(model, data, settings, run="scripted", logs=tmp_path)
    assert result.finished
    assert any("finetuned" in record.metrics for record in result.records)


@pytest.mark.parametrize(("network", "latency_batch"), [(Experts, 1), (SqueezesTheBatch, 4)])
def test_a_search_counts_what_several_images_run(
    network: type[Experts | SqueezesTheBatch], latency_batch: int, tmp_path: Path
) -> None:
    tints = torch.randn(16, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(BATCHES[0] + 3 * tints, torch.arange(16) % 4), 8)
    settings = SearchSettings(
        method="tucker2", trials=3, finetune_top=0, budget=Budget(params=0.5), latency_batch=latency_batch
    )
    model = network().eval()
    result = search_ranks(
        model, DataBundle.from_loaders(loader, loader, loader), settings, run="several", logs=tmp_path
    )
    assert result.finished
    dense = sum(parameter.numel() for parameter in model.parameters())
    measured = [record for record in result.records if record.metrics]
    assert measured
    for record in measured:
        assert record.params <= 0.5 * dense
        assert {name for name in record.plan if name.startswith("experts")} in (set(), {"experts.0", "experts.1"})


def test_arguments_in_the_wrong_order_are_named(tmp_path: Path) -> None:
    path: Any = tmp_path / "experts.safetensors"
    model: Any = Experts()
    with pytest.raises(TypeError, match=r"path is Experts: it must be .* a file: save_compressed\(model, path\)"):
        save_compressed(path, model)
    with pytest.raises(TypeError, match=r"path is Experts: it must be .* a file: load_compressed\(path, model\)"):
        load_compressed(model, path)

"""The default call is no worse than without sweeps, without data, or with only a few images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from common.calibration import calibrate
from common.compression import compress
from common.decomposition import DECOMPOSITIONS, LayerMoments
from common.network.shapes import trace_layers
from common.planning import Budget, Fixed, RankPlan, plan_ranks
from common.planning.decompositions import Decompositions, layer_method
from tests.decomposition.passes import layer_pass
from tests.networks import tiny_cnn, tiny_digits

SHARES = (0.25, 0.4, 0.6)


def without_batchnorm() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def grouped_and_strided() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        *(nn.Conv2d(24, 32, (3, 5), 2, (1, 2), groups=2), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 24, 3, 2, 1, 1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=2, dilation=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


TRAINED: dict[str, Callable[[], nn.Module]] = {
    "without BatchNorm": without_batchnorm,
    "grouped and strided": grouped_and_strided,
    "with BatchNorm": lambda: tiny_cnn(width=24),
}


@cache
def trained(kind: str) -> tuple[nn.Module, dict[str, LayerMoments], Tensor]:
    """A network trained on digits, its moments, and images that were used for neither."""
    data = tiny_digits(limit=800)
    torch.manual_seed(0)
    model = TRAINED[kind]().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(4):
        for images, labels in data.train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    held_out = torch.cat([images for images, _ in data.validation])
    return model.eval(), calibrate(model, data.calibration), held_out


def layer_error(model: nn.Module, small: nn.Module, layer: str, x: Tensor) -> float:
    """Relative error of the layer's output on the dense network's own activations."""
    seen, expected = layer_pass(model, layer, x)
    with torch.no_grad():
        return float((small.get_submodule(layer)(seen) - expected).norm() / expected.norm())


def layer_errors(
    model: nn.Module, layer: str, method: str, share: float, x: Tensor, *candidates: Decompositions
) -> list[float]:
    """Errors of one layer by one method at a fraction of its ranks, for each of the candidates."""
    errors = []
    for each in candidates:
        ranks = each.get(layer, method).fraction(share)
        plan = RankPlan({layer: each.plan(layer, method, ranks)}, method, "fixed")
        errors.append(layer_error(model, compress(model, plan, decompositions=each), layer, x))
    return errors


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("kind", TRAINED)
def test_with_data_a_layers_error_is_no_greater_than_without_sweeps_or_data(kind: str, method: str) -> None:
    model, moments, held_out = trained(kind)
    candidates = Decompositions(model, moments, 2), Decompositions(model, moments), Decompositions(model, None, 2)
    for layer, shape in trace_layers(model, held_out[:1]).items():
        chosen = layer_method(method, shape)
        for share in SHARES:
            default, unswept, plain = layer_errors(model, layer, chosen, share, held_out, *candidates)
            assert default <= 1.01 * unswept + 1e-6, (layer, share)
            assert default <= 1.02 * plain + 1e-6, (layer, share)


@pytest.mark.parametrize("method", ["tucker2", "htd"])
def test_the_default_sweeps_of_compress_do_not_raise_the_error(method: str) -> None:
    model, moments, held_out = trained("without BatchNorm")
    plan = plan_ranks(model, held_out[:1], method, Fixed({"2": 0.4, "5": 0.4}), moments=moments)
    swept, unswept = compress(model, plan, moments=moments), compress(model, plan, moments=moments, sweeps=0)
    for layer in ("2", "5"):
        assert layer_error(model, swept, layer, held_out) <= 1.01 * layer_error(model, unswept, layer, held_out)


class Denoiser(nn.Module):
    """A chain of residual blocks without BatchNorm, as in networks for super-resolution and denoising."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for block in self.blocks:
            y = y + block(y)
        restored: Tensor = x + self.tail(y)
        return restored


def noisy(images: Tensor, seed: int) -> Tensor:
    return images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


@cache
def denoiser() -> tuple[nn.Module, Tensor, Tensor]:
    """A denoiser trained for a few seconds, images to calibrate on, and held-out images."""
    data = tiny_digits(limit=800)
    parts = (torch.cat([images for images, _ in part]) for part in (data.train, data.calibration, data.validation))
    train, calibration, held_out = parts
    torch.manual_seed(0)
    model = Denoiser()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(250):
        batch = train[torch.randint(len(train), (32,))]
        optimizer.zero_grad()
        (model(noisy(batch, step)) - batch).square().mean().backward()
        optimizer.step()
    return model.eval(), calibration, held_out


@pytest.mark.parametrize("count", [16, 160])
@pytest.mark.parametrize("method", [*DECOMPOSITIONS, "mixed"])
def test_data_does_not_raise_the_loss_of_a_network_without_batchnorm(method: str, count: int) -> None:
    model, calibration, held_out = denoiser()
    x = noisy(held_out, 1000)
    moments = calibrate(model, [noisy(calibration[:count], 2000)])
    losses = []
    for found in (moments, None):
        plan = plan_ranks(model, x[:1], method, Budget(macs=0.5), moments=found)
        with torch.no_grad():
            losses.append(float((compress(model, plan, moments=found)(x) - held_out).square().mean()))
    assert losses[0] <= losses[1]


FEW: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...], int]] = {
    "3x3": (lambda: [nn.Conv2d(8, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 96, 3, padding=1)], (8, 3, 3), 6),
    "1x1 images": (lambda: [nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)], (8, 1, 1), 8),
    "grouped": (
        lambda: [nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1, groups=2)],
        (8, 4, 4),
        8,
    ),
    "transposed": (
        lambda: [nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(64, 64, 3, 2)],
        (8, 3, 3),
        6,
    ),
    "linear": (lambda: [nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 48)], (24,), 40),
}
"""Kind -> layers, size of an input, and the greatest number of images that has too few patches for layer 2."""


@pytest.mark.parametrize("count", [1, 2, None])
@pytest.mark.parametrize("kind", FEW)
def test_too_few_patches_give_a_warning_and_weight_only_factors(kind: str, count: int | None) -> None:
    layers, size, max_count = FEW[kind]
    torch.manual_seed(0)
    model, x = nn.Sequential(*layers()).eval(), torch.randn(count or max_count, *size)
    with pytest.warns(UserWarning, match="^too few calibration patches for the layers ") as warned:
        moments = calibrate(model, [x])
    assert len(warned) == 1
    assert "'2' (" in str(warned[0].message)
    assert warned[0].filename == __file__
    assert "2" not in Decompositions(model, moments).moments
    for method in DECOMPOSITIONS:
        method = layer_method(method, trace_layers(model, x)["2"])
        aware = plan_ranks(model, x, method, Fixed({"2": 0.4}, only_if_smaller=False), moments=moments)
        plain = plan_ranks(model, x, method, Fixed({"2": 0.4}, only_if_smaller=False))
        assert aware.layers["2"] == plain.layers["2"]
        with torch.no_grad():
            assert torch.equal(compress(model, aware, moments=moments)(x), compress(model, plain)(x))


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("kind", FEW)
def test_few_images_make_no_layer_much_worse_on_other_images(kind: str, method: str) -> None:
    layers, size, _ = FEW[kind]
    iterates = DECOMPOSITIONS[method].interpolates
    for count in (2, 40) if iterates else (2, 8, 16, 40, 64):
        for seed in range(1 if iterates else 2):
            torch.manual_seed(seed)
            model, held_out = nn.Sequential(*layers()).eval(), torch.randn(100, *size)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                moments = calibrate(model, [torch.randn(count, *size)])
            candidates = Decompositions(model, moments, 2), Decompositions(model, None, 2)
            for share in (0.25, 0.5):
                chosen = layer_method(method, trace_layers(model, held_out)["2"])
                aware, plain = layer_errors(model, "2", chosen, share, held_out, *candidates)
                assert aware <= 1.15 * plain, (count, seed, share)


@pytest.mark.parametrize("images", [4, 64])
@pytest.mark.parametrize("constant", [torch.zeros(8, 6, 6), torch.ones(8, 6, 6), torch.arange(8.0)[:, None, None]])
def test_identical_images_count_as_too_few_patches(constant: Tensor, images: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1)).eval()
    with pytest.warns(UserWarning, match="too few calibration patches for the layers '0'"):
        moments = calibrate(model, [constant.expand(images, 8, 6, 6).contiguous()])
    assert all(found.too_few for found in moments.values())


def test_dead_channels_do_not_count_as_too_few_patches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)).eval()
    with torch.no_grad():
        model.get_parameter("0.weight")[:16] = 0
        model.get_parameter("0.bias")[:16] = 0
    moments, held_out = calibrate(model, [torch.randn(40, 8, 6, 6)]), torch.randn(100, 8, 6, 6)
    candidates = Decompositions(model, moments, 2), Decompositions(model, None, 2)
    for method in DECOMPOSITIONS:
        aware, plain = layer_errors(model, "2", method, 0.3, held_out, *candidates)
        assert aware < 0.9 * plain

"""The outputs must stay the same even if a forward branches during tracing or uses layers in hidden ways."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.deploy import align_ranks, fold_batchnorm, merge_factors
from common.deploy.parity import tensors
from common.network.copies import independent_copy
from common.network.layers import factorable_layers
from tests.networks import lived_in, same_weights

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Parts(nn.Module):
    """Two layers that can be merged and aligned, and a layer with a BatchNorm that can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = nn.Conv2d(3, 20, 1), nn.Conv2d(20, 3, 1)
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.drop, self.gate = nn.Dropout(), nn.Parameter(torch.zeros(1))
        self.seen: list[Any] = []

    def between(self, features: Any) -> Any:
        """The step between two layers."""
        return features

    def forward(self, images: Tensor) -> Any:
        features = self.back(self.between(self.wide(images)))
        return self.norm(self.between(self.conv(features)))


class AsksForTensor(Parts):
    def between(self, features: Any) -> Any:
        return torch.relu(features) if isinstance(features, Tensor) else features


class AsksForType(Parts):
    def between(self, features: Any) -> Any:
        return torch.relu(features) if type(features) is Tensor else features


class AsksForAttribute(Parts):
    def between(self, features: Any) -> Any:
        return features if hasattr(features, "mask") else torch.relu(features)


class AsksForGradients(Parts):
    def between(self, features: Any) -> Any:
        return torch.relu(features) if torch.is_grad_enabled() else features


class AsksForNoGradients(Parts):
    def between(self, features: Any) -> Any:
        return features if torch.is_grad_enabled() else torch.relu(features)


class AsksForTraining(Parts):
    def between(self, features: Any) -> Any:
        return features if self.training else torch.relu(features)


class AsksForSizes(Parts):
    def between(self, features: Any) -> Any:
        return torch.relu(features) if features.shape[-1] > 4 else features


class AsksForValues(Parts):
    def between(self, features: Any) -> Any:
        try:
            return torch.relu(features) if features.abs().sum() > 0 else features
        except torch.fx.proxy.TraceError:
            return features


class InPlace(Parts):
    def between(self, features: Any) -> Any:
        features.relu_()
        return features


class InPlaceOnAView(Parts):
    def between(self, features: Any) -> Any:
        if isinstance(features, Tensor):
            features[:, 0].zero_()
        return features


class Skips(Parts):
    """Has a hidden use behind a closed gate, so that the outputs do not show it."""

    def forward(self, images: Tensor) -> Any:
        wide = self.wide(images)
        features = self.conv(self.back(wide))
        if isinstance(features, Tensor):
            return self.norm(features) + self.gate * features + self.gate * wide.mean(1, keepdim=True)
        return self.norm(features)


class Defaults(Parts):
    def forward(self, images: Tensor, activation: Any = None, *, scale: float = 1.0, residual: bool = False) -> Any:
        wide = self.wide(images)
        wide = torch.relu(wide) if activation is None else activation(wide)
        features = self.conv(self.back(wide))
        if not residual:
            features = torch.relu(features) * scale
        return self.norm(features)


class ManyDefaults(Parts):
    def forward(
        self, images: Tensor, size: Any = (1, 2), act: Any = torch.abs, *rest: Any, kind: str = "norm", **more: Any
    ) -> Any:
        features = super().forward(images)
        return act(features) * size[1] if kind == "norm" and not rest and not more else features


class Keeps(Parts):
    def forward(self, images: Tensor) -> Any:
        self.wide_features = self.wide(images)
        features = self.conv(self.back(self.wide_features))
        self.seen = [{"features": features}]
        return self.norm(features)


class Returns(Parts):
    def forward(self, images: Tensor) -> Any:
        wide = self.wide(images)
        features = self.conv(self.back(wide))
        return self.norm(features), [features, {"wide": wide}]


class ReadsLayers(Parts):
    """Reads an attribute of a layer that a merged layer lacks or has with another value."""

    def forward(self, images: Tensor) -> Any:
        features = self.back(self.wide(images)) * self.wide.out_channels * self.conv.weight.sum()
        return self.norm(self.conv(features)) * self.norm.num_features


class Counts(Parts):
    """Holds a state that each pass changes."""

    passes = 0

    def forward(self, images: Tensor) -> Any:
        self.passes += 1
        return super().forward(images) * self.passes


class Remembers(Parts):
    """Adds the features of the previous pass."""

    last: Any = 0.0

    def forward(self, images: Tensor) -> Any:
        features = super().forward(images) + self.last
        self.last = features.mean()
        return features


class Draws(Parts):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images + torch.rand_like(images))


class Drops(Parts):
    def between(self, features: Any) -> Any:
        return self.drop(features)


class ReturnsDict(Parts):
    def forward(self, images: Tensor) -> Any:
        return OrderedDict(out=super().forward(images), name="parts")


class ReturnsClasses(Parts):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images).argmax(1)


@dataclasses.dataclass
class Output:
    logits: Tensor
    mask: Tensor


class ReturnsDataClass(Parts):
    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return Output(logits, logits > 0)


CHANGED = (Parts, ManyDefaults, Counts, Remembers, Draws, Drops, ReturnsDict, ReturnsClasses, ReturnsDataClass)
KEPT = (
    *(AsksForTensor, AsksForType, AsksForAttribute, AsksForGradients, AsksForNoGradients, AsksForTraining),
    *(AsksForSizes, AsksForValues, InPlace, InPlaceOnAView, Skips, Defaults, Keeps, Returns, ReadsLayers),
)
CALLS: dict[str, Callable[[nn.Module, Tensor | None], nn.Module]] = {
    "fold": fold_batchnorm,
    "merge": lambda model, x: merge_factors(model, X if x is None else x),
    "align": lambda model, x: align_ranks(model, 8, x),
}


def outputs(model: nn.Module, gradients: bool) -> list[Tensor]:
    """Return the outputs of two passes of a copy, since a pass may change the network's state."""
    model = independent_copy(model).eval()
    with torch.set_grad_enabled(gradients), torch.random.fork_rng():
        torch.manual_seed(0)
        return [tensor.double() for _ in range(2) for tensor in tensors(model(X))]


def check(changed: nn.Module, model: nn.Module) -> None:
    for gradients in (False, True):
        for found, expected in zip(outputs(changed, gradients), outputs(model, gradients), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def wide_channels(model: nn.Module) -> list[int]:
    return [layer.weight.shape[0] for layer in factorable_layers(model).values()]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", CHANGED)
def test_linked_modules_are_changed(kind: type[Parts], given: bool) -> None:
    torch.manual_seed(0)
    model, x = lived_in(kind()), X if given else None
    folded, merged, aligned = (call(model, x) for call in CALLS.values())
    assert isinstance(folded.get_submodule("norm"), nn.Identity)
    assert wide_channels(merged) == [3, 3]  # the bias of the 1x1 may not meet the padding of the 3x3
    assert wide_channels(aligned) == [24, 8, 3]
    for changed in (folded, merged, aligned):
        check(changed, model)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KEPT)
def test_modules_that_only_seem_linked_stay(kind: type[Parts], call: str, given: bool) -> None:
    torch.manual_seed(0)
    model = lived_in(kind())
    before = independent_copy(model)
    changed = CALLS[call](model, X if given else None)
    check(changed, model)
    assert same_weights(model, before)
    assert isinstance(changed.get_submodule("norm"), nn.BatchNorm2d)
    assert wide_channels(changed)[0] == 20


class NormWithActivation(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


class DropWithActivation(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(input)


def with_hook(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, given, output: torch.relu(output))
    return module


def with_own_forward(module: nn.Module) -> nn.Module:
    original = module.forward
    module.forward = lambda x: torch.relu(original(x))
    return module


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 4, 1), NormWithActivation(4)),
        (nn.Conv2d(3, 4, 1), DropWithActivation(), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 4, 1), with_hook(nn.BatchNorm2d(4))),
        (with_hook(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 4, 1), with_hook(nn.Identity()), nn.BatchNorm2d(4)),
        (with_own_forward(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 4, 1), with_own_forward(nn.BatchNorm2d(4))),
    ],
)
def test_altered_modules_stay(layers: tuple[nn.Module, ...]) -> None:
    model = lived_in(nn.Sequential(*layers))
    for x in (X, None):
        folded = fold_batchnorm(model, x)
        assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 1
        check(folded, model)


class StaysInTraining(Parts):
    """A network whose BatchNorm uses the statistics of the batch in evaluation mode too."""

    def train(self, mode: bool = True) -> StaysInTraining:
        super().train(mode)
        self.norm.train()
        return self


def test_a_norm_with_batch_statistics_stays() -> None:
    model = lived_in(StaysInTraining())
    folded = fold_batchnorm(model, X)
    assert isinstance(folded.get_submodule("norm"), nn.BatchNorm2d)
    check(folded, model)


class Factors(nn.Conv2d):
    """A layer that runs its children in turn; its weight is their product."""

    def __init__(self, rank: int) -> None:
        nn.Module.__init__(self)
        self.in_channels, self.out_channels = 3, 4
        self.add_module("0", nn.Conv2d(3, rank, 3, bias=False))
        self.add_module("1", nn.Conv2d(rank, 4, 1))

    def forward(self, input: Tensor) -> Tensor:
        for factor in self.children():
            input = factor(input)
        return input

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            first, last = self.children()
            return torch.einsum("orab,rikl->oikl", last.weight, first.weight)
        return super().__getattr__(name)


@pytest.mark.parametrize("rank", [2, 40])
def test_factors_inside_a_layer_of_their_own_kind(rank: int) -> None:
    torch.manual_seed(0)
    model = lived_in(nn.Sequential(Factors(rank), nn.BatchNorm2d(4), nn.ReLU()))
    folded = fold_batchnorm(model, X)
    assert isinstance(folded.get_submodule("1"), nn.Identity)
    assert isinstance(folded.get_submodule("0"), Factors)
    merged, aligned = merge_factors(folded, X), align_ranks(folded, 16, X)
    assert isinstance(merged.get_submodule("0.1"), nn.Conv2d if rank == 2 else nn.Identity)
    assert aligned.get_parameter("0.0.weight").shape[0] == (16 if rank == 2 else 48)
    for changed in (folded, merged, aligned):
        check(changed, model)


class ReadsOneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x + self.get_submodule("blocks.3.1").get_buffer("running_mean").sum()


def test_only_changes_that_break_the_outputs_are_left_out() -> None:
    model = lived_in(ReadsOneLayer())
    folded = fold_batchnorm(model, X)
    left = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["blocks.3.1"]
    check(folded, model)

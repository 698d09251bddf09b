from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from common.network import profile
from common.network.modes import evaluating, ordinary_precision, random_state_kept
from tests.networks import lived_in, tiny_cnn


class Adapted(nn.Linear):
    """Merges its low-rank update into its weight in evaluation mode, as loralib does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Self:
        if self.merged == mode:
            self.weight.data += (self.up.data @ self.down.data) * (-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return output if self.merged else output + input @ self.down.T @ self.up.T


class MergesInEval(Adapted):
    """Merges its update in ``eval`` only, and removes it in ``train``."""

    def train(self, mode: bool = True) -> Self:
        if mode and self.merged:
            super().train(True)
        return nn.Module.train(self, mode)

    def eval(self) -> Self:
        return Adapted.train(self, False)


class FrozenNorms(nn.Sequential):
    """Keeps its BatchNorms in evaluation mode in either mode."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class PrivateMode(nn.Sequential):
    """Stores its mode in an attribute of its own; neither its ``training`` flag nor its children follow."""

    mode = True

    def train(self, mode: bool = True) -> Self:
        self.mode = mode
        return self


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("kind", [Adapted, MergesInEval])
@pytest.mark.parametrize("wrap", [lambda layer: layer, lambda layer: FrozenNorms(nn.Sequential(layer))])
def test_a_merged_update_is_removed_from_the_weight_at_the_end(
    kind: Callable[[int, int], Adapted], wrap: Callable[[nn.Module], nn.Module]
) -> None:
    torch.manual_seed(0)
    layer = kind(4, 3)
    model, x = nn.Sequential(wrap(layer), nn.ReLU()).train(), torch.randn(2, 4)
    weight, expected = layer.weight.detach().clone(), model(x)
    with evaluating(model):
        torch.testing.assert_close(model(x), expected)
        assert not any(modes(model))
    assert layer.training
    assert not layer.merged
    torch.testing.assert_close(layer.weight.detach(), weight)
    model(x).sum().backward()
    assert layer.up.grad is not None


@pytest.mark.parametrize("kind", [Adapted, MergesInEval])
def test_a_frozen_module_inside_a_training_one_stays_merged(kind: Callable[[int, int], Adapted]) -> None:
    layer = kind(4, 3)
    model = nn.Sequential(FrozenNorms(layer, nn.ReLU()), nn.Linear(3, 2)).train()
    layer.eval()
    before = modes(model)
    with evaluating(model):
        assert layer.merged
    assert layer.merged
    assert modes(model) == before == [True, True, False, True, True]


def test_a_frozen_module_with_two_parents_stays_merged() -> None:
    """The second parent's ``train`` runs after the first's, and sets the mode of the module that both hold."""
    layer = Adapted(4, 4)
    model = nn.Sequential(FrozenNorms(layer), FrozenNorms(nn.ReLU(), layer)).train()
    layer.eval()
    with evaluating(model):
        pass
    assert layer.merged
    assert [layer.training, *(parent.training for parent in model)] == [False, True, True]


def test_profile_leaves_an_adapted_layer_in_training() -> None:
    layer = Adapted(48, 16)
    model = nn.Sequential(nn.Flatten(), layer).train()
    profile(model, torch.randn(2, 3, 4, 4))
    assert layer.training
    assert not layer.merged


@pytest.mark.parametrize("kind", [nn.Sequential, FrozenNorms])
@pytest.mark.parametrize("thawed", [True, False])
def test_every_module_gets_its_mode_back(kind: Callable[..., nn.Sequential], thawed: bool) -> None:
    model = kind(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(4))).train()
    model[0].eval()
    model[1].training = thawed  # FrozenNorms.train would freeze it
    before = modes(model)
    with evaluating(model):
        assert not any(modes(model))
    assert modes(model) == before
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / 0
    assert modes(model) == before


def test_a_train_method_that_sets_no_flags() -> None:
    norm = nn.BatchNorm2d(3)
    switch = PrivateMode(norm)
    model = nn.Sequential(switch, nn.ReLU()).train()
    before, statistics = modes(model), norm.state_dict()["running_mean"].clone()
    with evaluating(model):
        assert [switch.mode] == [False]
        assert not any(modes(model))
        model(torch.randn(2, 3, 4, 4))
    assert switch.mode
    assert modes(model) == before
    assert torch.equal(norm.state_dict()["running_mean"], statistics)


def test_a_network_in_evaluation_mode_stays_unchanged() -> None:
    """An exported network, for example, refuses any change of mode."""
    x = torch.randn(2, 3, 8, 8)
    model: Any = torch.export.export(lived_in(tiny_cnn()), (x,)).module()
    for module in model.modules():
        module.training = False
    with pytest.raises(NotImplementedError):
        model.eval()
    with evaluating(model):
        model(x)
    assert not any(modes(model))


@pytest.mark.parametrize("training", [True, False])
def test_modes_that_change_inside_the_block_are_restored(training: bool) -> None:
    layer, norm = Adapted(4, 3), nn.BatchNorm1d(3)
    model = nn.Sequential(layer, norm).train(training)
    with evaluating(model):
        layer.train()
        norm.train()
    assert modes(model) == [training] * 3
    assert layer.merged != training


def test_two_networks_that_share_a_module_are_both_evaluated() -> None:
    layer = Adapted(4, 4)
    inner = nn.Sequential(layer).train()
    outer = nn.Sequential(inner, nn.ReLU()).eval()
    inner.train()
    with evaluating(inner, outer):
        assert [layer.merged] == [True]
    assert not layer.merged
    assert modes(outer) == [False, True, True, False]


@pytest.mark.parametrize("products", ["highest", "high", "medium"])
def test_nothing_is_computed_in_low_precision(products: str) -> None:
    """Neither under ``torch.autocast`` nor in TF32, which convolutions on a GPU take by default."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(products)
        with torch.autocast("cpu", torch.bfloat16):
            with ordinary_precision(), cudnn.flags(enabled=True, allow_tf32=cudnn.allow_tf32):  # as a forward may
                assert not torch.is_autocast_enabled("cpu")
                assert (cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest")
                with ordinary_precision():
                    pass
                assert not cudnn.allow_tf32
            assert torch.is_autocast_enabled("cpu")
        with pytest.raises(ZeroDivisionError), ordinary_precision():
            raise ZeroDivisionError
        assert (cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (before[0], products)
    finally:
        torch.set_float32_matmul_precision(before[1])


def test_the_random_state_is_kept() -> None:
    state = torch.get_rng_state()
    with random_state_kept(torch.device("cpu"), 3):
        first = torch.rand(2)
    with random_state_kept(torch.device("cpu"), 3):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.get_rng_state(), state)

from __future__ import annotations

import collections
import functools
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from common.calibration import calibrate
from common.compression import compress, load_compressed, save_compressed
from common.network import profile
from common.network.held import unreplaceable_holders
from common.network.shapes import trace_layers
from common.planning import Fixed, plan_ranks
from tests.networks import same_weights

X = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(0))


def compress_at_full_rank(model: nn.Module, x: Tensor = X) -> nn.Module:
    """Compress at full rank and check that the outputs equal those of the dense network."""
    plan = plan_ranks(model, x, "svd", Fixed("full", only_if_smaller=False))
    small = compress(model, plan)
    with torch.no_grad():
        expected = model(x)
        assert (small(x) - expected).abs().max() <= 1e-4 * expected.abs().max()
    return small


def two_convolutions(**named: Any) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 16, 3, padding=1, **named), nn.Tanh(), nn.Conv2d(16, 16, 3, padding=1, **named)]
    return nn.Sequential(*layers).eval()


def changed_forward(model: nn.Sequential) -> None:
    plain = model[0].forward
    model[0].forward = lambda inputs: plain(inputs) * 0.1


def changed_convolution(model: nn.Sequential) -> None:
    def wrap(self: nn.Conv2d, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.conv2d(nn.functional.pad(inputs, (1, 1, 1, 1), mode="circular"), weight, bias)

    layer: Any = model[0]
    layer._conv_forward = types.MethodType(wrap, layer)


def pruned(model: nn.Sequential) -> None:
    prune.l1_unstructured(model[0], "weight", 0.5)


def spectral(model: nn.Sequential) -> None:
    nn.utils.spectral_norm(model[0])


def computed_bias(model: nn.Sequential) -> None:
    nn.utils.parametrize.register_parametrization(model[0], "bias", nn.Tanh())


def cut_channels(model: nn.Sequential) -> None:
    for layer, weight in ((model[0], lambda w: w[:12]), (model[2], lambda w: w[:, :12])):
        layer.weight = nn.Parameter(weight(layer.get_parameter("weight")).clone())
    model[0].bias = nn.Parameter(model[0].get_parameter("bias")[:12].clone())


def state_hook(model: nn.Sequential) -> None:
    model[0].register_state_dict_post_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed_forward, "its forward was changed on the instance"),
        (changed_convolution, "its _conv_forward was changed on the instance"),
        (pruned, "its weight is computed from other parameters"),
        (spectral, "its weight is computed from other parameters"),
        (computed_bias, "its bias is computed from other parameters"),
        (cut_channels, r"its weight has shape (12, 8, 3, 3), but its attributes give (16, 8, 3, 3)"),
        (state_hook, "hooks on its state_dict expect a dense weight"),
    ],
)
def test_modified_layers_stay_dense_with_a_reason(change: Callable[[nn.Sequential], None], reason: str) -> None:
    model = two_convolutions()
    change(model)
    model.eval()
    plan = plan_ranks(model, X, "svd", Fixed("full", only_if_smaller=False))
    assert plan.skipped["0"].startswith(reason)
    compress_at_full_rank(model)
    shapes = trace_layers(model, X)
    assert sum(shape.dense_cost[0] for shape in shapes.values()) == profile(model, X).params
    assert "0" not in calibrate(model, [X])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("method", ["svd", "spatial_svd", "tucker2", "htd"])
def test_complex_weights_stay_dense(dtype: torch.dtype, method: str) -> None:
    model, x = two_convolutions(dtype=dtype), X.to(dtype)
    plan = plan_ranks(model, x, method, Fixed(0.5))
    assert not plan.factored
    assert plan.skipped["0"] == f"its weight is {str(dtype)[6:]}; only real floating point is factored"
    assert torch.equal(compress(model, plan)(x), model(x))


def test_hooks_move_to_the_replacement() -> None:
    model = two_convolutions()
    seen: list[tuple[int, ...]] = []
    model[0].register_forward_hook(lambda layer, given, output: output.clamp(-0.2, 0.2))
    model[2].register_forward_pre_hook(lambda layer, given: (given[0] * 2,))
    model[2].register_forward_hook(lambda layer, given, named, output: seen.append(output.shape), with_kwargs=True)
    model[2].register_full_backward_hook(lambda layer, gradients, outer: seen.append((len(gradients),)))
    small = compress_at_full_rank(model)
    seen.clear()
    small(X).sum().backward()
    assert seen == [(2, 16, 12, 12), (1,)]
    moments = calibrate(model, [X])  # moments describe the layer's own output, before hooks change it
    plan = plan_ranks(model, X, "svd", Fixed("full", only_if_smaller=False), moments=moments)
    with torch.no_grad():
        torch.testing.assert_close(compress(model, plan, moments=moments)(X), model(X), rtol=1e-4, atol=1e-5)


Pair = collections.namedtuple("Pair", "one two")


@dataclass
class Config:
    layers: list[nn.Module]


class Slotted:
    __slots__ = ("layers",)

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers


class Unregistered(nn.Module):
    """Registers the layers but is not registered itself."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.one, self.two = layers


HOLDERS: dict[str, Callable[[list[nn.Module]], Any]] = {
    "a Pair": lambda layers: Pair(*layers),
    "a deque": collections.deque,
    "a set": set,
    "a partial": lambda layers: [functools.partial(layer) for layer in layers],
    "a SimpleNamespace": lambda layers: types.SimpleNamespace(layers=layers),
    "a Config": Config,
    "a Slotted": Slotted,
    "a function": lambda layers: lambda x: layers[1](layers[0](x)),
    "a method": lambda layers: [layer.forward for layer in layers],
    "a ReferenceType": lambda layers: [weakref.ref(layer) for layer in layers],
    "the keys of a dict": lambda layers: dict.fromkeys(layers, 1),
    "a OrderedDict": lambda layers: collections.OrderedDict(enumerate(layers)),
    "a Unregistered that is not registered in the network": lambda layers: [Unregistered(layers)],
}


class Holding(nn.Module):
    def __init__(self, hold: Callable[[list[nn.Module]], Any]) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.held = hold([self.first, self.second])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(self.first(x)))
        return y


@pytest.mark.parametrize("kind", HOLDERS)
def test_layers_that_other_objects_hold_stay_dense(kind: str, tmp_path: Path) -> None:
    model = Holding(HOLDERS[kind]).eval()
    plan = plan_ranks(model, X, "svd", Fixed(2))
    assert plan.skipped == dict.fromkeys(
        ("first", "second"), f"{kind} also refers to it, and nothing can replace it there"
    )
    small = compress(model, plan)
    loaded = load_compressed(save_compressed(small, tmp_path / "small.safetensors"), Holding(HOLDERS[kind]))
    with torch.no_grad():
        assert torch.equal(loaded(X), small(X))


@pytest.mark.parametrize("hold", [list, tuple, lambda layers: {"a": layers[:1], "b": (layers[1],)}])
def test_layers_in_lists_dicts_and_tuples_are_replaced(hold: Callable[[list[nn.Module]], Any]) -> None:
    model = Holding(hold).eval()
    assert not unreplaceable_holders(model).keys() & {model.first, model.second}
    small: Any = compress(model, plan_ranks(model, X, "svd", Fixed(2)))
    held = small.held.values() if isinstance(small.held, dict) else [small.held]
    assert [layer for each in held for layer in each] == [small.first, small.second]


class Frozen(dict[str, Any]):
    """Refuses updates, as read-only configurations do."""

    def update(self, *given: Any, **named: Any) -> None:
        raise TypeError("this configuration cannot be changed")


class Sealed(dict[str, Any]):
    """Refuses item assignment, and therefore copying."""

    def __setitem__(self, *given: Any) -> None:
        raise TypeError("this configuration cannot be changed")


class FrozenList(list[int]):
    def __setitem__(self, *given: Any) -> None:
        raise TypeError("this list cannot be changed")


def self_referring() -> dict[str, Any]:
    held: dict[str, Any] = {"width": 64, "list": []}
    held["itself"] = held
    held["list"].append(held["list"])
    return held


@pytest.mark.parametrize(
    "make", [lambda: Frozen(width=64), lambda: Sealed(width=64), lambda: FrozenList([1, 2]), self_referring]
)
def test_containers_without_a_replaced_layer_are_never_written_to(make: Callable[[], Any]) -> None:
    model = Holding(lambda layers: make()).eval()
    small: Any = compress_at_full_rank(model)
    assert type(small.held) is type(model.held)
    assert len(small.held) == len(model.held)


class ReadsAttributes(nn.Module):
    """Checks the classes of its layers and reads their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 8, 4, 2, 1)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layers[0].get_parameter("weight")
        x = x.to(weight.device, weight.dtype)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                assert (layer.in_channels, layer.stride, layer.padding) == (8, (2, 2), (1, 1))
                x = nn.functional.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
            elif isinstance(layer, nn.ConvTranspose2d):
                x = layer(x) + nn.functional.conv_transpose2d(x, layer.weight, layer.bias, 2, 1)
            else:
                x = layer(x)
        pooled = x.mean((2, 3))
        y: Tensor = self.head(pooled) + pooled @ self.head.weight.t()
        return y


def test_layers_whose_attributes_are_read_can_be_factored() -> None:
    torch.manual_seed(0)
    model = ReadsAttributes().eval()
    model.layers[0](X)
    plan = plan_ranks(model, X, "svd", Fixed("full", only_if_smaller=False))
    assert set(plan.factored) == {"layers.2", "head"}  # forward reads layer 0 but never calls it
    small = compress_at_full_rank(model)
    before = {name: parameter.clone() for name, parameter in small.named_parameters()}
    small(X).sum().backward()
    factors = [p for name, p in small.named_parameters() if name.startswith(("layers.2", "head"))]
    assert all(parameter.grad is not None for parameter in factors)
    assert same_weights(small, compress(model, plan))
    assert all(torch.equal(parameter, before[name]) for name, parameter in small.named_parameters())


def test_a_lazy_layer_is_initialised_before_it_is_inspected() -> None:
    model = nn.Sequential(nn.LazyConv2d(16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    assert set(plan_ranks(model, X, "svd", Fixed(2)).factored) == {"0", "2"}


class TiedByAList(nn.Module):
    """Reads a layer's weight from a list, in which nothing can replace it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(64, 32), nn.Linear(64, 32)
        self.tied = [self.encoder.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x) @ self.tied[0])


def test_a_layer_whose_weight_is_held_elsewhere_stays_dense() -> None:
    plan = plan_ranks(TiedByAList(), torch.rand(2, 64), "svd", Fixed(2))
    assert "reads its weight, which something else" in plan.skipped["encoder"]
    assert "head" in plan.factored

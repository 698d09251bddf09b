from __future__ import annotations

import copy
import importlib
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.compression import compress
from common.deploy import fold_batchnorm
from common.network.copies import independent_copy
from common.planning import Fixed, plan_ranks
from common.torchvision_compat import torchvision
from tests.networks import lived_in, same_weights, tiny_cnn

X = torch.randn(2, 3, 8, 8)


class Keeps(nn.Module):
    """Keeps tensors with a history wherever a module can hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("scaled", torch.ones(4, requires_grad=True) * 2)
        self.seen: list[dict[str, tuple[Tensor, ...]]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.features = self.norm(self.conv(images))
        self.seen = [{"both": (images, self.features)}]
        return self.features * self.get_buffer("scaled").reshape(-1, 1, 1)


def run(model: nn.Module) -> Any:
    with torch.no_grad():
        return model.eval()(X)


def feature_extractor(model: nn.Module, nodes: dict[str, str]) -> Any:
    extraction = importlib.import_module(f"{torchvision.models.__name__}.feature_extraction")
    return extraction.create_feature_extractor(model, nodes)


def storages(model: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}


def test_tensors_with_a_history_come_without_it() -> None:
    model = Keeps()
    model(X).sum().backward()
    made = independent_copy(model)
    assert not made.features.requires_grad
    assert torch.equal(made.features, model.features)
    assert made.seen[0]["both"][1] is made.features  # one tensor stays one
    assert not made.get_buffer("scaled").requires_grad
    assert model.features.grad_fn is not None
    assert model.get_buffer("scaled").grad_fn is not None
    assert all(parameter.requires_grad for parameter in made.parameters())
    assert not storages(made) & storages(model)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.weight_norm])
def test_weights_that_a_hook_computes(wrap: Any) -> None:
    model = nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 8, 3))
    plan = plan_ranks(model, X, "svd", Fixed({"2": 2}))
    model.train()(X).sum().backward()
    small = compress(model, plan)
    small(X).sum().backward()  # it can still be trained
    model.eval()(X)
    fold_batchnorm(model, X)


@pytest.mark.parametrize("training", [True, False])
def test_a_feature_extractor_keeps_modes_and_attributes(training: bool) -> None:
    layers = OrderedDict(conv=nn.Conv2d(3, 4, 3), drop=nn.Dropout(), norm=nn.BatchNorm2d(4), last=nn.Conv2d(4, 8, 3))
    model = feature_extractor(lived_in(nn.Sequential(layers)), {"norm": "features"}).train(training)
    model.norm.eval()
    model.note = "mine"
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    made = independent_copy(model)
    assert [module.training for module in made.modules()] == [module.training for module in model.modules()]
    assert made.note == "mine"
    assert made.graph is (made.train_graph if training else made.eval_graph)
    assert made.graph.owning_module is made
    assert not storages(made) & storages(model)
    assert torch.equal(run(made)["features"], run(model)["features"])
    assert len(calls) == 2
    assert made.train().graph is made.train_graph


def test_a_graph_module_in_a_plain_list() -> None:
    teacher = torch.fx.symbolic_trace(lived_in(tiny_cnn())).eval()
    model = tiny_cnn()
    model.__dict__["teachers"] = [{"one": teacher}]
    made = independent_copy(model)
    (teachers,) = made.__dict__["teachers"]
    assert teachers["one"] is not teacher
    assert not any(module.training for module in teachers["one"].modules())
    assert torch.equal(run(teachers["one"]), run(teacher))


def test_a_compressed_feature_extractor_stays_in_evaluation_mode() -> None:
    layers = OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), act=nn.ReLU(), last=nn.Conv2d(4, 8, 3))
    model = feature_extractor(lived_in(nn.Sequential(layers)), {"act": "features"}).eval()
    small = compress(model, plan_ranks(model, X, "svd", Fixed("full", only_if_smaller=False)))
    assert not any(module.training for module in small.modules())
    torch.testing.assert_close(small(X)["features"], model(X)["features"], atol=1e-5, rtol=1e-5)
    assert torch.equal(small.get_buffer("norm.running_mean"), model.get_buffer("norm.running_mean"))


class Anew(nn.Module):
    """Makes its copy anew, and so in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def __deepcopy__(self, memo: dict[int, Any]) -> Anew:
        return Anew()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def test_a_copy_that_a_class_makes_keeps_the_modes() -> None:
    made = independent_copy(nn.Sequential(Anew(), nn.Conv2d(3, 3, 1)).eval())
    assert not any(module.training for module in made.modules())


class Holds(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.conv, self.value = nn.Conv2d(3, 3, 1), value

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (threading.Lock(), "lock"),
        ((each for each in "abc"), "generator"),
        ([{"deep": threading.Lock()}], "list"),
    ],
)
def test_what_cannot_be_copied_is_named(value: Any, kind: str) -> None:
    model = nn.Sequential(nn.ReLU(), Holds(value))
    with pytest.raises(ValueError, match=rf"attribute 'value' of module '1', a {kind}: cannot pickle"):
        independent_copy(model)
    with pytest.raises(ValueError, match=rf"attribute 'value' of the network \(Holds\), a {kind}: .* Set it to None"):
        independent_copy(model[1])


def test_an_open_file_is_named(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file, pytest.raises(ValueError, match="attribute 'value' of module '0'"):
        independent_copy(nn.Sequential(Holds(file)))


class Refuses(nn.Module):
    def __deepcopy__(self, memo: dict[int, Any]) -> Refuses:
        raise RuntimeError("there is only one")


def test_a_module_that_refuses_is_named() -> None:
    with pytest.raises(ValueError, match="because of module 'part', a Refuses: there is only one"):
        independent_copy(nn.Sequential(OrderedDict(part=Refuses())))


def test_what_can_be_copied_is_as_before() -> None:
    model = nn.Sequential(Holds(lambda x: x), Holds(torch.Generator()), nn.LSTM(3, 4), tiny_cnn()).train()
    model[3].eval()
    shared = nn.Conv2d(3, 3, 1)
    model.append(shared).append(shared)
    made, expected = independent_copy(model), copy.deepcopy(model)
    assert same_weights(made, expected)
    assert [module.training for module in made.modules()] == [module.training for module in model.modules()]
    assert made[4] is made[5]
    assert made[0].value is model[0].value
    assert not storages(made) & storages(model)

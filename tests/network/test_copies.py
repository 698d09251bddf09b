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


class StoresOutputs(nn.Module):
    """Stores tensors with a gradient history in every place where a module can hold them."""

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


def addresses(model: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}


def test_the_copy_has_no_gradient_history() -> None:
    model = StoresOutputs()
    model(X).sum().backward()
    copied = independent_copy(model)
    assert not copied.features.requires_grad
    assert torch.equal(copied.features, model.features)
    assert copied.seen[0]["both"][1] is copied.features  # a shared tensor stays shared
    assert not copied.get_buffer("scaled").requires_grad
    assert model.features.grad_fn is not None
    assert model.get_buffer("scaled").grad_fn is not None
    assert all(parameter.requires_grad for parameter in copied.parameters())
    assert not addresses(copied) & addresses(model)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.weight_norm])
def test_networks_whose_weights_a_hook_computes_can_be_compressed(wrap: Any) -> None:
    model = nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 8, 3))
    plan = plan_ranks(model, X, "svd", Fixed({"2": 2}))
    model.train()(X).sum().backward()
    small = compress(model, plan)
    small(X).sum().backward()  # training still works
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
    copied = independent_copy(model)
    assert [module.training for module in copied.modules()] == [module.training for module in model.modules()]
    assert copied.note == "mine"
    assert copied.graph is (copied.train_graph if training else copied.eval_graph)
    assert copied.graph.owning_module is copied
    assert not addresses(copied) & addresses(model)
    assert torch.equal(run(copied)["features"], run(model)["features"])
    assert len(calls) == 2
    assert copied.train().graph is copied.train_graph


def test_a_graph_module_in_a_plain_list_is_copied() -> None:
    teacher = torch.fx.symbolic_trace(lived_in(tiny_cnn())).eval()
    model = tiny_cnn()
    model.__dict__["teachers"] = [{"one": teacher}]
    copied = independent_copy(model)
    (teachers,) = copied.__dict__["teachers"]
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


class BuildsCopy(nn.Module):
    """Copies itself by building a new module, which is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def __deepcopy__(self, memo: dict[int, Any]) -> BuildsCopy:
        return BuildsCopy()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def test_modes_are_kept_when_a_class_builds_its_own_copy() -> None:
    copied = independent_copy(nn.Sequential(BuildsCopy(), nn.Conv2d(3, 3, 1)).eval())
    assert not any(module.training for module in copied.modules())


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
def test_an_attribute_that_cannot_be_copied_is_named(value: Any, kind: str) -> None:
    model = nn.Sequential(nn.ReLU(), Holds(value))
    with pytest.raises(ValueError, match=rf"attribute 'value' of module '1', a {kind}: cannot pickle"):
        independent_copy(model)
    with pytest.raises(ValueError, match=rf"attribute 'value' of the network \(Holds\), a {kind}: .* Set it to None"):
        independent_copy(model[1])


def test_an_open_file_is_named(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file, pytest.raises(ValueError, match="attribute 'value' of module '0'"):
        independent_copy(nn.Sequential(Holds(file)))


class RefusesCopy(nn.Module):
    def __deepcopy__(self, memo: dict[int, Any]) -> RefusesCopy:
        raise RuntimeError("there is only one")


def test_a_module_that_refuses_to_be_copied_is_named() -> None:
    with pytest.raises(ValueError, match="because of module 'part', a RefusesCopy: there is only one"):
        independent_copy(nn.Sequential(OrderedDict(part=RefusesCopy())))


def test_the_copy_equals_that_of_deepcopy_where_deepcopy_works() -> None:
    model = nn.Sequential(Holds(lambda x: x), Holds(torch.Generator()), nn.LSTM(3, 4), tiny_cnn()).train()
    model[3].eval()
    shared = nn.Conv2d(3, 3, 1)
    model.append(shared).append(shared)
    copied, expected = independent_copy(model), copy.deepcopy(model)
    assert same_weights(copied, expected)
    assert [module.training for module in copied.modules()] == [module.training for module in model.modules()]
    assert copied[4] is copied[5]
    assert copied[0].value is model[0].value
    assert not addresses(copied) & addresses(model)

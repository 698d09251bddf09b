from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from common.data import DataBundle, load_data
from common.models import build_model
from common.training.first_pass import check_network
from tests.networks import Returning, TinyCNN, tiny_cnn, tiny_digits


@dataclass
class Prediction:
    logits: Tensor
    boxes: Tensor


def test_a_network_that_fits_is_left_as_it_was() -> None:
    inner = tiny_cnn()
    model = nn.Sequential(inner, nn.Dropout()).train()
    inner.stem.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_network(model, tiny_digits())
    assert torch.equal(torch.rand(2), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x, _: OrderedDict(out=x, f=x), r"an OrderedDict \(keys out, f\); wrap it in a module that picks one"),
        (lambda x, _: {"out": x, "aux": x}, r"a dict \(keys out, aux\)"),
        (lambda x, _: Prediction(x, x), r"a Prediction \(fields logits, boxes\)"),
        (lambda x, _: [], r"a list \(of length 0\)"),
        (lambda x, training: (x, x[0]) if training else x, r"a tuple \(of length 2: Tensor, Tensor\)"),
        (lambda x, training: x if training else (x, x), r"a tuple \(of length 2: Tensor, Tensor\)"),
        (lambda x, _: None, "None; give it a forward that returns its output"),
    ],
)
def test_a_network_must_return_one_tensor(make: Callable[[Tensor, bool], object], said: str) -> None:
    with pytest.raises(ValueError, match=f"^the network must return one tensor, but it returns {said}"):
        check_network(Returning(make), tiny_digits())


def test_outputs_in_training_mode_are_checked_before_training() -> None:
    model = Returning(lambda x, training: (x, x[0]) if training else x).eval()
    norm = model.get_submodule("body.norm")
    check_network(model, tiny_digits(), training=False)
    with pytest.raises(ValueError, match="a tuple"):
        check_network(model, tiny_digits())
    assert norm.get_buffer("num_batches_tracked") == 0
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    "make", [lambda x, _: OrderedDict(out=x), lambda x, training: (x, x / 2) if training else x, lambda x, _: [x]]
)
def test_one_tensor_in_a_container_and_auxiliary_heads_are_served(make: Callable[[Tensor, bool], object]) -> None:
    check_network(Returning(make), tiny_digits())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda x: x[:, :5], "the network has outputs for 5 classes and the data 'digits' has 10; build it for 10"),
        (lambda x: x.argmax(1), r"must return logits in floating point, it returns torch\.int64"),
        (lambda x: x[:, 0], r"logits \(2,\) and targets \(2,\): they must be \(N, classes\) and \(N,\)"),
        (lambda x: x[..., None, None], r"logits \(2, 10, 1, 1\) and targets \(2,\): they must be"),
        (lambda x: x[:1], r"logits \(1, 10\) and targets \(2,\): they must be"),
    ],
)
def test_outputs_must_fit_the_classes(make: Callable[[Tensor], Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_network(Returning(lambda x, _: make(x)), tiny_digits())


def test_more_outputs_than_classes_are_noted_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = TinyCNN()
    model.head = nn.Linear(32, 23)
    for _ in range(2):
        check_network(model, tiny_digits())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the network has outputs for 23 classes and the data 'digits' has 10: its first 10 outputs")


def test_masks_need_an_output_for_each_class() -> None:
    data = load_data("phantoms", image_size=16, limit=4, batch_size=2)
    check_network(build_model("unet", 1, width=4, depth=1), data)
    with pytest.raises(ValueError, match="outputs for 2 classes and the data 'phantoms' has 1"):
        check_network(build_model("unet", 2, width=4, depth=1), data)
    with pytest.raises(ValueError, match=r"logits \(2, 1, 8, 8\) and targets \(2, 1, 16, 16\)"):
        check_network(nn.Conv2d(3, 1, 2, stride=2), data)


def test_one_image_is_enough() -> None:
    single = DataLoader(TensorDataset(torch.randn(1, 3, 8, 8), torch.tensor([9])), batch_size=1)
    data = DataBundle.from_loaders(single, single, single)
    check_network(nn.Sequential(tiny_cnn(), nn.BatchNorm1d(10)), data)


class Averaging(nn.Module):
    """A network with a buffer that it replaces, one that it resizes, and one that is expanded from a single number."""

    mean: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny_cnn()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("seen", torch.zeros(0))
        self.register_buffer("scale", torch.ones(1).expand(10))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
            self.seen.resize_(3).fill_(1)
        return self.body(x)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, nn.Sequential])
def test_buffers_of_any_kind_are_left_as_they_were(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(Averaging().eval())
    before = {name: (tensor, tensor.clone()) for name, tensor in model.named_buffers()}
    check_network(model, tiny_digits())
    after = dict(model.named_buffers())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, (_, value) in before.items())

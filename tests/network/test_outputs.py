from __future__ import annotations

import re
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from common.network.outputs import single_tensor, training_tensor

x = torch.ones(2, 3)


@dataclass
class Prediction:
    logits: Tensor
    boxes: Tensor | list[Tensor]


Heads = namedtuple("Heads", ["logits", "auxiliary"])


def test_a_tensor_is_returned_unchanged() -> None:
    parameter = nn.Parameter(x)
    assert single_tensor(x, "the network") is x
    assert single_tensor(parameter, "the network") is parameter


@pytest.mark.parametrize(
    "output", [OrderedDict(out=x), {0: x}, [x], (x, None), Heads(x, None), Prediction(x, []), {"a": {"b": [3, x]}}]
)
def test_the_only_tensor_in_a_container_is_the_output(output: object) -> None:
    assert single_tensor(output, "the network") is x
    assert training_tensor(output, "the network") is x


def test_in_training_the_first_of_several_heads_is_the_main_one() -> None:
    assert training_tensor(Heads(x, x + 1), "the network") is x
    assert training_tensor(OrderedDict(out=x, aux=x + 1), "the network") is x
    with pytest.raises(ValueError, match=r"the network must return one tensor, but it returns a tuple \(of length 2"):
        training_tensor((x, x[0]), "the network")


@pytest.mark.parametrize(
    ("output", "description"),
    [
        (OrderedDict(out=x, aux=x), "an OrderedDict (keys out, aux); wrap it in a module that picks one"),
        ({"logits": [x, x]}, "a dict (keys logits); wrap it in a module that picks one"),
        ({}, "a dict (no keys); wrap it in a module that picks one"),
        ((x, x), "a tuple (of length 2: Tensor, Tensor); wrap it in a module that picks one"),
        ((), "a tuple (of length 0); wrap it in a module that picks one"),
        (Heads(x, x), "a Heads (fields logits, auxiliary); wrap it in a module that picks one"),
        (Prediction(x, x), "a Prediction (fields logits, boxes); wrap it in a module that picks one"),
        (None, "None; give it a forward that returns its output"),
        (x.numpy(), "a ndarray; give it a forward that returns its output"),
        (
            [x] * 10,
            f"a list (of length 10: {', '.join(['Tensor'] * 8)} and 2 more); wrap it in a module that picks one",
        ),
    ],
)
def test_any_other_output_is_described(output: object, description: str) -> None:
    message = re.escape(f"the network must return one tensor, but it returns {description}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        single_tensor(output, "the network")


def test_the_error_names_the_module() -> None:
    with pytest.raises(ValueError, match="the teacher must return one tensor, but it returns a tuple"):
        single_tensor((x, x), "the teacher")

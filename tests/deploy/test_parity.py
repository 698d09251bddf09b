from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.deploy import align_ranks, fold_batchnorm, merge_factors
from common.deploy.parity import difference, example, run, same_outputs
from tests.networks import lived_in, same_weights, tiny_cnn

X = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_dtypes(dtype: torch.dtype) -> None:
    model, x = lived_in(tiny_cnn()).to(dtype), X.to(dtype)
    folded = fold_batchnorm(model, x)
    assert isinstance(folded.get_submodule("norm"), nn.Identity)
    shown = example(model, x)
    assert shown is not None
    assert same_outputs(run(folded, x), shown)


def test_one_image_counts_as_a_batch() -> None:
    folded = fold_batchnorm(lived_in(tiny_cnn()), X[0])
    assert isinstance(folded.get_submodule("norm"), nn.Identity)


@pytest.mark.parametrize("call", [fold_batchnorm, merge_factors, lambda model, x: align_ranks(model, 8, x)])
@pytest.mark.parametrize(
    ("x", "named"),
    [(torch.randn(2, 4, 8, 8), r"\(2, 4, 8, 8\), float32"), (X.double(), "float64"), (X[0, 0], r"\(8, 8\)")],
)
def test_an_input_that_the_network_does_not_take_is_named(call: Any, x: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=f"the network does not take x of shape .*{named}"):
        call(lived_in(tiny_cnn()), x)


class TakesTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.body(one + other)


def test_a_network_that_takes_no_image_stays_as_it_is() -> None:
    model = lived_in(TakesTwo())
    folded = fold_batchnorm(model)
    assert same_weights(folded, model)
    with torch.no_grad():
        assert torch.equal(folded(X, X), model(X, X))
    with pytest.raises(ValueError, match=r"does not take x .* missing 1 required positional argument: 'other'"):
        fold_batchnorm(model, X)


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = tiny_cnn()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + torch.rand_like(x))


def test_the_callers_random_numbers_are_left_alone() -> None:
    model, state = lived_in(Draws()), torch.get_rng_state()
    align_ranks(merge_factors(fold_batchnorm(model, X), X), 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_differences_by_hand() -> None:
    values, inf, nan = torch.tensor([1.0, -4.0, 2.0]), float("inf"), float("nan")
    assert difference(values, values) == 0.0
    assert difference(torch.tensor([1.0, -4.0, 1.0]), values) == 0.25
    assert difference(values[:2], values) == inf
    assert difference(values.double(), values) == inf
    assert difference(torch.tensor([inf, nan, 2.5]), torch.tensor([inf, nan, 2.0])) == 0.25
    assert difference(torch.tensor([nan, 1.0]), torch.tensor([1.0, 1.0])) == inf
    assert difference(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25
    assert difference(torch.tensor([True, False]), torch.tensor([True, True])) == 0.5
    assert difference(torch.tensor([3 + 4j]), torch.tensor([0 + 4j])) == 0.75
    assert difference(values[:0], values[:0]) == 0.0

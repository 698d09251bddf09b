from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from common.network import profile
from common.network.counting import count_operations
from common.planning import Budget, Energy, plan_ranks


class TextReader(nn.Module):
    """Text recognition: a convolution, a recurrent layer, a head."""

    def __init__(self, recurrent: nn.Module, width: int) -> None:
        super().__init__()
        self.conv, self.rnn, self.head = nn.Conv2d(1, 16, 3, padding=1), recurrent, nn.Linear(width, 40)

    def forward(self, x: Tensor) -> Tensor:
        columns = torch.relu(self.conv(x)).flatten(1, 2).transpose(1, 2)
        y: Tensor = self.head(self.rnn(columns)[0])
        return y


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("recurrent", "width", "macs"),
    [
        (nn.LSTM(128, 64, batch_first=True), 64, 4 * 64 * (128 + 64)),
        (nn.GRU(128, 64, batch_first=True), 64, 3 * 64 * (128 + 64)),
        (nn.RNN(128, 64, batch_first=True), 64, 64 * (128 + 64)),
        (nn.LSTM(128, 64, bidirectional=True, batch_first=True), 128, 2 * 4 * 64 * (128 + 64)),
        (nn.LSTM(128, 64, 2, batch_first=True, bias=False), 64, 4 * 64 * (128 + 64 + 64 + 64)),
        (nn.LSTM(128, 64, dtype=torch.float64, batch_first=True), 64, 4 * 64 * (128 + 64)),
    ],
)
def test_recurrent_layers_are_counted(recurrent: nn.Module, width: int, macs: int, batch: int) -> None:
    model = TextReader(recurrent, width).eval().to(next(recurrent.parameters()).dtype)
    found = profile(model, torch.randn(batch, 1, 8, 20, dtype=next(recurrent.parameters()).dtype))
    assert found.layers["rnn"].macs == 20 * macs
    assert found.macs == 20 * macs + 16 * 9 * 160 + 20 * width * 40
    assert not found.uncounted


def test_attention_is_counted_fused_or_not() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return y

    found = count_operations(Attends().eval(), torch.randn(2, 10, 32))
    assert found.macs == 10 * 4 * 32 * 32 + 2 * 10 * 10 * 32
    fused = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    assert count_operations(fused, torch.randn(2, 10, 32)).macs == found.macs + 2 * 10 * 32 * 64


class AppliesFunction(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.function, self.conv, self.weight = function, nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        self.function(self.weight, x[:, 0, :5, :5])
        y: Tensor = self.conv(x)
        return y


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda weight, x: weight.mv(x[0, 0]), 30),
        (lambda weight, x: torch.addmv(weight[:, 0], weight, x[0, 0]), 30),
        (lambda weight, x: weight[0] @ x[0, 0], 5),
        (lambda weight, x: nn.functional.bilinear(x[0], x[0], torch.ones(3, 5, 5)), 5 * 3 * 5 * 5),
    ],
)
def test_small_products_are_counted(function: Callable[[Tensor, Tensor], object], macs: int) -> None:
    found = count_operations(AppliesFunction(function), torch.randn(1, 3, 6, 6))
    assert found.macs == 36 * 12 + macs
    assert not found.uncounted


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda weight, x: torch.fft.rfft2(x), "fft"),
        (lambda weight, x: torch.cdist(x, x), "cdist"),
        (lambda weight, x: torch.linalg.svd(x), "linalg"),
    ],
)
def test_operators_that_cannot_be_counted_are_named(function: Callable[[Tensor, Tensor], object], named: str) -> None:
    model, x = AppliesFunction(function), torch.randn(2, 3, 6, 6)
    with pytest.warns(UserWarning, match=f"the MACs of these operators are unknown and not counted: .*{named}"):
        found = profile(model, x)
    assert any(named in operator for operator in found.uncounted)
    with pytest.warns(UserWarning, match=f"leaves out operators whose MACs are not known: .*{named}"):
        plan_ranks(model, x, "svd", Budget(macs=1.0))


class Expanded(nn.Module):
    """Expands one parameter into tokens for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 4, 16))
        self.mix, self.conv, self.spare = nn.Linear(16, 16), nn.Conv2d(3, 16, 3), nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.mix(self.queries.expand(len(x), -1, -1))
        return tokens @ self.conv(x).mean((2, 3))[:, :, None]


@pytest.mark.parametrize("requires_grad", [True, False])
def test_expanded_parameters_are_counted_as_in_use(requires_grad: bool) -> None:
    model, x = Expanded().eval().requires_grad_(requires_grad), torch.randn(2, 3, 8, 8, requires_grad=requires_grad)
    found = profile(model, x)
    assert found.macs == 16 * 27 * 36 + 4 * 16 * 16 + 4 * 16
    assert found.params - found.params_in_use == 7 * 7 + 7
    assert all(parameter.requires_grad is requires_grad for parameter in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_ranks(model, x, "svd", Budget(macs=0.8, params=0.9))


def test_one_image_without_a_batch_axis_is_a_batch_of_one() -> None:
    model, image = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval(), torch.randn(3, 9, 9)
    assert profile(model, image) == profile(model, image[None])
    plans = [plan_ranks(model, x, "svd", Budget(macs=0.5)) for x in (image, image[None])]
    assert plans[0] == plans[1]


class TwoInputs(nn.Conv2d):
    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input + other)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Conv2d(3, 4, 1), [torch.zeros(1, 3, 8, 8)], r"^x=list: it must be one tensor of shape \(N, C, H, W\)"),
        (nn.Conv2d(3, 4, 1), torch.zeros(0, 3, 8, 8), r"^x has shape \(0, 3, 8, 8\); it must be \(N, C, H, W\)"),
        (nn.Conv2d(3, 4, 1), torch.zeros(8), r"^x has shape \(8,\); it must be"),
        (nn.Conv2d(3, 4, 1), torch.zeros(1, 5, 8, 8), r"does not take x of shape \(1, 5, 8, 8\) and dtype float32: "),
        (nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8).double(), "does not take x of shape .* and dtype float64: "),
        (nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8).int(), "does not take x of shape .* and dtype int32: "),
        (
            nn.Sequential(TwoInputs(3, 4, 1)),
            torch.zeros(1, 3, 8, 8),
            "wrap a network with several inputs in a module that",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_a_message(model: nn.Module, x: Tensor, message: str) -> None:
    for call in (lambda: profile(model, x), lambda: plan_ranks(nn.Sequential(model), x, "svd", Energy())):
        with pytest.raises(ValueError, match=message):
            call()

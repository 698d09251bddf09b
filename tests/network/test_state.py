from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor, nn

from common.compression import compress, load_compressed, save_compressed
from common.network import profile
from common.network.state import Snapshot, decoded, encoded_state
from common.planning import Fixed, plan_ranks
from tests.networks import same_weights

X = torch.randn(2, 3, 8, 8)


class WithExtraState(nn.Module):
    """Holds extra state that need not be a tensor."""

    def __init__(self, held: Any = None) -> None:
        super().__init__()
        self.conv, self.again, self.held = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), held

    def get_extra_state(self) -> Any:
        return self.held

    def set_extra_state(self, state: Any) -> None:
        self.held = state

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.again(self.conv(x))
        return y


EXTRA_STATES: list[Callable[[], Any]] = [
    lambda: {"passes": 3, "names": ["a", None, 0.5], 7: (1, True)},
    lambda: {"scale": torch.arange(4.0), "inner": {"kind": torch.float16, "raw": b"\x00\xff"}},
    lambda: [torch.zeros(2, dtype=torch.int8), torch.quantize_per_tensor(torch.randn(3, 3), 0.1, 2, torch.qint8)],
]


@pytest.mark.filterwarnings("ignore")  # PyTorch warns that this quantization is deprecated
@pytest.mark.parametrize("make_state", EXTRA_STATES)
@pytest.mark.parametrize("compressed", [True, False])
def test_extra_state_survives_saving(make_state: Callable[[], Any], compressed: bool, tmp_path: Path) -> None:
    held = make_state()
    model: nn.Module = WithExtraState(held).eval()
    assert profile(model, X).params == sum(parameter.numel() for parameter in model.parameters())
    if compressed:
        model = compress(model, plan_ranks(model, X, "svd", Fixed(2)))
    loaded: Any = load_compressed(save_compressed(model, tmp_path / "model.safetensors"), WithExtraState())
    assert torch.equal(loaded(X), model(X))
    assert str(loaded.held) == str(held)


def test_byte_streams_survive_encoding() -> None:
    model = WithExtraState(io.BytesIO(b"content"))
    values, tensors = encoded_state(model)
    assert decoded(json.loads(json.dumps(values["_extra_state"])), tensors).getvalue() == b"content"


@pytest.mark.filterwarnings("ignore")  # PyTorch warns that this quantization is deprecated
@pytest.mark.parametrize("qscheme", ["default", "channel"])
def test_quantized_layers_survive_saving(qscheme: str, tmp_path: Path) -> None:
    def quantized(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10)).eval()
        kind = torch.ao.quantization.default_dynamic_qconfig
        if qscheme == "channel":
            kind = torch.ao.quantization.per_channel_dynamic_qconfig
        found: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear: kind})
        return found

    model = quantized(0)
    path = save_compressed(model, tmp_path / "quantized.safetensors")
    loaded = load_compressed(path, quantized(1))
    with torch.no_grad():
        assert torch.equal(loaded(X), model(X))


class Opaque:
    pass


@pytest.mark.parametrize("held", [Opaque(), {"deep": [Opaque()]}, {1, 2}])
def test_state_that_needs_pickle_is_refused_with_the_module_name(held: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Identity(), WithExtraState(held))
    with pytest.raises(
        ValueError, match=r"^module '1' \(WithExtraState\) has state that is not a tensor \(a (Opaque|set)\)"
    ):
        save_compressed(model, tmp_path / "new" / "model.safetensors")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "state",
    [
        '{"_extra_state": {"kind": "module", "value": "os"}}',
        '{"_extra_state": {"kind": "tensor", "value": "none"}}',
        '{"_extra_state": {"kind": "dtype", "value": "torch.load"}}',
        '{"_extra_state": {"kind": "bytes", "value": 3}}',
        '{"_extra_state": [1]}',
        '{"_extra_state": {"kind": "quantized", "value": "conv.weight", "scale": "a", "zero_point": 0}}',
        "[]",
    ],
)
def test_invalid_state_is_refused_with_a_message(state: str, tmp_path: Path) -> None:
    path = save_compressed(WithExtraState(), tmp_path / "model.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        held = file.metadata()
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, held | {"state": state})
    with pytest.raises(ValueError, match=r"^weights='.*model\.safetensors' does not describe a network"):
        load_compressed(path, WithExtraState())


def test_values_of_expanded_buffers_are_written_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.register_buffer("mean", torch.tensor([0.5]).view(1, 1, 1, 1).expand(1, 3, 1, 1), persistent=False)
    before, kept = copy.deepcopy(model), Snapshot(model)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model[1].buffers(), model.get_buffer("mean")[:, :1]):
            tensor.fill_(7)
    assert not same_weights(model, before)
    kept.restore()
    assert same_weights(model, before)
    assert torch.equal(model.get_buffer("mean"), before.get_buffer("mean"))

"""Attention whose projections are called as layers: equal outputs, and every step of compression."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.calibration import refit
from common.compression import compress, load_compressed, save_compressed
from common.deploy import export_onnx, onnx_session
from common.network import profile
from common.network.attention import CallsItsLayers, SeparateAttention, join_projections, separate_projections
from common.network.lowrank import LowRank
from common.network.shapes import trace_layers
from common.planning import Budget, Fixed, plan_ranks
from common.shrink import ShrinkSteps, shrink
from common.torchvision_compat import torchvision
from tests.networks import same_weights

X = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def noisy(network: nn.Module) -> nn.Module:
    """Give every parameter, biases too, random values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def vision_transformer() -> nn.Module:
    return noisy(torchvision.models.VisionTransformer(16, 8, 2, 2, 32, 64, num_classes=5))


def swin() -> nn.Module:
    return noisy(torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 4], [2, 2], num_classes=5))


NETWORKS = {"vit": vision_transformer, "swin": swin}
ATTENTION = {
    "vit": [f"encoder.layers.encoder_layer_0.self_attention.{name}_proj" for name in ("q", "k", "v", "out")],
    "swin": ["features.1.0.attn.qkv", "features.1.0.attn.proj"],
}


class Attends(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, **settings)

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.attention(*given, **named)


def check_equal(one: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"kdim": 12, "vdim": 20}], ids=str)
def test_separate_attention_equals_pytorchs(settings: dict[str, Any], batch_first: bool) -> None:
    torch.manual_seed(0)
    whole = noisy(Attends(batch_first=batch_first, **settings))
    parts = separate_projections(whole)
    assert isinstance(parts.attention, SeparateAttention)

    def tokens(count: int, width: int) -> Tensor:
        made = torch.randn(3, count, width)
        return made if batch_first else made.transpose(0, 1)

    given = tokens(5, 16), tokens(7, settings.get("kdim", 16)), tokens(7, settings.get("vdim", 16))
    padding = torch.arange(7).expand(3, 7) > torch.tensor([[6], [4], [3]])
    masks = (None, torch.triu(torch.ones(5, 7), 3).bool(), torch.randn(12, 5, 7))
    for mask in masks:
        for pad in (None, padding if mask is None or mask.dtype == torch.bool else torch.randn(3, 7)):
            for options in ({"need_weights": False}, {"average_attn_weights": False}, {}):
                named = {"key_padding_mask": pad, "attn_mask": mask, **options}
                check_equal(parts(*given, **named), whole(*given, **named))
    single = [part.select(0 if batch_first else 1, 0) for part in given]
    check_equal(parts(*single, key_padding_mask=padding[0]), whole(*single, key_padding_mask=padding[0]))
    with pytest.raises(RuntimeError, match="give attn_mask too"):
        parts(*given, is_causal=True)
    join_projections(parts)
    assert type(parts.attention) is nn.MultiheadAttention
    assert same_weights(parts, whole)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_takes_separate_attention_with_padding_too() -> None:
    encoder = noisy(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2))
    parts, x, padding = separate_projections(encoder), torch.randn(2, 5, 16), torch.arange(5).expand(2, 5) > 3
    with torch.no_grad():
        found, wanted = parts(x, src_key_padding_mask=padding), encoder(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], wanted[~padding], rtol=1e-4, atol=1e-5)
    assert {"layers.0.self_attn.q_proj", "layers.1.linear2"} <= trace_layers(parts, x).keys()


@pytest.mark.parametrize("kind", NETWORKS)
def test_full_rank_is_exact_and_budgets_hold(kind: str) -> None:
    model = NETWORKS[kind]()
    parts = separate_projections(model)
    assert not set(ATTENTION[kind]) & trace_layers(model, X[:1]).keys()
    before, cost = profile(model, X[:1]), profile(parts, X[:1])
    assert (cost.params, cost.macs) == (before.params, before.macs)
    whole = compress(parts, plan_ranks(parts, X[:1], "svd", Fixed("full", only_if_smaller=False)))
    assert all(isinstance(whole.get_submodule(name), LowRank) for name in ATTENTION[kind])
    with torch.no_grad():
        torch.testing.assert_close(whole(X), model(X), rtol=1e-3, atol=1e-4)
    small = compress(parts, plan_ranks(parts, X[:1], "svd", Budget(params=0.5)))
    assert profile(small, X[:1]).params <= 0.5 * before.params
    for made in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        with torch.no_grad():
            assert torch.equal(made(X), small(X))


@pytest.mark.parametrize("kind", NETWORKS)
def test_shrink_factors_attention_and_its_file_is_loaded(kind: str, tmp_path: Path) -> None:
    model = NETWORKS[kind]()
    found = shrink(model, [X], Budget(macs=0.5), "svd", steps=ShrinkSteps(measure=False, improve=0))
    assert set(ATTENTION[kind]) <= found.plan.layers.keys()
    factored = [name for name in found.plan.factored if name.endswith(("_proj", ".qkv", ".proj"))]
    assert factored
    assert found.after.macs <= 0.5 * found.before.macs
    assert found.divergence < 1
    loaded = load_compressed(save_compressed(found.model, tmp_path / "small.safetensors"), model)
    assert same_weights(loaded, found.model)
    with torch.no_grad():
        assert torch.equal(loaded(X), found.model.eval()(X))
    assert all(isinstance(loaded.get_submodule(name), LowRank) for name in factored)
    assert refit(found.model, model, [X])


def test_attention_that_stays_dense_is_joined_again() -> None:
    model = vision_transformer()
    state = torch.get_rng_state()
    found = shrink(model, [X], Fixed({"encoder.layers.encoder_layer_1.mlp.0": 4}), "svd")
    assert torch.equal(torch.get_rng_state(), state)
    kinds = [type(module) for module in found.model.modules() if isinstance(module, nn.MultiheadAttention)]
    assert kinds == [nn.MultiheadAttention] * 2


class Reads(nn.Module):
    """Reads the weights of its layers: one with its bias, one with another, and one of a layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.other, self.bare = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.own.weight, self.own.bias)
        x = F.linear(input=x, weight=self.other.weight, bias=2 * self.other.bias)
        return F.linear(x, self.bare.weight)


def test_products_with_a_layers_weight_and_bias_become_calls() -> None:
    model = noisy(nn.Sequential(Reads(), nn.Linear(8, 8)))
    parts, x = separate_projections(model), torch.randn(2, 8)
    assert isinstance(parts.get_submodule("0"), CallsItsLayers)
    assert isinstance(parts.get_submodule("0"), Reads)
    assert trace_layers(parts, x).keys() == {"0.own", "0.bare", "1"}
    with torch.no_grad():
        assert torch.equal(parts(x), model(x))
    reasons = {name: group.reason for group in plan_ranks(parts, x, "svd", Fixed(2)).untouched for name in group.names}
    assert reasons["0.other"] == "its weight is used without calling it"


def test_an_onnx_file_holds_both_kinds(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reads, self.rows = Reads(), nn.Linear(8, 16)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.rows(self.reads(x))
            y: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return y

    parts, x = separate_projections(noisy(Block())), torch.randn(2, 5, 8)
    small = compress(parts, plan_ranks(parts, x, "svd", Fixed(2, only_if_smaller=False)))
    assert sum(isinstance(module, LowRank) for module in small.modules()) == 7
    session = onnx_session(export_onnx(small, tmp_path / "small.onnx", x))
    with torch.no_grad():
        wanted = small(x)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), wanted)


@pytest.mark.parametrize("settings", [{"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_other_attention_stays_as_it_is_and_says_so(settings: dict[str, Any]) -> None:
    model = Attends(**settings)
    assert separate_projections(model) is model
    hooked, first, second = Attends(), Attends(), Attends()
    hooked.attention.register_forward_hook(lambda *_: None)
    second.attention.in_proj_weight = first.attention.in_proj_weight
    shared = nn.Sequential(first, second)
    assert separate_projections(hooked) is hooked
    assert separate_projections(shared) is shared
    vit = vision_transformer()
    (group,) = (g for g in plan_ranks(vit, X[:1], "svd", Fixed(4)).untouched if g.kind == "MultiheadAttention")
    assert group.reason.startswith("its projections are one weight; common.network.attention.separate_projections")

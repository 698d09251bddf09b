from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from common.compression import save_compressed
from common.latency import measure_latency
from common.models import build_model
from common.network import profile
from tests.networks import tiny_cnn


def test_counts_match_those_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 49, 5))
    cost = profile(model, torch.randn(4, 3, 16, 16))
    assert cost.params == (3 * 8 * 9 + 8) + 16 + (392 * 5 + 5)
    assert cost.macs == 3 * 8 * 9 * 49 + 392 * 5
    assert {name: (layer.params, layer.macs) for name, layer in cost.layers.items()} == {
        "0": (224, 3 * 8 * 9 * 49),
        "1": (16, 0),
        "3": (1965, 1960),
    }


def test_resnet18_has_the_published_macs() -> None:
    """ResNet-18 has 1.81 G multiply-accumulates at 224 x 224; He et al. (2016) state 1.8 G."""
    cost = profile(build_model("resnet18", 1000), torch.randn(1, 3, 224, 224))
    assert cost.macs == 1_814_073_344
    assert sum(layer.macs for layer in cost.layers.values()) == cost.macs
    assert sum(layer.params for layer in cost.layers.values()) == cost.params


def test_size_matches_the_saved_file(tmp_path: Path) -> None:
    """The file also holds the plan and the builder's arguments."""
    model = tiny_cnn()
    size = save_compressed(model, tmp_path / "tiny.safetensors").stat().st_size
    assert 0 < size - profile(model, torch.randn(1, 3, 8, 8)).size_bytes < 1000


def test_profiling_does_not_change_the_network() -> None:
    model = tiny_cnn().train()
    profile(model, torch.randn(2, 3, 8, 8))
    measure_latency(model, torch.randn(2, 3, 8, 8), rounds=3, round_s=0.001)
    assert model.training
    assert model.norm.num_batches_tracked == 0


def test_a_shared_layer_is_counted_under_one_name() -> None:
    shared = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    cost = profile(model, torch.randn(1, 3, 4, 4))
    assert {name: layer.macs for name, layer in cost.layers.items()} == {"0.0": cost.macs}
    assert cost.macs == 2 * 9 * 16
    alone = profile(shared, torch.randn(1, 3, 4, 4))
    assert [layer.macs for layer in alone.layers.values()] == [alone.macs] == [9 * 16]


def test_attention_is_counted_in_evaluation_mode() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    # Query, key, value and output projections; two products with the 5 x 5 scores; two Linear layers.
    assert profile(model, torch.randn(2, 5, 16)).macs == 5 * 4 * 16 * 16 + 2 * 25 * 16 + 2 * 5 * 16 * 32

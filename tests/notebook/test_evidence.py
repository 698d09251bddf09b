from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.compression import compress, save_compressed
from common.data import load_data
from common.data.masked_images import MaskedImages
from common.models import build_model
from common.notebook.evidence import chosen_ranks, compare_networks, layer_table, predict_masks
from common.planning import Fixed, plan_ranks
from common.planning.decompositions import Decompositions
from common.reporting.figures.outlines import sample_masks
from common.training import evaluate
from tests.networks import tiny_cnn, tiny_digits


def test_the_table_of_layers_adds_up() -> None:
    data, model = tiny_digits(), tiny_cnn(width=32)
    kept = Decompositions(model)
    plan = plan_ranks(model, data.example(), "svd", Fixed(4), decompositions=kept)
    table = layer_table(model, data, [plan], kept).set_index("Layer")
    small = compress(model, plan, decompositions=kept)
    for name in plan.factored:
        factors = sum(parameter.numel() for parameter in small.get_submodule(name).parameters())
        dense = sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
        assert table.loc[name, "Parameters"] == dense
        assert table.loc[name, "Params Red."] == pytest.approx(1 - factors / dense)
        weight = dict(model.named_parameters())[f"{name}.weight"].detach().flatten(1)
        values = torch.linalg.svdvals(weight.double())
        error = float((values[4:].square().sum() / values.square().sum()).sqrt())
        assert table.loc[name, "Error"] == pytest.approx(error, rel=1e-4)
    for name, reason in plan.skipped.items():
        assert (table.loc[name, "Method"], table.loc[name, "Why dense"]) == ("dense", reason)
    assert chosen_ranks([plan]) == dict.fromkeys(plan.factored, 4)
    assert chosen_ranks([]) == {}
    assert layer_table(model, data, [], kept).empty


def test_masks_of_networks_follow_their_logits(tmp_path: Path) -> None:
    data = load_data("phantoms", tmp_path, image_size=32, batch_size=8, limit=24)

    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bias.expand(len(x), 1, *x.shape[2:])

    found = predict_masks({"all": Everything()}, data, count=3)
    assert list(found) == ["image", "truth", "all"]
    assert all(picture.shape == (3, 32, 32) for picture in found.values())
    assert found["truth"].any((1, 2)).all()
    assert (found["all"] == 1).all()
    assert 0 <= found["image"].min() < found["image"].max() <= 1
    targets = torch.cat([masks for _, masks in data.test])
    wanted = [mask[0].numpy() for mask in targets if mask.any()][:3]
    assert np.array_equal(found["truth"], np.stack(wanted))


def test_without_a_true_mask_no_image_is_shown(tmp_path: Path) -> None:
    data = load_data("phantoms", tmp_path, image_size=16, batch_size=4, limit=4)
    masks = data.test.dataset
    assert isinstance(masks, MaskedImages)
    masks.masks.zero_()
    small = build_model("unet", 1, width=4, depth=1)
    planned = compress(small, plan_ranks(small, data.example(), "htd", Fixed(1)))
    named = predict_masks({5: planned}, data)
    assert list(named) == ["image", "truth", "HTD, trial 5"]
    found = predict_masks({"dense": nn.Identity(), 3: nn.Identity()}, data)
    assert {title: mask.shape for title, mask in found.items()} == dict.fromkeys(
        ("image", "truth", "dense", "trial 3"), (0, 16, 16)
    )
    sample_masks(found)


def test_saved_networks_side_by_side(tmp_path: Path) -> None:
    data = tiny_digits()
    torch.manual_seed(0)
    dense = build_model("resnet20", 10)
    plan = plan_ranks(dense, data.example(), "svd", Fixed(4))
    files = [
        save_compressed(dense.eval(), tmp_path / "dense.safetensors"),
        save_compressed(compress(dense, plan), tmp_path / "small.safetensors"),
    ]
    table = compare_networks(files, data)
    assert list(table["Method"]) == ["dense", "SVD"]
    assert table["accuracy"][0] == evaluate(dense, data.test)["accuracy"]
    assert table["Parameters"][0] == sum(parameter.numel() for parameter in dense.parameters())
    assert table["Parameters"][1] < table["Parameters"][0]
    assert table["Size (MB)"][1] < table["Size (MB)"][0]


def test_a_network_for_other_data_is_refused(tmp_path: Path) -> None:
    file = save_compressed(build_model("unet", 1, width=4, depth=2), tmp_path / "unet.safetensors")
    with pytest.raises(
        ValueError, match=r"unet\.safetensors is for segmentation of 1 classes, not for classification"
    ):
        compare_networks([file], tiny_digits())

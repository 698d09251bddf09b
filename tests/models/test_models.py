from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from common.models import MODELS, build_model, check_image_size, relatives
from common.network.provenance import get_provenance


@pytest.mark.parametrize("name", [name for name, known in MODELS.items() if known.task == "classification"])
def test_heads_fit_the_classes(name: str) -> None:
    model = build_model(name, 7).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    provenance = get_provenance(model)
    assert provenance is not None
    assert (provenance.builder, provenance.arguments, provenance.plan) == (name, {"num_classes": 7}, None)


def test_resnet18_has_torchvisions_parameters() -> None:
    assert sum(parameter.numel() for parameter in build_model("resnet18", 1000).parameters()) == 11_689_512


def test_bad_arguments_are_named() -> None:
    with pytest.raises(
        ValueError,
        match=r"model='resnet' is unknown .*; allowed: resnet18, resnet34, vgg16, alexnet, resnet20, resnet56, unet",
    ):
        build_model("resnet", 10)
    with pytest.raises(ValueError, match="num_classes=1: it must be at least 2"):
        build_model("resnet18", 1)
    with pytest.raises(ValueError, match=r"weights='IMAGENET' is unknown .*; allowed: DEFAULT, IMAGENET1K_V1"):
        build_model("resnet18", 10, weights="IMAGENET")


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_the_cifar_stem_keeps_the_images_size(name: str) -> None:
    model = build_model(name, 10, stem="cifar").eval()
    seen: list[torch.Size] = []
    model.get_submodule("layer1").register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, 64, 32, 32)]
    provenance = get_provenance(model)
    assert provenance is not None
    assert provenance.arguments == {"num_classes": 10, "stem": "cifar"}
    with pytest.raises(ValueError, match="weights='DEFAULT': there are none for stem='cifar'"):
        build_model(name, 10, stem="cifar", weights="DEFAULT")
    with pytest.raises(ValueError, match=r"stem='big' is unknown; allowed: imagenet, cifar"):
        build_model(name, 10, stem="big")
    with pytest.raises(
        ValueError, match=r"stem='cifar': vgg16 takes no such argument; allowed: num_classes, weights$"
    ):
        build_model("vgg16", 10, stem="cifar")


@pytest.mark.parametrize(("name", "params"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_the_cifar_resnets_have_their_papers_size(name: str, params: int) -> None:
    """0.27 M and 0.85 M (He et al. 2016, table 6)."""
    model = build_model(name, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == params
    with pytest.raises(ValueError, match=r"weights='DEFAULT': resnet.. takes no such argument; allowed: num_classes$"):
        build_model(name, 10, weights="DEFAULT")


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
@pytest.mark.parametrize(("size", "classes"), [((32, 32), 1), ((37, 51), 1), ((16, 47), 3)])
def test_the_unet_keeps_the_images_size(size: tuple[int, int], classes: int, upsampling: str) -> None:
    model = build_model("unet", classes, width=4, depth=3, upsampling=upsampling).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, *size)).shape == (2, classes, *size)
    with pytest.raises(ValueError, match="upsampling='nearest' is unknown"):
        build_model("unet", 1, upsampling="nearest")
    with pytest.raises(ValueError, match="depth=0: it must be at least 1"):
        build_model("unet", 1, depth=0)


def test_saved_networks_name_what_they_are_built_again_with() -> None:
    provenance = get_provenance(build_model("unet", 2, width=4))
    assert provenance is not None
    assert provenance.arguments == {"num_classes": 2, "width": 4, "depth": 4, "upsampling": "transposed"}


def test_images_may_be_too_small() -> None:
    check_image_size("unet", 8, depth=3)
    with pytest.raises(ValueError, match="image_size=8: unet needs at least 16 pixels"):
        check_image_size("unet", 8)
    with pytest.raises(ValueError, match="image_size=62: alexnet needs at least 63 pixels"):
        check_image_size("alexnet", 62)


def test_relatives_share_a_family() -> None:
    assert relatives("resnet34") == relatives("resnet18") == ("resnet18", "resnet34")
    assert relatives("vgg16") == ("vgg16",)


def test_arguments_are_picked_from_a_longer_list() -> None:
    values, defaults = {"stem": "imagenet", "width": 8}, {"stem": "imagenet", "width": 64}
    assert MODELS["unet"].pick(values, defaults) == {"width": 8}
    assert MODELS["vgg16"].pick(values, defaults) == {"width": 8}  # build_model then refuses it


def test_the_unet_has_its_papers_size() -> None:
    """31.0 M parameters at 64 channels and depth 4; BatchNorm takes the place of the biases."""
    assert sum(parameter.numel() for parameter in build_model("unet", 1).parameters()) == 31_037_633


def test_weights_without_a_network_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(ConnectionError, match="weights='DEFAULT' of resnet18 are not on this machine"):
        build_model("resnet18", 10, weights="DEFAULT")


def test_provenance_is_none_for_other_networks() -> None:
    assert get_provenance(nn.Linear(2, 2)) is None

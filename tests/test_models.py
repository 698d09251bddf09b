from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from common.models import MODELS, build_model
from common.models.provenance import get_provenance


@pytest.mark.parametrize("name", MODELS)
def test_heads_fit_the_classes(name: str) -> None:
    model = build_model(name, 7).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    provenance = get_provenance(model)
    assert provenance is not None
    assert (provenance.builder, provenance.arguments, provenance.plan) == (name, {"num_classes": 7}, None)


def test_resnet18_has_torchvisions_parameters() -> None:
    assert sum(parameter.numel() for parameter in build_model("resnet18", 1000).parameters()) == 11_689_512


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"model='resnet' is unknown .*; allowed: resnet18, resnet34"):
        build_model("resnet", 10)
    with pytest.raises(ValueError, match="num_classes=1: it must be at least 2"):
        build_model("resnet18", 1)
    with pytest.raises(ValueError, match=r"weights='IMAGENET' is unknown .*; allowed: DEFAULT, IMAGENET1K_V1"):
        build_model("resnet18", 10, weights="IMAGENET")


def test_weights_without_a_network_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(ConnectionError, match="weights='DEFAULT' of resnet18 are not on this machine"):
        build_model("resnet18", 10, weights="DEFAULT")


def test_provenance_is_none_for_other_networks() -> None:
    assert get_provenance(nn.Linear(2, 2)) is None

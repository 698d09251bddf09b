"""``build_model``: torchvision's classifiers with their heads replaced, and the ResNets for CIFAR-10, the U-Net."""

from __future__ import annotations

from typing import Any
from urllib.error import URLError

from torch import nn

from common.models.resnet_cifar import CifarResNet
from common.models.unet import UPSAMPLING, UNet
from common.network.provenance import Provenance, set_provenance
from common.torchvision_compat import torchvision
from common.validation import check_choice

HEADS = {"resnet18": "fc", "resnet34": "fc", "vgg16": "classifier.6", "alexnet": "classifier.6"}
"""torchvision's architectures -> name of the last Linear, which is replaced to fit the number of classes."""
STEMMED = ("resnet18", "resnet34")
STEMS = ("imagenet", "cifar")
SMALLEST = {"alexnet": 63, "vgg16": 32}
"""Pixels that an image needs, height and width, for anything to be left of it at the end."""
HEADLESS = ("IMAGENET1K_FEATURES",)
"""Weights of torchvision's without values for the classifier, and for inputs on another scale."""
CIFAR_BLOCKS = {"resnet20": 3, "resnet56": 9}
CLASSIFIERS = (*HEADS, *CIFAR_BLOCKS)
MODELS = (*CLASSIFIERS, "unet")


def build_model(
    name: str,
    num_classes: int,
    *,
    weights: str | None = None,
    stem: str = "imagenet",
    width: int = 64,
    depth: int = 4,
    upsampling: str = "transposed",
) -> nn.Module:
    """A network for images ``(N, 3, H, W)``; a classifier's output is ``(N, num_classes)``.

    Args:
        name: one of ``MODELS``. ``resnet20`` and ``resnet56`` are made for 32 x 32 pixels, the others take any size
            from 32 (``alexnet`` from 63).
        num_classes: at least 2; for ``unet`` at least 1.
        weights: None for a random start, ``"DEFAULT"`` or another name of torchvision's weights for this
            architecture (``"IMAGENET1K_V1"``), which are downloaded on first use; the head starts at random unless it
            is for as many classes as theirs, ImageNet's 1,000.
            There are none for the ResNets for CIFAR-10 and the U-Net.
        stem: for ``resnet18`` and ``resnet34``: ``imagenet`` (7 x 7 with stride 2 and a pooling, which leave a quarter
            of each side) or ``cifar``, for images of 32 x 32: one 3 x 3 convolution that keeps the size, as in
            section 4.2 of He et al. (2016). There are no weights for the latter.
        width: for ``unet``: channels of its first level.
        depth: for ``unet``: how many times it halves the image.
        upsampling: for ``unet``: ``transposed`` or ``bilinear``.

    Raises:
        ValueError: an argument is not allowed.
        ConnectionError: the weights are not on this machine and cannot be downloaded.
    """
    check_choice("model", name, MODELS)
    least = 1 if name == "unet" else 2
    for parameter, value, low in (("num_classes", num_classes, least), ("width", width, 1), ("depth", depth, 1)):
        if value < low:
            raise ValueError(f"{parameter}={value!r}: it must be at least {low}")
    check_choice("upsampling", upsampling, UPSAMPLING)
    check_choice("stem", stem, STEMS if name in STEMMED else STEMS[:1])
    if weights is not None:
        if stem == "cifar":
            raise ValueError(f"weights={weights!r} with stem='cifar': there are none; use stem='imagenet'")
        known = torchvision.models.get_model_weights(name) if name in HEADS else []
        listed = [entry.name for entry in known if entry.name not in HEADLESS]
        check_choice("weights", weights, ["DEFAULT", *listed] if listed else [])
    arguments: dict[str, Any] = {"num_classes": num_classes}
    model: nn.Module
    if name == "unet":
        arguments |= {"width": width, "depth": depth, "upsampling": upsampling}
        model = UNet(**arguments)
    elif name in CIFAR_BLOCKS:
        model = CifarResNet(CIFAR_BLOCKS[name], num_classes)
    else:
        model = _torchvision(name, num_classes, weights)
        if stem == "cifar":
            arguments["stem"] = stem
            model.set_submodule("conv1", nn.Conv2d(3, 64, 3, padding=1, bias=False))
            model.set_submodule("maxpool", nn.Identity())
    set_provenance(model, Provenance(name, arguments))
    return model


def _torchvision(name: str, num_classes: int, weights: str | None) -> nn.Module:
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=weights)
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"weights={weights!r} of {name} are not on this machine and could not be downloaded ({error}); "
            "connect to a network, or start at random with weights=None"
        ) from error
    head = model.get_submodule(HEADS[name])
    assert isinstance(head, nn.Linear)
    if weights is None or head.out_features != num_classes:
        model.set_submodule(HEADS[name], nn.Linear(head.in_features, num_classes))
    return model


def check_image_size(name: str, image_size: int, depth: int = 4) -> None:
    """Raise a ValueError when ``image_size`` pixels are too few for the network; ``depth`` is the U-Net's."""
    least = 2**depth if name == "unet" else SMALLEST.get(name, 8)
    if image_size < least:
        raise ValueError(f"image_size={image_size}: {name} needs at least {least} pixels")

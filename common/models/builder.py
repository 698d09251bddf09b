"""``build_model``: build a network by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.models.registry import MODELS
from common.network.provenance import Provenance, set_provenance


def build_model(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """Build a network for images ``(N, 3, H, W)``.

    Args:
        name: one of :data:`common.models.MODELS`. The file of each family describes it.
        num_classes: number of classes of the logits ``(N, num_classes)``, or ``(N, num_classes, H, W)`` for masks.
        arguments: arguments of the architecture: ``weights`` for torchvision's classifiers, also ``stem`` for its
            ResNets; ``width``, ``depth`` and ``upsampling`` for the U-Net.

    Raises:
        ValueError: the name or an argument is not allowed.
        ConnectionError: the weights are not on this machine and cannot be downloaded.
    """
    MODELS.check(name)
    architecture = MODELS[name]
    if num_classes < architecture.min_classes:
        raise ValueError(f"num_classes={num_classes!r}: it must be at least {architecture.min_classes}")
    complete = architecture.complete(arguments)
    model = architecture.build(num_classes, **complete)
    set_provenance(model, Provenance(name, {"num_classes": num_classes, **architecture.recorded(complete)}))
    return model


def check_image_size(name: str, image_size: int, **arguments: Any) -> None:
    """Raise a ValueError if ``image_size`` pixels are too few for a network with these arguments."""
    least = MODELS[name].min_size
    if callable(least):
        least = least(**MODELS[name].complete(arguments))
    if image_size < least:
        raise ValueError(f"image_size={image_size}: {name} needs at least {least} pixels")

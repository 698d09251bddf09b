"""``build_model``: torchvision's classifiers with their heads replaced."""

from __future__ import annotations

from typing import Any
from urllib.error import URLError

from torch import nn

from common.choices import check_choice
from common.models.provenance import Provenance, set_provenance
from common.torchvision_compat import torchvision

HEADS = {"resnet18": "fc", "resnet34": "fc"}
"""Architecture -> name of its last Linear, which is replaced to fit the number of classes."""
MODELS = tuple(HEADS)


def build_model(name: str, num_classes: int, *, weights: str | None = None) -> nn.Module:
    """A classifier for images ``(N, 3, H, W)``; its output is ``(N, num_classes)``.

    Args:
        name: one of ``MODELS``.
        num_classes: at least 2.
        weights: None for a random start, ``"DEFAULT"`` or another name of torchvision's weights for this
            architecture (``"IMAGENET1K_V1"``), which are downloaded on first use; the head always starts at random.

    Raises:
        ValueError: ``name``, ``num_classes`` or ``weights`` is not allowed.
        ConnectionError: the weights are not on this machine and cannot be downloaded.
    """
    check_choice("model", name, MODELS)
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes!r}: it must be at least 2")
    if weights is not None:
        known = [entry.name for entry in torchvision.models.get_model_weights(name)]
        check_choice("weights", weights, ["DEFAULT", *known])
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=weights)
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"weights={weights!r} of {name} are not on this machine and could not be downloaded ({error}); "
            "connect to a network, or start at random with weights=None"
        ) from error
    head = model.get_submodule(HEADS[name])
    assert isinstance(head, nn.Linear)
    model.set_submodule(HEADS[name], nn.Linear(head.in_features, num_classes))
    arguments: dict[str, Any] = {"num_classes": num_classes}
    set_provenance(model, Provenance(name, arguments))
    return model

"""torchvision's classifiers, with their heads replaced to fit the number of classes.

``weights`` is None for random weights, or ``"DEFAULT"`` or another name of torchvision's weights for the architecture
(``"IMAGENET1K_V1"``), which are downloaded on first use. The head is random unless it has as many classes as the
weights: 1,000, those of ImageNet.

``stem`` of the ResNets is ``imagenet`` or ``cifar``. The former is a 7 x 7 convolution with stride 2 and a pooling,
which together divide each side by 4. The latter is for images of 32 x 32: one 3 x 3 convolution that keeps the size
(He et al. 2016, section 4.2). There are no weights for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.error import URLError

from torch import nn

from common.models.registry import MODELS, Architecture
from common.validation import check_choice

STEMS = ("imagenet", "cifar")
WITHOUT_HEAD = ("IMAGENET1K_FEATURES",)
"""torchvision's weights without a classifier, which also expect inputs on another scale."""


def build_classifier(
    name: str, head: str, num_classes: int, weights: str | None = None, stem: str = "imagenet"
) -> nn.Module:
    """Build one of torchvision's architectures.

    Args:
        name: name of the architecture.
        head: name of its last Linear, which is replaced.
        num_classes: number of classes of the new head.
        weights: see the top of this file.
        stem: see the top of this file.

    Raises:
        ValueError: the weights or the stem are unknown, or there are no such weights for the stem.
        ConnectionError: the weights are not on this machine and cannot be downloaded.
    """
    from common.torchvision_compat import torchvision

    check_choice("stem", stem, STEMS)
    if weights is not None:
        if stem != STEMS[0]:
            raise ValueError(f"weights={weights!r}: there are none for stem={stem!r}; use stem={STEMS[0]!r}")
        known = [entry.name for entry in torchvision.models.get_model_weights(name)]
        check_choice("weights", weights, ["DEFAULT", *(entry for entry in known if entry not in WITHOUT_HEAD)])
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=weights)
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"weights={weights!r} of {name} are not on this machine and could not be downloaded ({error}); "
            "connect to the internet, or use random weights with weights=None"
        ) from error
    last = model.get_submodule(head)
    assert isinstance(last, nn.Linear)
    if weights is None or last.out_features != num_classes:
        model.set_submodule(head, nn.Linear(last.in_features, num_classes))
    if stem != STEMS[0]:
        model.set_submodule("conv1", nn.Conv2d(3, 64, 3, padding=1, bias=False))
        model.set_submodule("maxpool", nn.Identity())
    return model


def _recorded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stem if it is not that of torchvision. Weights say nothing about the architecture."""
    return {name: value for name, value in arguments.items() if name == "stem" and value != STEMS[0]}


for _name, _title in (("resnet18", "ResNet-18"), ("resnet34", "ResNet-34")):
    MODELS.add(
        Architecture(
            _name,
            f"{_title} (He et al. 2016)",
            partial(build_classifier, _name, "fc"),
            family="resnet",
            arguments={"weights": None, "stem": STEMS[0]},
            recorded=_recorded,
        )
    )
for _name, _title, _size in (
    ("vgg16", "VGG-16 (Simonyan and Zisserman 2015)", 32),
    ("alexnet", "AlexNet (Krizhevsky 2014)", 63),
):
    MODELS.add(
        Architecture(
            _name,
            _title,
            partial(build_classifier, _name, "classifier.6"),
            arguments={"weights": None},
            recorded=_recorded,
            min_size=_size,
        )
    )

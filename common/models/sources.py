"""Where networks come from: ``find_network`` builds one by the name that a user gives.

A name with a colon, ``module:function``, is a function of the user's. Any other name is that of an architecture. The
sources are asked in the order of :data:`NETWORK_SOURCES`, and the first that knows the name builds the network;
``timm/resnet18`` asks one source alone.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, ClassVar
from urllib.error import URLError

from torch import nn

from common.functions import named_function, names_function
from common.models.builder import build_model
from common.models.registry import MODELS
from common.validation import Registry

IMAGENET_CLASSES = 1000


class NetworkSource(ABC):
    """A place that networks come from.

    Attributes:
        name: name that a user may put in front of a network's name, with a slash between.
        title: one line for help texts.
        has_own_weights: whether the networks that it builds have trained weights already.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    has_own_weights: ClassVar[bool] = False

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return the names of its networks; empty if they cannot be listed or the package is not installed."""

    def knows(self, name: str) -> bool:
        """Whether it builds a network of this name."""
        return name in self.names()

    @abstractmethod
    def build(self, name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
        """Build a network.

        Args:
            name: a name that it knows.
            num_classes: number of outputs; None for the architecture's default.
            pretrained: whether to download published weights. The network then has the outputs of these weights,
                whatever ``num_classes`` is.

        Raises:
            ValueError: there are no published weights, or the architecture needs a number of classes.
        """


NETWORK_SOURCES: Registry[NetworkSource] = Registry("network source", lambda source: source.name)


class OwnFunction(NetworkSource):
    """Calls a function of the user's, without arguments."""

    name = "own"
    title = "my_module:build calls build() of my_module.py in the current folder, which returns your trained network"
    has_own_weights = True

    def names(self) -> Sequence[str]:
        """Return nothing: any module may hold such a function."""
        return ()

    def knows(self, name: str) -> bool:
        """Whether the name is ``module:function``."""
        return names_function(name)

    def build(self, name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
        """Return what the function returns, which must be a module; or the module itself, if ``name`` is one's."""
        if pretrained:
            raise ValueError(f"pretrained: {name} has no published weights; let the function load its own")
        found = named_function("network", name)
        network = found if isinstance(found, nn.Module) else found()
        if not isinstance(network, nn.Module):
            raise ValueError(f"network={name!r}: it returned a {type(network).__name__}, not a torch.nn.Module")
        return network


class Suite(NetworkSource):
    """The architectures of this suite."""

    name = "suite"
    title = "resnet18, unet and the other networks that finetuned/finetune.py trains"

    def names(self) -> Sequence[str]:
        """Return the registered names."""
        return tuple(MODELS)

    def build(self, name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
        """Build the architecture by :func:`common.models.build_model`."""
        if pretrained:
            if "weights" not in MODELS[name].arguments:
                raise ValueError(f"pretrained: {name} has no published weights")
            return build_model(name, IMAGENET_CLASSES, weights="DEFAULT")
        if num_classes is None:
            raise ValueError(
                f"network={name!r}: the data has no targets, so the number of classes is unknown; name a function of "
                "yours that builds the network, module:function"
            )
        return build_model(name, num_classes)


class Torchvision(NetworkSource):
    """torchvision's classifiers."""

    name = "torchvision"
    title = "the classifiers of torchvision, e.g. mobilenet_v3_small"

    def names(self) -> Sequence[str]:
        """Return the names of torchvision's classifiers."""
        models = _torchvision().models
        return tuple(models.list_models(module=models))

    def build(self, name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
        """Build the classifier."""
        given = {} if num_classes is None or pretrained else {"num_classes": num_classes}
        network: nn.Module = _torchvision().models.get_model(name, weights="DEFAULT" if pretrained else None, **given)
        return network


class Timm(NetworkSource):
    """timm's networks, where timm is installed."""

    name = "timm"
    title = "the networks of timm, e.g. efficientnet_b0, where it is installed (pip install timm)"

    def names(self) -> Sequence[str]:
        """Return timm's names, with and without the tag of their weights."""
        timm = self._package()
        return () if timm is None else (*timm.list_models(), *timm.list_pretrained())

    def build(self, name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
        """Build the network."""
        given = {} if num_classes is None or pretrained else {"num_classes": num_classes}
        network: nn.Module = self._package().create_model(name, pretrained=pretrained, **given)
        return network

    @staticmethod
    def _package() -> Any:
        """Return the package; None if it is not installed. It imports torchvision, which must be importable first."""
        if find_spec("timm") is None:
            return None
        _torchvision()
        import timm

        return timm


def _torchvision() -> Any:
    """Import torchvision, which takes a second."""
    from common.torchvision_compat import torchvision

    return torchvision


for _source in (OwnFunction(), Suite(), Torchvision(), Timm()):
    NETWORK_SOURCES.add(_source)


def find_network(text: str, num_classes: int | None = None, pretrained: bool = False) -> nn.Module:
    """Build the network that a user names.

    Args:
        text: ``module:function``, the name of an architecture, or ``SOURCE/NAME``.
        num_classes: number of outputs; None for the architecture's default. A function of the user's decides itself.
        pretrained: whether to download published weights.

    Raises:
        ValueError: no source knows the name, or it cannot build the network so.
        ConnectionError: the weights are not on this machine and cannot be downloaded.
    """
    source, name = source_of(text)
    try:
        return source.build(name, num_classes, pretrained)
    except (URLError, OSError) as error:
        if not pretrained:
            raise
        raise ConnectionError(
            f"the published weights of {text} are not on this machine and could not be downloaded ({error})"
        ) from error


def source_of(text: str) -> tuple[NetworkSource, str]:
    """Return the source that builds the network ``text``, and the network's name there.

    Raises:
        ValueError: no source knows it.
    """
    first, _, rest = text.partition("/")
    asked, name = ([NETWORK_SOURCES[first]], rest) if first in NETWORK_SOURCES else ([*NETWORK_SOURCES.values()], text)
    found = next((source for source in asked if source.knows(name)), None)
    if found is None:
        names = {known: source.name for source in asked for known in source.names()}
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {names[near[0]]}/{near[0]}?)" if near else ""
        allowed = "; ".join(source.title for source in asked)
        raise ValueError(f"network={text!r} is unknown{hint}; allowed: {allowed}")
    return found, name

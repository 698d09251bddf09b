"""``Architecture``: the description of a network, and the registry of all architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from common.validation import Registry


@dataclass(frozen=True)
class Architecture:
    """Description of a network.

    Attributes:
        name: name by which ``build_model`` finds it.
        title: one line for help texts, with the source.
        build: function ``build(num_classes, **arguments)`` that checks the values of ``arguments`` and returns a
            network for images ``(N, 3, H, W)``.
        task: name of the network's task, see :data:`common.data.TASKS`.
        family: name of its family, whose architectures share a notebook; empty if it has none.
        arguments: name -> default of each argument of ``build`` besides the number of classes.
        recorded: function that selects the arguments needed to build a saved network again.
        min_classes: minimum number of classes.
        min_size: minimum height and width of an image in pixels, or a function of the arguments that returns it.
    """

    name: str
    title: str
    build: Callable[..., nn.Module]
    task: str = "classification"
    family: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    recorded: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    min_classes: int = 2
    min_size: int | Callable[..., int] = 8

    def complete(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments, with defaults for those that are not given.

        Raises:
            ValueError: the architecture does not take one of them.
        """
        for name, value in arguments.items():
            if name not in self.arguments:
                allowed = ", ".join(("num_classes", *self.arguments))
                raise ValueError(f"{name}={value!r}: {self.name} takes no such argument; allowed: {allowed}")
        return {**self.arguments, **arguments}

    def pick(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Select the arguments from the values of a command line or a notebook, which serves several architectures.

        A value that the architecture does not take is left out if it is the default, since the user did not set it.
        """
        return {name: value for name, value in values.items() if name in self.arguments or value != defaults[name]}


MODELS: Registry[Architecture] = Registry("model", lambda architecture: architecture.name)


def relatives(name: str) -> tuple[str, ...]:
    """Return the architectures of the family of ``name``, including itself, in the order of registration.

    Raises:
        ValueError: there is no architecture with this name.
    """
    family = MODELS[name].family
    return tuple(other for other in MODELS if other == name or (family and MODELS[other].family == family))

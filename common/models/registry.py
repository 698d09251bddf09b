"""``Architecture``: what the suite knows of a network before it is built, and the registry of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from common.validation import Registry


@dataclass(frozen=True)
class Architecture:
    """What the suite knows of a network before it is built.

    Attributes:
        name: by which ``build_model`` finds it.
        title: one line for help texts, with the source.
        build: is called as ``build(num_classes, **arguments)``; it checks the values of ``arguments``. Its network
            takes images ``(N, 3, H, W)``.
        task: name of what the network learns, see :data:`common.data.TASKS`.
        family: architectures of one family share a notebook; empty for one without relatives.
        arguments: name -> default of what ``build`` takes beside the number of classes.
        recorded: picks from the arguments those that a saved network is built again with.
        min_classes: the least number of classes.
        min_size: the least height and width of an image in pixels, or a function of the arguments that gives it.
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
        """Return all arguments, with the defaults of those that are not given.

        Raises:
            ValueError: the architecture does not take one of them.
        """
        for name, value in arguments.items():
            if name not in self.arguments:
                allowed = ", ".join(("num_classes", *self.arguments))
                raise ValueError(f"{name}={value!r}: {self.name} takes no such argument; allowed: {allowed}")
        return {**self.arguments, **arguments}

    def pick(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Pick the arguments from the values of a command line or a notebook, which serves several architectures.

        A value that the architecture does not take is left out where it is the default, which nobody asked for.
        """
        return {name: value for name, value in values.items() if name in self.arguments or value != defaults[name]}


MODELS: Registry[Architecture] = Registry("model", lambda architecture: architecture.name)


def relatives(name: str) -> tuple[str, ...]:
    """Return the architectures of one family, in the order in which they were added, ``name`` among them.

    Raises:
        ValueError: there is no architecture of this name.
    """
    family = MODELS[name].family
    return tuple(other for other in MODELS if other == name or (family and MODELS[other].family == family))

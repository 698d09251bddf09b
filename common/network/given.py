"""Check the network that a caller gives, before anything looks into it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin


def check_is_network(model: object) -> None:
    """Raise a TypeError, with advice for common mistakes, unless ``model`` is an ``nn.Module``."""
    if isinstance(model, nn.Module):
        return
    advice = ""
    if isinstance(model, type) and issubclass(model, nn.Module):
        advice = f"; make one of the class: {model.__name__}(...)"
    elif isinstance(model, Mapping):
        advice = "; build the network and call its load_state_dict"
    elif callable(model):
        advice = "; call the function that builds it"
    kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    raise TypeError(f"model is {kind}: it must be a network, an nn.Module{advice}")


def has_lazy_layers(model: nn.Module) -> bool:
    """Whether weights of the network have no shape until it runs."""
    return any(isinstance(each, LazyModuleMixin) and each.has_uninitialized_params() for each in model.modules())


def check_has_values(model: object) -> None:
    """Raise unless ``model`` is a network whose weights and buffers have values.

    Raises:
        TypeError: it is no network.
        ValueError: a parameter or buffer is on the meta device.
    """
    check_is_network(model)
    assert isinstance(model, nn.Module)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta and type(tensor) in (Tensor, nn.Parameter):  # other types may hold their values elsewhere
            raise ValueError(f"model: its {name!r} is on the meta device and has no values; build it on a real device")

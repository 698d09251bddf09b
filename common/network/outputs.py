"""Read the one tensor that a network returns; raise a clear error for any other output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

_MAX_NAMES = 8
"""Limit on the number of keys or fields in an error message."""


def single_tensor(output: object, what: str) -> Tensor:
    """Return the one tensor in ``output``.

    Args:
        output: output of a network: a tensor, or a mapping, dataclass, tuple or list that contains one tensor.
        what: the name in the error message of what returned it, such as ``the network``.

    Raises:
        ValueError: ``output`` does not contain exactly one tensor. The message describes it and gives advice.
    """
    held = _tensors(output)
    if len(held) == 1:
        return held[0]
    advice = "wrap it in a module that picks one" if _contents(output) else "give it a forward that returns its output"
    raise ValueError(f"{what} must return one tensor, but it returns {describe(output)}; {advice}")


def training_tensor(output: object, what: str) -> Tensor:
    """Return the main tensor of an output in training mode, when auxiliary heads may add others (GoogLeNet).

    If all tensors have the same shape, the first is the main one, and the loss leaves out the others. Otherwise this
    acts like :func:`single_tensor`.
    """
    held = _tensors(output)
    return held[0] if held and len({tensor.shape for tensor in held}) == 1 else single_tensor(output, what)


def _tensors(output: object) -> list[Tensor]:
    """Return the tensors in nested mappings, dataclasses, tuples and lists, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
    else:
        parts = list(output) if isinstance(output, tuple | list) else []
    return [tensor for part in parts for tensor in _tensors(part)]


def describe(value: object) -> str:
    """Describe a value by type and contents for an error message, e.g. ``a dict (keys image, label)``."""
    if value is None:
        return "None"
    kind, parts = type(value).__name__, _contents(value)
    return f"{_article(kind)} {kind} ({parts})" if parts else f"{_article(kind)} {kind}"


def _contents(output: object) -> str:
    """Describe what a container holds; empty for any other value."""
    if isinstance(output, Mapping):
        return f"keys {_joined([str(key) for key in output])}" if output else "no keys"
    if dataclasses.is_dataclass(output):
        return f"fields {_joined([field.name for field in dataclasses.fields(output)])}"
    if isinstance(output, tuple) and (names := getattr(output, "_fields", ())):
        return f"fields {_joined([str(name) for name in names])}"
    if isinstance(output, tuple | list):
        kinds = [type(item).__name__ for item in output]
        return f"of length {len(kinds)}: {_joined(kinds)}" if kinds else "of length 0"
    return ""


def _joined(names: list[str]) -> str:
    """Join names by commas; name at most ``_MAX_NAMES`` of them."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _article(word: str) -> str:
    """Return ``a`` or ``an``."""
    return "an" if word[:1].lower() in tuple("aeiou") else "a"

"""What a network returns: one tensor, or a clear error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

NAMED = 8
"""Keys or fields that an error names."""


def single_tensor(output: object, what: str) -> Tensor:
    """The one tensor that ``output`` is, or that it holds.

    Args:
        output: what a network returned: a tensor, or a mapping, dataclass, tuple or list with one tensor in it.
        what: who returned it, as the error names it, e.g. ``the network``.

    Raises:
        ValueError: it is anything else; the sentence says what it is and what to do.
    """
    held = _tensors(output)
    if len(held) == 1:
        return held[0]
    advice = "wrap it in a module that picks one" if _parts(output) else "give it a forward that returns its output"
    raise ValueError(f"{what} must return one tensor, it returns {describe(output)}; {advice}")


def training_tensor(output: object, what: str) -> Tensor:
    """As :func:`single_tensor`, for an output in training mode, when auxiliary heads may put out more (GoogLeNet).

    Of several tensors of one shape the first is the network's own; the others are left out of the loss.
    """
    held = _tensors(output)
    return held[0] if held and len({tensor.shape for tensor in held}) == 1 else single_tensor(output, what)


def _tensors(output: object) -> list[Tensor]:
    """The tensors in nested mappings, dataclasses, tuples and lists, in their order."""
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
    """The kind of a value and what it holds, for an error: ``None``, ``a dict (keys image, label)``."""
    if value is None:
        return "None"
    kind, parts = type(value).__name__, _parts(value)
    return f"{_article(kind)} {kind} ({parts})" if parts else f"{_article(kind)} {kind}"


def _parts(output: object) -> str:
    """What a container holds, for the error; nothing where it is none."""
    if isinstance(output, Mapping):
        return f"keys {_listed([str(key) for key in output])}" if output else "no keys"
    if dataclasses.is_dataclass(output):
        return f"fields {_listed([field.name for field in dataclasses.fields(output)])}"
    if isinstance(output, tuple) and (names := getattr(output, "_fields", ())):
        return f"fields {_listed([str(name) for name in names])}"
    if isinstance(output, tuple | list):
        kinds = [type(item).__name__ for item in output]
        return f"of length {len(kinds)}: {_listed(kinds)}" if kinds else "of length 0"
    return ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _article(word: str) -> str:
    return "an" if word[:1].lower() in tuple("aeiou") else "a"

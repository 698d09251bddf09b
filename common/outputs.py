"""What a network returns: one tensor, or a clear error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

NAMED = 8
"""Keys or fields that an error names."""


def single_tensor(output: object, what: str) -> Tensor:
    """``output`` itself where it is one tensor.

    Args:
        output: what a network returned.
        what: who returned it, as the error names it, e.g. ``the network``.

    Raises:
        ValueError: it is anything else; the sentence says what it is and what to do.
    """
    if isinstance(output, Tensor):
        return output
    advice = "wrap it in a module that picks one" if _parts(output) else "give it a forward that returns its output"
    raise ValueError(f"{what} must return one tensor, it returns {describe(output)}; {advice}")


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

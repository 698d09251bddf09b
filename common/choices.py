"""What may be chosen in more than one room, and the sentences for values that are not allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError

RUNTIMES = {
    "eager": "PyTorch eager",
    "channels_last": "PyTorch channels_last",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
}
"""In what a network can be timed, and how that is called in a record."""

BUDGET_RULES = ("uniform", "energy", "vbmf", "budget")
"""Policies of a search that have one plan, which a rank rule finds at the budget."""


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Do nothing when ``value`` is one of ``allowed``.

    Raises:
        ValueError: it is not; the sentence names the parameter, the value, what is allowed and the nearest of it.
    """
    options = list(allowed)
    if value not in options:
        near = difflib.get_close_matches(str(value), options, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{name}={value!r} is unknown{hint}; allowed: {', '.join(options)}")


def sentence(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, as ``name=value: what is allowed``."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    return f"{first['loc'][0]}={first['input']!r}: {message[0].lower()}{message[1:]}"

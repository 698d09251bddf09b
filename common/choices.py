"""The sentence for a value that is none of the allowed ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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

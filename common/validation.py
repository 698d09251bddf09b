"""Registries of entries that users can add, checks of arguments, and their error messages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

Entry = TypeVar("Entry")
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that every generator of random numbers takes."""


class Registry(Mapping[str, Entry]):
    """Mapping from name to entry of one kind, such as a decomposition, in the order of registration.

    Every part of the suite finds a registered entry by name, and error messages list it. To add your own, call
    ``REGISTRY.add(entry)`` in a module that is imported before the entry is used.

    Args:
        parameter: name of the parameter by which callers select an entry, e.g. ``method``. Error messages begin
            with it.
        name_of: function that returns the name of an entry.
    """

    def __init__(self, parameter: str, name_of: Callable[[Entry], str]) -> None:
        self.parameter, self._name_of = parameter, name_of
        self._entries: dict[str, Entry] = {}

    def add(self, entry: Entry) -> Entry:
        """Register ``entry`` and return it, so that this method also works as a class decorator.

        Raises:
            ValueError: another entry has the same name.
        """
        name = self._name_of(entry)
        known = self._entries.setdefault(name, entry)
        if known is not entry and repr(known) != repr(entry):
            raise ValueError(f"{self.parameter}={name!r} is already the name of {known!r}")
        self._entries[name] = entry
        return entry

    @contextmanager
    def including(self, entry: Entry) -> Iterator[Entry]:
        """Register ``entry`` inside the ``with`` block only."""
        self.add(entry)
        try:
            yield entry
        finally:
            del self._entries[self._name_of(entry)]

    def check(self, name: object) -> None:
        """Raise a ValueError that lists the registered names unless ``name`` is one of them."""
        check_choice(self.parameter, name, self)

    def __getitem__(self, name: str) -> Entry:
        """Return the entry with this name.

        Raises:
            UnknownName: no entry has this name.
        """
        if name not in self._entries:
            raise UnknownName(_unknown(self.parameter, name, self._entries))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class UnknownName(ValueError, KeyError):
    """Error for a name that is not in a registry. It is also a KeyError, as a mapping must raise."""

    __str__ = ValueError.__str__


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``allowed``.

    Raises:
        ValueError: ``value`` is not allowed. The message states the parameter, the value, the allowed values and the
            most similar one.
    """
    names = list(allowed)
    if value not in names:
        raise ValueError(_unknown(name, value, names))


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number of Python or NumPy; a truth value is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether ``value`` is a whole number of Python or NumPy; a truth value is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _unknown(name: str, value: object, allowed: Iterable[str]) -> str:
    """Return the error message for a value that is not allowed."""
    names = list(allowed)
    similar = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {similar[0]!r}?)" if similar else ""
    return f"{name}={value!r} is unknown{hint}; allowed: {', '.join(names)}"


def sentence(error: ValidationError) -> str:
    """Return pydantic's first error as one sentence, ``name=value: what is allowed``."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    return f"{first['loc'][0]}={first['input']!r}: {message[0].lower()}{message[1:]}"
